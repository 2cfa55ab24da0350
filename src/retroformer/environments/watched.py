"""An environment whose calls are told before they are made, so that whoever looks on knows where it hangs or ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Doing = Callable[[str], None]
"""Is told what is about to be called."""


class Watched:
    """Stands before an environment: tells each call, and makes what ends the process an exception like any other."""

    def __init__(self, environment: Any, doing: Doing):
        self._environment, self._doing = environment, doing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._environment, name)
        if not callable(found):
            return found

        def call(*values: Any, **options: Any) -> Any:
            told = [f"{value!r:.80}" for value in values] + [f"{key}={value!r:.80}" for key, value in options.items()]
            self._doing(f"{name}({', '.join(told)})")
            try:
                return found(*values, **options)
            except SystemExit as error:
                raise RuntimeError(f"{name} called sys.exit({error.code!r})") from None

        return call
