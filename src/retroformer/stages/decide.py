"""The stage that says promote, keep, or not enough evidence."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroformer.config import DecideConfig, EvaluateConfig
from retroformer.errors import DataError
from retroformer.evaluation.comparison import paired_difference
from retroformer.evaluation.gate import judge
from retroformer.evaluation.intervals import stratified_mean
from retroformer.storage import read_json, replacing, write_json
from retroformer.types import Outcome

COLUMNS = ("policy", "range", "mission", "decoding", "family", "task", "seed", "success", "outcome", "steps")
SCORES = {Outcome.SUCCESS: 1.0, Outcome.FAILURE: 0.0}
"""Any other outcome says nothing of the task."""


@dataclass(frozen=True, slots=True)
class Played:
    """The part of a row of episodes.csv that a verdict rests on."""

    policy: str
    range: str
    mission: str
    decoding: str
    task: str
    seed: int
    score: float | None


def decide(
    config: DecideConfig,
    evaluate: EvaluateConfig,
    *,
    evaluation: Path = Path("data/evaluation"),
    out: Path = Path("data/decision"),
) -> dict[str, Any]:
    """Judge the challenger: promote, keep, or not enough evidence.

    The difference is computed anew from the episodes that champion and challenger played on the same seeds of the
    gate range, sampled, told the true mission; no summary is trusted. Its interval holds at each of the planned looks.
    Success under a shuffled mission says whether the challenger follows its task. Writes verdict.json.

    Raises DataError where an episode is missing, doubled or contradicts itself.
    """
    report = read_json(evaluation / "evaluation.json")
    try:
        round_number, looks = int(report["round"]), len(report["looks"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{evaluation}/evaluation.json lacks a round or its looks: {error}") from None
    if looks > evaluate.looks:
        raise DataError(
            f"{evaluation}/evaluation.json looked {looks} times, evaluate.looks plans {evaluate.looks}: "
            "the intervals would not hold; evaluate again"
        )
    path = evaluation / "episodes.csv"
    gate = [one for one in read_episodes(path) if (one.range, one.decoding) == ("gate", "sampled")]
    champion = scores(path, gate, "champion", "true")
    challenger = scores(path, gate, "challenger", "true")
    swapped = scores(path, gate, "challenger", "shuffled")
    unpaired = sorted(champion.keys() ^ challenger.keys())
    if unpaired:
        task, seed = unpaired[0]
        who = "champion" if unpaired[0] in champion else "challenger"
        raise DataError(f"{path}: {len(unpaired)} episodes are unpaired; {task} seed {seed} was played by {who} alone")
    other_tasks = by_task(challenger).keys() ^ by_task(swapped).keys()
    if other_tasks:
        raise DataError(f"{path}: {min(other_tasks)} was not played with both the true and the shuffled mission")
    difference = paired_difference(by_task(champion), by_task(challenger), evaluate.confidence, evaluate.looks)
    true, told_wrong = (mean_over_tasks(found) for found in (challenger, swapped))
    verdict = {"round": round_number, **judge(difference, true, told_wrong, config).to_dict()}
    with replacing(out) as folder:
        write_json(folder / "verdict.json", verdict)
    return {key: verdict[key] for key in ("verdict", "reason", "difference", "lower", "upper", "n")}


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
    return Played(row["policy"], row["range"], row["mission"], row["decoding"], row["task"], seed, score)


def scores(path: Path, episodes: Iterable[Played], policy: str, mission: str) -> dict[tuple[str, int], float | None]:
    """(task, seed) -> score of one policy told one mission. Raises DataError where one is doubled or none is there."""
    found: dict[tuple[str, int], float | None] = {}
    for one in episodes:
        if (one.policy, one.mission) == (policy, mission):
            if (one.task, one.seed) in found:
                raise DataError(f"{path}: {policy} played {one.task} seed {one.seed} ({mission} mission) twice")
            found[one.task, one.seed] = one.score
    if not found:
        raise DataError(f"{path} has no sampled episode of the {policy} in the gate range with the {mission} mission")
    return found


def mean_over_tasks(found: dict[tuple[str, int], float | None]) -> float | None:
    """Success with tasks weighted equally, None where every episode was lost."""
    if all(score is None for score in found.values()):
        return None
    return stratified_mean(by_task(found), confidence=0.95).mean


def by_task(found: dict[tuple[str, int], float | None]) -> dict[str, list[float | None]]:
    """Task -> scores in the order of the seeds."""
    tasks: dict[str, list[float | None]] = {}
    for (task, _), score in sorted(found.items(), key=lambda item: item[0]):
        tasks.setdefault(task, []).append(score)
    return tasks
