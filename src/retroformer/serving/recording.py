"""Events on disk as they happen, in the form that importers/recorded.py reads.

A line is handed to the operating system in one write before `write` returns, so a crash of the application loses
nothing that was written; against a loss of power there is `fsync`.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from retroformer.errors import ConfigError

FILE = 64 * 2**20
"""Bytes at which the next file is begun."""


class Recorder:
    """Appends to files of its own below a folder, which is made. Threads may share one; a forked process begins anew.

    Raises ConfigError where something else than a folder is there.
    """

    def __init__(self, folder: Path, *, fsync: bool = False):
        self.folder, self.fsync = Path(folder), fsync
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{folder} is no folder, expected one for what is recorded") from None
        self._lock = threading.Lock()
        self._file: int | None = None
        self._process = self._part = self._size = 0
        self._name = ""

    def write(self, events: Sequence[dict[str, Any]]) -> None:
        """All of the events, or an OSError; what came of them then is the last of its file, and read as torn."""
        text = memoryview(b"".join(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE) for event in events))
        with self._lock:
            file = self._open()
            try:
                while text:
                    written = os.write(file, text)
                    self._size += written
                    text = text[written:]
                if self.fsync:
                    os.fsync(file)
            except OSError:
                self._size = FILE
                raise

    def close(self) -> None:
        """Close the file; a later write begins the next."""
        with self._lock:
            self._close()

    def _open(self) -> int:
        if self._process != os.getpid():
            # The other process's file is left open here, as it may be writing.
            self._process, self._part, self._file = os.getpid(), 0, None
            self._name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        if self._file is not None and self._size >= FILE:
            self._close()
        if self._file is None:
            path = self.folder / f"{self._name}-{self._part:04d}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            self._part, self._size = self._part + 1, 0
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


@cache
def recorder_of(folder: Path) -> Recorder:
    """The one that this process reports outcomes with."""
    return Recorder(folder)
