"""Processes that environments run in: cheap to start, ended with all that they started, and never left behind.

They come from a fork server: a small process without threads that has imported what environments need, so that a new
one costs tens of milliseconds. Above each is one that waits for its end, in whatever way it comes, and ends what is
left of all that it started; on Linux also what was daemonised, elsewhere only what still has its group or a parent.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import psutil

from retroformer.environments import ADAPTERS
from retroformer.errors import EnvironmentFault, RetroformerError
from retroformer.preloaded import adopt_orphans, deaf, die_with_parent, end, end_started

CONTEXT: Any = multiprocessing.get_context("forkserver")
END = 5.0
"""Seconds that the end of a process may take until it is forced."""
WHOLE = 30
"""Seconds that the rest of a message may take once it has begun."""
BACK = "an os.fork() of an environment returned twice: its child has to end in os._exit() or in another program"
COMES_BACK = 1.0
"""Seconds to wait for a child that may come back as well. Only one that was forked by hand and lives on costs them."""


class Gone(Exception):
    """A process that sends nothing any more; why, in words."""


class Garbled(Gone):
    """One that lives and sends what is no message."""


class Process:
    """`target(connection, *arguments)` in a process of its own, which ends when this one does.

    It has this process's folder and environment variables. `names`: tasks whose packages are imported beforehand.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any, names: Iterable[str] = ()):
        packages = dict.fromkeys(name.partition(":")[0] for name in names)
        CONTEXT.set_forkserver_preload(
            ["retroformer.rollouts.lanes", *(ADAPTERS[package] for package in packages if package in ADAPTERS)]
        )
        handle, name = tempfile.mkstemp(prefix="retroformer-", suffix=".trace")
        os.close(handle)
        self.trace = Path(name)
        self.connection, theirs = CONTEXT.Pipe()
        self.pid = CONTEXT.RawValue("i", 0)
        """Of the environments; that of `process` is of the one above it."""
        surroundings = self.pid, name, os.getcwd(), dict(os.environ)
        self.process = CONTEXT.Process(target=live, args=(surroundings, target, theirs, *arguments))
        with as_if_nothing_ran_here(), deaf():
            self.process.start()
        theirs.close()
        # Bytes that only look like the beginning of a message would be waited for without end.
        with socket.socket(fileno=os.dup(self.connection.fileno())) as line:
            line.setblocking(True)  # whatever socket.setdefaulttimeout says
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", WHOLE, 0))

    def receive(self) -> tuple[Any, Any]:
        """The pair that it sent. Raises Gone where it has ended, Garbled where it says what is no message."""
        try:
            one, other = self.connection.recv()
        except (EOFError, ConnectionError):
            raise Gone(self.how_it_died()) from None
        except Exception as error:  # anything may come of unpickling what is no pickle
            raise Garbled(
                f"it wrote into a file that is not its own, the connection of its process ({type(error).__name__})"
            ) from None
        return one, other

    def memory(self) -> tuple[int, int]:
        """Resident bytes, its own and of all that it started; there without what is shared. 0 of what is gone.

        Summed from what the system counts anyway, milliseconds for dozens of processes; their proportional sizes,
        which would also count shared memory once, take Chromium's a tenth of a second. Only Linux tells what is shared.
        """
        own = started = 0
        with suppress(psutil.Error):
            for one in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    held: Any = one.memory_info()
                    if one.pid == self.pid.value:
                        own = held.rss
                    else:
                        started += held.rss - getattr(held, "shared", 0)
        return own, started

    def where_it_is(self) -> str:
        """The line that it is in, if Python says so."""
        with suppress(ProcessLookupError):
            if self.pid.value:
                os.kill(self.pid.value, signal.SIGUSR1)
        for _ in range(20):
            if at := innermost(self.trace):
                return at
            wait([self.process.sentinel], 0.01)
        return ""

    def how_it_died(self) -> str:
        """What is known of its end."""
        self.process.join(1.0)
        code = self.process.exitcode
        if BACK in self.trace.read_text(encoding="utf-8", errors="replace"):
            return BACK
        if code is None:
            return "its process stopped answering"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}{innermost(self.trace)}"
        return f"its process exited with code {code}"

    def end(self) -> None:
        """End it with all that it started."""
        self.process.terminate()
        self.process.join(END)
        pid = self.process.pid
        if self.process.exitcode is None:
            end(pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()
        self.trace.unlink(missing_ok=True)


def alone(function: Callable[..., Any], *arguments: Any, what: str, seconds: float, names: Iterable[str] = ()) -> Any:
    """What `function` returns in a process of its own.

    Raises the RetroformerError that it raises, and EnvironmentFault about `what` where it raises anything else, takes
    more than `seconds`, or its process dies.
    """
    process = Process(call, function, arguments, names=names)
    try:
        if not process.connection.poll(seconds):
            raise EnvironmentFault(f"{what} does not answer within {seconds:g} s{process.where_it_is()}")
        result, error = process.receive()
    except Gone as gone:
        raise EnvironmentFault(f"{what} cannot be used: {gone}") from None
    finally:
        process.end()
    if error is not None:
        raise error if isinstance(error, RetroformerError) else EnvironmentFault(f"{what} cannot be used: {error}")
    return result


def call(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send (result, None), or (None, the RetroformerError or what else it says)."""
    found: tuple[Any, Any]
    try:
        found = function(*arguments), None
    except RetroformerError as error:
        found = None, error
    except BaseException as error:  # no key was pressed here: this process has no terminal
        found = None, f"{type(error).__name__}: {error}"[:2000]
    only_once()
    connection.send(found)


def live(
    surroundings: tuple[Any, str, str, dict[str, str]],
    target: Callable[..., None],
    connection: Connection,
    *arguments: Any,
) -> None:
    """Runs in the new process, around `target`, which is in a fork of it."""
    global _copies
    os.setsid()  # ended as a group, with the browsers and Java machines that environments start
    os.dup2(2, 1)  # what environments print is no output of ours
    adopt_orphans()
    if child := os.fork():
        watch_over(child)
    die_with_parent()
    pid, trace, folder, variables = surroundings
    pid.value = os.getpid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    with open(trace, "wb") as file:
        faulthandler.enable(file, all_threads=False)
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        _copies = Copies(file.fileno())
        target(connection, *arguments)
        faulthandler.disable()
        faulthandler.unregister(signal.SIGUSR1)


def watch_over(child: int) -> NoReturn:
    """End when `child` does and as it did, with all that it started; let it end when who it serves is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_child(_number: int, _frame: Any) -> None:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end_child)
    threading.Thread(target=leave_with, args=(parent.sentinel,), daemon=True).start()
    ended = status = 0
    while ended != child:  # orphans end here too
        ended, status = os.waitpid(-1, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(ChildProcessError):  # none is left
        while True:
            end_started(os.getpid())
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.005)  # what was ended is gone soon, and what it had just started is a child of this one
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def leave_with(sentinel: int) -> None:
    """End the process of the environments when the one that it serves is gone."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


class Copies:
    """Forks of this process that come back from an environment, and would go on as if they were it.

    Whatever they would say is garbled, so one that comes back says so in `trace`, ends this process and itself. This
    process waits for that where it was forked, so that the call in flight is the one to blame; a fork that comes back
    later than COMES_BACK ends it too, whatever is in flight. One made around Python's `os.fork` is not waited for.
    """

    def __init__(self, trace: int):
        self.own, self.trace = os.getpid(), trace
        self.line: tuple[int, int] | None = None
        """A pipe that is at its end when those who were forked are gone, or another program."""
        os.register_at_fork(before=self._forks)

    def end(self) -> None:
        """End the process if it was forked and the fork comes back."""
        if os.getpid() != self.own:
            if os.getppid() == self.own:
                os.write(self.trace, BACK.encode())
                os.kill(self.own, signal.SIGKILL)
            os._exit(1)
        if self.line is not None:
            (read, write), self.line = self.line, None
            os.close(write)
            wait([read], COMES_BACK)
            os.close(read)

    def _forks(self) -> None:
        # multiprocessing's children always end in os._exit.
        if self.line is None and sys._getframe(1).f_globals.get("__name__") != "multiprocessing.popen_fork":
            self.line = os.pipe()


_copies: Copies | None = None


def only_once() -> None:
    """Called after environments were, before anything is said of it: a fork that comes back ends with its process."""
    if _copies is not None:
        _copies.end()


@contextmanager
def as_if_nothing_ran_here() -> Iterator[None]:
    """A process started in this block imports no main module, which it does not need, and may be started by daemons.

    multiprocessing runs the main module again in a child, also a script without a guard; it tells it the start method
    of its parent, which is loky's own in joblib's workers; and it lets no daemon have children, as they would outlive
    it: these do not.
    """
    method = multiprocessing.get_start_method(allow_none=True)
    main, settings = sys.modules["__main__"], multiprocessing.process.current_process()._config  # pyright: ignore
    daemon = settings.pop("daemon", None)
    multiprocessing.set_start_method("forkserver", force=True)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        multiprocessing.set_start_method(method, force=True)
        sys.modules["__main__"] = main
        if daemon is not None:
            settings["daemon"] = daemon


def innermost(trace: Path) -> str:
    """The line that faulthandler says Python was in; empty where it says nothing."""
    found = re.search(r'File "(.+)", line (\d+) in (\S+)', trace.read_text(encoding="utf-8", errors="replace"))
    return f", in {found[3]} at {Path(found[1]).name}:{found[2]}" if found else ""
