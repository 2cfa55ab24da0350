"""Other trainings in worker processes beside this one, and how far they are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retroformer.pools import end, pool
from retroformer.progress import progress

UPDATES = "updates"
"""A file with one byte for each update done: its size can be read while it grows."""
SECONDS_BETWEEN_LOOKS = 0.1


class Beside:
    """`work(folder, parent)` for each folder, in worker processes that start at once.

    `parent` is this process's id, for `counted`. Leaving the block ends what still runs.
    """

    def __init__(self, work: Callable[[Path, int], Any], folders: Sequence[Path], workers: int, updates: int):
        self.folders, self.total = folders, updates * len(folders)
        self.executor: Any = None
        self.futures: list[Any] = []
        for folder in folders:
            (folder / UPDATES).unlink(missing_ok=True)
        if folders:
            self.executor = pool(min(workers, len(folders)))
            self.futures = [self.executor.submit(work, folder, os.getpid()) for folder in folders]

    def results(self, label: str) -> list[Any]:
        """What each returned, in order; waits for them and shows how far they are. Raises what the first raised."""
        if not self.futures:
            return []
        with progress(label, self.total, "updates") as shown:
            for future in self.futures:
                while not future.done():
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    if (new := self.done() - shown.done) > 0:
                        shown.advance(new)
                future.result()
        return [future.result() for future in self.futures]

    def done(self) -> int:
        """Updates that all of them have done."""
        counts = (folder / UPDATES for folder in self.folders)
        return sum(path.stat().st_size for path in counts if path.is_file())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.executor is not None:
            end(self.executor)


@contextmanager
def counted(folder: Path, parent: int) -> Iterator[Callable[[int, str], None]]:
    """In a worker: the `advance` of its training, which leaves when its parent is gone.

    An orphan would go on writing to the folder in which the next run resumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / UPDATES).open("wb", buffering=0) as file:

        def advance(count: int, _note: str = "") -> None:
            if os.getppid() != parent:
                raise SystemExit("the training that this one stood beside is gone")
            file.write(b"." * count)

        yield advance
