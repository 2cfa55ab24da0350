"""``round.json``: a closed round in figures; ``data/rounds.csv``: one row of it for each round."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from retroformer.errors import DataError
from retroformer.files import read_json, write_text
from retroformer.journal import read_seconds
from retroformer.pins import Pins
from retroformer.storage import EPISODES, read_table
from retroformer.types import LEARNABLE, Outcome

HISTORY = Path("data/history")
FIGURES = (
    "behaviour_success",
    "champion_success",
    "challenger_success",
    "swapped_success",
    "difference",
    "lower",
    "upper",
    "n",
)
"""What a round is measured by."""
COLUMNS = ("round", "verdict", "reason", *FIGURES, "seconds", "model_version")
"""Of data/rounds.csv. `swapped_success`: of the champion that the round leaves behind, told another mission.
`seconds`: of all stages together."""


def folder_of(number: int) -> Path:
    """Where a closed round lies, relative to the project's root."""
    return HISTORY / f"round-{number:04d}"


def build(root: Path, pins: Pins, *, challenger_hash: str, dataset_hash: str, model_version: str) -> dict[str, Any]:
    """The record of the open round, from the reports of its stages; nothing in it depends on when it is closed."""
    verdict = read_json(root / "data/decision/verdict.json")
    evaluation = read_json(root / "data/evaluation/evaluation.json")
    reigning = "challenger" if verdict["verdict"] == "promote" else "champion"
    levels = levels_of(root, evaluation)
    overall = levels[0]
    swapped = find(evaluation, policy=reigning, mission="shuffled", task=None)
    return {
        "round": pins.round,
        "verdict": verdict["verdict"],
        "reason": verdict["reason"],
        "behaviour_success": success(overall["behaviour"]),
        "champion_success": success(overall["champion"]),
        "challenger_success": success(overall["challenger"]),
        "swapped_success": success(swapped),
        "difference": verdict["difference"],
        "lower": verdict["lower"],
        "upper": verdict["upper"],
        "n": verdict["n"],
        "behind": verdict.get("behind", []),
        "seconds": read_seconds(pins.round, root),
        "around": read_seconds(pins.round, root, around=True),
        "model_version": model_version,
        "dataset_hash": dataset_hash,
        "challenger_hash": challenger_hash,
        "champion": {"policy": pins.champion.policy, "hash": pins.champion.hash, "uri": pins.champion.uri},
        "levels": levels,
        "closed_at": None,
    }


def success(figure: dict[str, Any] | None) -> float | None:
    """The success of a figure that may not have been measured."""
    return None if figure is None else figure["success"]


def find(evaluation: dict[str, Any], *, policy: str, mission: str, task: str | None) -> dict[str, Any] | None:
    """A line of evaluation.json's summary: gate range, sampled decoding; `task` None is all together."""
    for line in evaluation["summary"]:
        key = (line["policy"], line["mission"], line["range"], line["decoding"], line["task"])
        if key == (policy, mission, "gate", "sampled", task) and (task is not None or line["family"] is None):
            return {name: line[name] for name in ("success", "lower", "upper", "n")}
    return None


def levels_of(root: Path, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """For all levels together (task None) and each one: success, interval and n of behaviour, champion, challenger."""
    behaviour = behaviour_of(root, evaluation["confidence"])
    played = {line["task"] for line in evaluation["summary"] if line["range"] == "gate"}
    names = sorted(name for name in played | behaviour.keys() if name is not None)
    return [
        {
            "task": task,
            "behaviour": behaviour.get(task),
            "champion": find(evaluation, policy="champion", mission="true", task=task),
            "challenger": find(evaluation, policy="challenger", mission="true", task=task),
        }
        for task in (None, *names)
    ]


def behaviour_of(root: Path, confidence: float) -> dict[str | None, dict[str, Any]]:
    """Task -> success of the policy that made the round's data, None all tasks weighted equally; of accepted episodes
    whose task ended, those for checkpoint choice included."""
    from retroformer.evaluation.intervals import stratified_mean

    table = read_table(root / "data/validated/episodes.parquet", EPISODES)
    scores: dict[str, list[float | None]] = {}
    for task, outcome in zip(table["task"].to_pylist(), table["outcome"].to_pylist(), strict=True):
        if outcome in LEARNABLE:
            scores.setdefault(task, []).append(float(outcome == Outcome.SUCCESS))
    groups: dict[str | None, dict[str, list[float | None]]] = {name: {name: own} for name, own in scores.items()}
    if scores:
        groups[None] = scores
    figures = {name: stratified_mean(group, confidence) for name, group in groups.items()}
    return {
        name: {"success": one.mean, "lower": one.lower, "upper": one.upper, "n": one.n} for name, one in figures.items()
    }


def read_records(root: Path, closed_rounds: int) -> list[dict[str, Any]]:
    """round.json of every closed round. Raises DataError where one has not been brought here."""
    records = []
    for number in range(1, closed_rounds + 1):
        path = root / folder_of(number) / "round.json"
        if not path.is_file():
            raise DataError(f"{folder_of(number)}/round.json, a closed round, is not here; try `dvc pull`")
        records.append(read_json(path))
    return records


def write_rounds(path: Path, records: list[dict[str, Any]]) -> None:
    """Write data/rounds.csv anew; what was not measured is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        row = {**record, "seconds": round(sum(record["seconds"].values()), 1) if record["seconds"] else None}
        writer.writerow([row[name] for name in COLUMNS])
    write_text(path, text.getvalue())
