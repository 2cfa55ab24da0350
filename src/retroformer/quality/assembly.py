"""From the two flat tables to records that can be judged, whatever state the rows are in.

``storage.read_trajectories`` refuses a folder at its first fault; here a fault is a reason of one trajectory, and
every row of both tables belongs to exactly one record, so that nothing can be lost between them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from retroformer.errors import DataError
from retroformer.quality.predicates import Reason
from retroformer.storage import trajectory_from_row
from retroformer.types import Step, Trajectory

OPTIONAL = {"previous_id", "error"}
"""Columns of ``episodes`` that may be null."""


@dataclass(slots=True)
class Record:
    """One trajectory as it was found, with the numbers of its rows."""

    id: str | None
    episode: int | None
    """Row of ``episodes``; None for steps that no episode claims."""
    steps: list[int]
    """Rows of ``steps``, as they were found."""
    trajectory: Trajectory | None = None
    """None where the rows cannot be read as one."""
    reasons: list[Reason] = field(default_factory=list)


def assemble(episodes: pa.Table, steps: pa.Table) -> list[Record]:
    """Give each row its record, in the order of ``episodes``, then the steps that no episode claims.

    Reasons given: missing_value, unknown_value, step_count_mismatch, steps_out_of_order, return_mismatch,
    inseparable_steps (an id repeats and its steps cannot be told apart), steps_without_episode.
    """
    episode_rows, step_rows = episodes.to_pylist(), steps.to_pylist()
    rows_of: dict[str | None, list[int]] = defaultdict(list)
    for number, row in enumerate(step_rows):
        rows_of[row["trajectory_id"]].append(number)
    records_of: dict[str | None, list[Record]] = defaultdict(list)
    records = []
    for number, row in enumerate(episode_rows):
        record = Record(row["trajectory_id"], number, [])
        records.append(record)
        # Null is not an id: steps without one belong to nobody.
        if record.id is not None:
            records_of[record.id].append(record)
    for id, mine in records_of.items():
        share_out(mine, rows_of.pop(id, []), step_rows, episode_rows)
    for record in records:
        read(record, episode_rows[record.episode or 0], [step_rows[number] for number in record.steps])
    for id, numbers in rows_of.items():
        reason = Reason("steps_without_episode", f"{len(numbers)} steps of an id that episodes.parquet does not have")
        records.append(Record(id, None, numbers, reasons=[reason]))
    return records


def share_out(records: list[Record], numbers: list[int], steps: list[dict[str, Any]], episodes: list[dict[str, Any]]):
    """Give the step rows of one id to the episode rows of that id: one by one where the id repeats."""
    if len(records) == 1:
        records[0].steps = numbers
        return
    runs: list[list[int]] = []
    for number in numbers:
        if steps[number]["t"] == 0 or not runs:
            runs.append([])
        runs[-1].append(number)
    if [len(run) for run in runs] == [episodes[record.episode or 0]["steps"] for record in records]:
        for record, run in zip(records, runs, strict=True):
            record.steps = run
        return
    records[0].steps = numbers
    for record in records:
        detail = f"{len(records)} episodes share the id, and their {len(numbers)} steps cannot be told apart"
        record.reasons.append(Reason("inseparable_steps", detail))


def read(record: Record, row: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """Fill in the trajectory of a record, and the reasons why its rows do not agree."""
    missing = [name for name, value in row.items() if value is None and name not in OPTIONAL]
    if missing:
        record.reasons.append(Reason("missing_value", f"no {', '.join(missing)}"))
        return
    times = [step["t"] for step in steps]
    if not record.reasons:
        if len(steps) != row["steps"]:
            detail = f"episodes.parquet says {row['steps']} steps, steps.parquet has {len(steps)}"
            record.reasons.append(Reason("step_count_mismatch", detail))
        if times != list(range(len(times))):
            place = next(place for place, t in enumerate(times) if t != place)
            detail = f"step {times[place]} where step {place} was due"
            record.reasons.append(Reason("steps_out_of_order", detail))
    try:
        record.trajectory = trajectory_from_row(row, map(step_from_row, steps))
    except DataError as error:
        record.reasons.append(Reason("unknown_value", str(error)))
        return
    total = record.trajectory.total_reward
    agrees = math.isclose(row["total_reward"], total, rel_tol=1e-6, abs_tol=1e-6)
    if not record.reasons and math.isfinite(total) and not agrees:
        detail = f"episodes.parquet says {row['total_reward']:g}, the rewards of the steps add up to {total:g}"
        record.reasons.append(Reason("return_mismatch", detail))


def step_from_row(row: dict[str, Any]) -> Step:
    """A row of ``steps`` as a record; what is missing becomes what the predicates catch."""
    return Step(
        observation=row["observation"] or "",
        action=row["action"] or "",
        reward=math.nan if row["reward"] is None else row["reward"],
        admissible_actions=None if row["admissible_actions"] is None else tuple(row["admissible_actions"]),
        token_ids=None if row["token_ids"] is None else tuple(row["token_ids"]),
        logprob=row["logprob"],
    )
