"""Attempts at one task instance, linked after the fact: a log tells their numbers, not the trajectory before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retroformer.storage import EPISODES, PACKED, stream_table

ELSEWHERE = "not in these logs"
"""Stands for the id of an attempt that a later one follows and no log has."""
INSTANCE = ("environment", "task", "seed")


def link_attempts(path: Path) -> None:
    """Fill in ``previous_id`` of later attempts in an ``episodes.parquet``.

    The attempt before is that of the same task instance, of the same policy where several are there; of several left
    the one with the smallest id, so that the order of reading does not show.
    """
    wanted: set[tuple[Any, ...]] = set()
    for row in _rows(path):
        if row["attempt"] > 0:
            wanted.add((*_instance(row), row["attempt"] - 1))
    found: dict[tuple[Any, ...], str] = {}
    for row in _rows(path):
        place = (*_instance(row), row["attempt"])
        if place in wanted:
            for key in (place, (*place, row["policy"])):
                found[key] = min(found.get(key, row["trajectory_id"]), row["trajectory_id"])
    linked = path.with_name("linked.parquet")
    with pq.ParquetWriter(linked, EPISODES, **PACKED) as writer:
        for batch in stream_table(path, EPISODES):
            rows = batch.to_pylist()
            for row in rows:
                if row["attempt"] > 0 and not row["previous_id"]:
                    place = (*_instance(row), row["attempt"] - 1)
                    row["previous_id"] = found.get((*place, row["policy"])) or found.get(place, ELSEWHERE)
            writer.write_table(pa.Table.from_pylist(rows, EPISODES))
    linked.replace(path)


def _rows(path: Path) -> Any:
    for batch in stream_table(path, EPISODES):
        yield from batch.to_pylist()


def _instance(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in INSTANCE)
