"""Token windows on disk: memory holds where each trajectory's begin, not the tokens."""

from __future__ import annotations

import pickle
import tempfile
import weakref
from array import array
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from retroformer.policies.tree import Tokens, Window

KNOWN = 1 << 10
"""Sets of actions that are known again, and sets that are kept when read."""


class WindowStore:
    """The windows of trajectories 0, 1, 2, ... in a file without a name, which is gone with this process.

    The admissible actions repeat from step to step, so a set that was seen lately is written once.
    """

    def __init__(self, folder: Path | None = None):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as the store lives)
        weakref.finalize(self, _close, self.file)
        self.starts = array("q")
        """Where the windows of each trajectory begin in the file."""
        self.lengths = array("q")
        """Tokens of each trajectory."""
        self.written: dict[tuple[Tokens, ...], int] = {}
        self.actions = lru_cache(maxsize=KNOWN)(self._load)

    def add(self, windows: list[Window]) -> None:
        """Write the windows of the next trajectory."""
        sets = [[self._place(actions) for actions in window.actions] for window in windows]
        bare = [replace(window, actions=[]) for window in windows]
        self.starts.append(self._dump(list(zip(bare, sets, strict=True))))
        self.lengths.append(sum(len(window.tokens) for window in windows))

    def __getitem__(self, trajectory: int) -> list[Window]:
        return [
            replace(window, actions=[self.actions(one) if isinstance(one, int) else one for one in sets])
            for window, sets in self._load(self.starts[trajectory])
        ]

    def _place(self, actions: tuple[Tokens, ...]) -> int | tuple[Tokens, ...]:
        """Where a set of actions lies in the file; a single action, which seldom comes again, is its own place."""
        if len(actions) < 2:
            return actions
        if actions not in self.written:
            if len(self.written) == KNOWN:
                self.written.clear()
            self.written[actions] = self._dump(actions)
        return self.written[actions]

    def _dump(self, value: Any) -> int:
        start = self.file.seek(0, 2)
        pickle.dump(value, self.file, protocol=5)
        return start

    def _load(self, start: int) -> Any:
        self.file.seek(start)
        return pickle.load(self.file)


def _close(file: Any) -> None:
    with suppress(OSError):  # where the disk is full, its last words cannot be written; nobody will read them
        file.close()
