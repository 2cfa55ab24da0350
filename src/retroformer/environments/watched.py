"""An environment whose calls are told before they are made, so that whoever looks on knows where it hangs or ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Doing = Callable[[str], None]
"""Is told what is about to be called."""


class Watched:
    """Stands before an environment: tells each call, and makes what ends the process an exception like any other.

    `found` is told where a call leaves otherwise what the environments of a process share.
    """

    def __init__(self, environment: Any, doing: Doing, found: Doing = lambda what: None):
        self._environment, self._doing, self._found = environment, doing, found

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._environment, name)
        if not callable(found):
            return found

        def call(*values: Any, **options: Any) -> Any:
            told = [f"{value!r:.80}" for value in values] + [f"{key}={value!r:.80}" for key, value in options.items()]
            self._doing(f"{name}({', '.join(told)})")
            before, running = working_folder(), signal.getitimer(signal.ITIMER_REAL)[0]
            try:
                return found(*values, **options)
            except SystemExit as error:
                raise RuntimeError(f"{name} called sys.exit({error.code!r})") from None
            except Exception:
                raise
            except BaseException as error:
                raise RuntimeError(f"{name} raised {type(error).__name__}: {error}") from None
            finally:
                if not running and signal.getitimer(signal.ITIMER_REAL)[0]:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    self._found(f"{name} leaves a timer running (signal.alarm, signal.setitimer)")
                if (after := working_folder()) != before:
                    self._found(f"{name} changes the working folder, from {before} to {after}")
                    with suppress(OSError):
                        os.chdir(before)

        return call


def working_folder() -> str:
    """Where the process is; empty where that is gone."""
    with suppress(OSError):
        return os.getcwd()
    return ""
