"""Deaths at chosen moments: a fork of this process runs, and SIGKILL ends it at the n-th call of a function."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


def dies(work: Callable[[], Any], owner: Any, name: str, call: int = 1, *, after: bool = False) -> None:
    """Run `work` in a fork that is killed when it calls `owner.name` for the `call`-th time, or `after` that call."""

    def dying() -> None:
        original, calls = getattr(owner, name), 0

        def replaced(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, replaced)
        work()

    status = _forked(dying)
    assert os.WIFSIGNALED(status), f"it ended by itself, {name} was not called {call} times"
    assert os.WTERMSIG(status) == signal.SIGKILL


def lives(work: Callable[[], Any]) -> None:
    """Run `work` in a fork to its end."""
    status = _forked(work)
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 0


def _forked(work: Callable[[], Any]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]
