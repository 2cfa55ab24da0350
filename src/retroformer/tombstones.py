"""``tombstones.jsonl``: one line for each forgetting; what it names is left out wherever trajectories come in.

A line has `at`, `by`, `reason`, `where`, the trajectories' ids with their sources in groups that fared alike
(`rounds` that held them, versions that they `trained`, whose `checkpoint` they chose or that they `judged`), the
versions that `inherited`, and DVC's hash of each rewritten round before and after; without `after` it was interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retroformer.errors import DataError
from retroformer.files import write_text

TOMBSTONES = Path("data/history/tombstones.jsonl")


def read_tombstones(path: Path = TOMBSTONES) -> list[dict[str, Any]]:
    """Every tombstone, the oldest first; none where the file is missing. Raises DataError that names a broken line."""
    path = Path(path)
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            one = json.loads(line)
            ids_of(one)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, line {number} is not a tombstone ({error}); restore it with git") from None
        found.append(one)
    return found


def write_tombstones(path: Path, tombstones: list[dict[str, Any]]) -> None:
    """Write the file whole or not at all."""
    write_text(path, "".join(json.dumps(one, sort_keys=True, allow_nan=False) + "\n" for one in tombstones))


def forgotten_ids(path: Path = TOMBSTONES) -> frozenset[str]:
    """The ids of all that was forgotten."""
    return frozenset(id for one in read_tombstones(path) for id in ids_of(one))


def ids_of(tombstone: dict[str, Any]) -> dict[str, str]:
    """Id -> source of what a tombstone stands for."""
    return {id: source for group in tombstone["trajectories"] for id, source in group["ids"].items()}
