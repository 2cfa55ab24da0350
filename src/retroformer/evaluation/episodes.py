"""``episodes.csv``: one row for each episode that an evaluation played."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from retroformer.errors import DataError
from retroformer.types import Outcome

COLUMNS: tuple[str, ...] = (
    "policy",
    "range",
    "mission",
    "decoding",
    "family",
    "task",
    "seed",
    "success",
    "outcome",
    "steps",
)
SCORES = {Outcome.SUCCESS: 1.0, Outcome.FAILURE: 0.0}
"""Any other outcome says nothing of the task."""
Scores = dict[tuple[str, int], float | None]
"""(task, seed) -> score."""


@dataclass(frozen=True, slots=True)
class Played:
    """The part of a row that verdict and report rest on."""

    policy: str
    range: str
    mission: str
    decoding: str
    family: str
    task: str
    seed: int
    score: float | None
    """1 or 0, None where the episode ended in an error or was truncated."""


def read_episodes(path: Path) -> list[Played]:
    """Read episodes.csv. Raises DataError with the line, what was got and what was expected."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(rows.fieldnames or ())}")
    return [played(f"{path}, line {rows.line_num}", row) for row in rows]


def played(place: str, row: dict[str, str]) -> Played:
    """One row, checked: its success must be what its outcome says."""
    if None in row or None in row.values():
        raise DataError(f"{place}: expected {len(COLUMNS)} values as in the header, got another number")
    try:
        outcome, seed = Outcome(row["outcome"]), int(row["seed"])
        score = float(row["success"]) if row["success"] else None
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if score != SCORES.get(outcome):
        raise DataError(f"{place}: success is {row['success'] or 'empty'} where the outcome is {outcome.value}")
    names = {name: row[name] for name in ("policy", "range", "mission", "decoding", "family", "task")}
    return Played(**names, seed=seed, score=score)


def by_task(scores: Scores) -> dict[str, list[float | None]]:
    """Task -> scores in the order of the seeds."""
    tasks: dict[str, list[float | None]] = {}
    for (task, _), score in sorted(scores.items(), key=lambda item: item[0]):
        tasks.setdefault(task, []).append(score)
    return tasks
