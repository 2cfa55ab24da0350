"""Processes that environments run in: cheap to start, ended with all that they started, and never left behind.

They come from a fork server: a small process without threads that has imported what environments need, so that a new
one costs tens of milliseconds.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from retroformer.environments import ADAPTERS
from retroformer.errors import EnvironmentFault, RetroformerError
from retroformer.preloaded import end

CONTEXT: Any = multiprocessing.get_context("forkserver")


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
        surroundings = name, os.getcwd(), dict(os.environ)
        self.process = CONTEXT.Process(target=live, args=(surroundings, target, theirs, *arguments))
        with as_if_nothing_ran_here():
            self.process.start()
        theirs.close()

    def memory(self) -> int:
        """Resident bytes; 0 where it is gone."""
        try:
            return psutil.Process(self.process.pid).memory_info().rss
        except psutil.Error:
            return 0

    def where_it_is(self) -> str:
        """The line that it is in, if Python says so."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGUSR1)
        for _ in range(20):
            if at := innermost(self.trace):
                return at
            wait([self.process.sentinel], 0.01)
        return ""

    def how_it_died(self) -> str:
        """What is known of its end."""
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:
            return "its process stopped answering"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}{innermost(self.trace)}"
        return f"its process exited with code {code}"

    def end(self) -> None:
        """End it with all that it started."""
        pid = self.process.pid
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
        result, error = process.connection.recv()
    except (EOFError, ConnectionError):
        raise EnvironmentFault(f"{what} cannot be used: {process.how_it_died()}") from None
    finally:
        process.end()
    if error is not None:
        raise error if isinstance(error, RetroformerError) else EnvironmentFault(f"{what} cannot be used: {error}")
    return result


def call(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send (result, None), or (None, the RetroformerError or what else it says)."""
    try:
        connection.send((function(*arguments), None))
    except RetroformerError as error:
        connection.send((None, error))
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {error}"[:2000]))


def live(
    surroundings: tuple[str, str, dict[str, str]], target: Callable[..., None], connection: Connection, *arguments: Any
) -> None:
    """Runs in the new process, around `target`."""
    os.setsid()  # ended as a group, with the browsers and Java machines that environments start
    os.dup2(2, 1)  # what environments print is no output of ours
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=leave_with, args=(parent.sentinel,), daemon=True).start()
    trace, folder, variables = surroundings
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    with open(trace, "wb") as file:
        faulthandler.enable(file, all_threads=False)
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        target(connection, *arguments)
        faulthandler.disable()
        faulthandler.unregister(signal.SIGUSR1)


def leave_with(sentinel: int) -> None:
    """End this process and all that it started when the one that it serves is gone."""
    wait([sentinel])
    os.killpg(0, signal.SIGKILL)


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
    found = re.search(r'File "(.+)", line (\d+) in (\w+)', trace.read_text(encoding="utf-8", errors="replace"))
    return f", in {found[3]} at {Path(found[1]).name}:{found[2]}" if found else ""
