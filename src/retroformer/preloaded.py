"""Commands without the wait for their imports: a process that has imported what they need forks one for whoever asks.

Importing torch and transformers takes longer than most stages work, and every stage and every worker of a stage would
do it again. `flows/improve.py` keeps such a process beside its run. There `retroformer COMMAND` hands over its
arguments, folder, variables and open files, and ends as the forked command ends; where nobody listens, or the package's
files are no longer those that were imported, it runs by itself, to the same result.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ADDRESS = "RETROFORMER_PRELOADED"
"""The environment variable that says where such a process listens."""
MODULES = (
    "retroformer.cli",
    "pyarrow.parquet",
    "pandas",
    "torch",
    "retroformer.policies.checkpoints",
    "transformers.models.llama.modeling_llama",
    "retroformer.policies.acting",
    "retroformer.training.trainer",
    "retroformer.rollouts.workers",
    "retroformer.environments.babyai",
    "great_expectations",
    "retroformer.quality.contract",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "retroformer.tracking.mlflow_view",
    "retroformer.evaluation.report",
)
"""What stages import, in the order in which a round needs it."""
SERVE = """\
import sys
from retroformer import preloaded
from retroformer.__main__ import main
preloaded.serve(sys.argv[1], main)
"""
LOOK = 0.25
"""Seconds between two looks at whether who is served or watched is still there."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PACKAGE = Path(__file__).parent

forked = False
"""Whether this process is such a fork: what it imported is there for its own forks too."""


@contextmanager
def preloaded() -> Iterator[None]:
    """Commands that are started in this block are forked where that can be done; not where they are already."""
    if sys.platform != "linux" or ADDRESS in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="retroformer-") as folder:
        address = os.path.join(folder, "socket")
        words = [sys.executable, "-c", SERVE, address]
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, process_group=0)
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            child.terminate()
            child.wait()


def command(arguments: list[str]) -> int | None:
    """The exit code of `retroformer ARGUMENTS` as a fork; None where it has to run here."""
    if forked or ADDRESS not in os.environ:
        return None
    parent = os.getppid()
    request = {
        "package": str(PACKAGE),
        "arguments": arguments,
        "folder": os.getcwd(),
        "variables": dict(os.environ),
        "path": sys.path,
        "umask": _umask(),
    }
    body = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(os.environ[ADDRESS])
            socket.send_fds(line, [len(body).to_bytes(8)], [0, 1, 2])
            line.sendall(body)
            child = int.from_bytes(_received(line, 8))
        except OSError:
            return None
        if not child:
            return None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _frame: _pass_on(number, child))
        while not select.select([line], [], [], LOOK)[0]:
            if os.getppid() != parent:
                os._exit(1)  # the fork ends with this line
        try:
            code = int.from_bytes(_received(line, 8), signed=True)
        except OSError:
            code = -signal.SIGKILL
    return code if code >= 0 else 128 - code


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _received(line: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = line.recv(count - len(found))
        if not part:
            raise ConnectionError("the other end is gone")
        found += part
    return found


def _pass_on(number: int, child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _stamp() -> list[tuple[str, int]]:
    """Differs where the package's files do."""
    return [(str(file), file.stat().st_mtime_ns) for file in sorted(PACKAGE.rglob("*.py"))]


@dataclass
class Server:
    """Forks commands, tells who asked how they ended, and ends those that nobody waits for any longer."""

    listener: socket.socket
    main: Callable[[], int]
    running: dict[Any, socket.socket] = field(default_factory=dict)
    """multiprocessing's process -> the line to who waits for it."""
    stamp: list[tuple[str, int]] = field(default_factory=_stamp)

    def look(self, seconds: float) -> None:
        """Do what is to be done now, or first within `seconds`."""
        sentinels = [child.sentinel for child in self.running]
        ready, _, _ = select.select([self.listener, *sentinels, *self.running.values()], [], [], seconds)
        for child, line in list(self.running.items()):
            if child.sentinel in ready:
                child.join()
                del self.running[child]
                with line, suppress(OSError):
                    line.sendall(child.exitcode.to_bytes(8, signed=True))
            elif line in ready:  # who waits says nothing more: it is gone
                end(child.pid)
        if self.listener in ready:
            line, _ = self.listener.accept()
            try:
                self.answer(line)
            except OSError:
                line.close()

    def answer(self, line: socket.socket) -> None:
        """Fork, if the request can be served; else say so."""
        line.settimeout(5)
        head, files, _, _ = socket.recv_fds(line, 8, 3)
        try:
            request = json.loads(_received(line, int.from_bytes(head)))
            if request["package"] != str(PACKAGE) or self.stamp != _stamp():
                with line:
                    line.sendall(bytes(8))
                return
            child: Any = multiprocessing.get_context("fork").Process(target=self.run, args=(request, files, line))
            child.start()
        finally:
            for file in files:
                os.close(file)
        self.running[child] = line
        with suppress(OSError):  # who asked is gone already: the next look ends the fork
            line.sendall(child.pid.to_bytes(8))

    def run(self, request: dict[str, Any], files: list[int], line: socket.socket) -> None:
        """In the fork: let go of what is the server's, become the process that asked, do its command."""
        for one in (self.listener, line, *self.running.values()):
            one.close()
        become(request, files)
        code = self.main()
        try:
            sys.stdout.flush()
        except OSError:  # it was told, and must not change the exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(code)

    def close(self) -> None:
        """End all that still runs."""
        for child in self.running:
            end(child.pid)


def become(request: dict[str, Any], files: list[int]) -> None:
    """Make of this fork the process that asked: its files, folder, variables."""
    global forked
    forked = True
    die_with_parent()
    os.setpgid(0, 0)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", 1 if os.isatty(1) else -1, "utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.path[:] = request["path"]
    sys.argv = ["retroformer", *request["arguments"]]


@contextmanager
def deaf() -> Iterator[None]:
    """What is started in this block does not hear the interrupt, which a terminal sends to all: who started it ends it.

    Else a Ctrl-C while it still imports would be a traceback of its own. This process hears one that comes meanwhile
    at the end of the block: another thread may take the signal, and the main one must not stop half-way.
    """
    heard: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda number, _frame: heard.append(number)) if here else None
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def end(process: int) -> None:
    """End a process and all that it started, itself last, as it may be this one."""
    end_started(process)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGKILL)


def end_started(process: int) -> None:
    """End all that a process started, and that this did."""
    import psutil

    with suppress(psutil.Error):
        for one in psutil.Process(process).children(recursive=True):
            with suppress(psutil.Error):
                one.kill()


def die_with_parent() -> None:
    """Let the system kill this process as soon as its parent is gone; on Linux, elsewhere nothing."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Let what was started by what this process started be its child when its parent is gone; as above."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def serve(address: str, main: Callable[[], int]) -> None:
    """Listen at `address` until the process that started this one is gone; `main` does a command in a fork."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        server = Server(listener, main)
        try:
            for seconds in _between_imports():
                if os.getppid() != parent:
                    return
                server.look(seconds)
        finally:
            if not forked:
                server.close()


def _between_imports() -> Iterator[float]:
    """Import one module after the other, then wait; yields how long to look for requests meanwhile."""
    for name in MODULES:
        yield 0.0
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # so that a fork's collector does not copy what it shares
    while True:
        yield LOOK
