"""Shards on disk, as they finish: a folder each, there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from retroformer.errors import DataError
from retroformer.files import read_json, write_json
from retroformer.rollouts.episodes import Episode, Played
from retroformer.storage import merge_tables, stream_trajectories, tables_of, write_parquet
from retroformer.types import Outcome, Trajectory

REPORT = "shard.json"


class Shards:
    """What came of shards, by number: in `folder`, or where there is none in memory until it is taken."""

    def __init__(self, folder: Path | None, episodes: Sequence[Sequence[Episode]]):
        self.folder, self.episodes = folder, episodes
        self._held: dict[int, list[Played]] = {}
        self._numbers: set[int] = set()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for torn in folder.glob(".*"):  # what a kill left half written
                shutil.rmtree(torn, ignore_errors=True)
            self._numbers = {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def there(self) -> Iterator[tuple[int, tuple[list[Played], Counter[str]]]]:
        """The shards that are there already. One that cannot be read (power may fail) is removed, and is not there."""
        for number in sorted(self._numbers):
            try:
                shard = self._read(number), Counter(read_json(self._path(number) / REPORT)["replaced"])
            except DataError:
                self._numbers.remove(number)
                shutil.rmtree(self._path(number))
                continue
            yield number, shard

    def keep(self, number: int, shard: tuple[list[Played], Counter[str]]) -> None:
        """Write a shard, or hold it."""
        played, replaced = shard
        self._numbers.add(number)
        if self.folder is None:
            self._held[number] = played
            return
        trajectories = [trajectory for one in played for trajectory in (*one.earlier, one.trajectory)]
        errors = sum(one.trajectory.outcome is Outcome.ERROR for one in played)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
        write_parquet(temporary, *tables_of(trajectories))
        write_json(
            temporary / REPORT, {"cut": [one.cut for one in played], "errors": errors, "replaced": dict(replaced)}
        )
        os.rename(temporary, self._path(number))

    def take(self, number: int) -> list[Played]:
        """What came of a shard's episodes, in their order; from memory it can be taken once."""
        return self._held.pop(number) if self.folder is None else self._read(number)

    def forget_errors(self) -> None:
        """Remove the shards with errors: whoever mends what is broken wants them played again."""
        if self.folder is not None:
            for number in self._numbers:
                if read_json(self._path(number) / REPORT)["errors"]:
                    shutil.rmtree(self._path(number))

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}"

    def _read(self, number: int) -> list[Played]:
        path = self._path(number)
        tries: list[list[Trajectory]] = []
        for one in stream_trajectories(path):
            if tries and one.previous_id == tries[-1][-1].id:
                tries[-1].append(one)
            else:
                tries.append([one])
        cuts = read_json(path / REPORT)["cut"]
        return [
            Played(episode, own[-1], (), cut, tuple(own[:-1]))
            for episode, own, cut in zip(self.episodes[number], tries, cuts, strict=True)
        ]


def merge(folder: Path, out: Path, without: Collection[str] = ()) -> None:
    """Write all shards of `folder` into `out` as its two tables, sorted by id; those `without` names are left out."""
    merge_tables([path for path in sorted(folder.iterdir()) if path.name.isdecimal()], out, without)
