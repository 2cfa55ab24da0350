"""Score, rank and tier the history; say how often each trajectory is to be sampled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from retroformer.config import CurateConfig
from retroformer.curriculum.catalogue import write_catalogue
from retroformer.curriculum.quality import quality, tiers_of
from retroformer.curriculum.sampling import probabilities
from retroformer.errors import DataError
from retroformer.files import replacing, write_json
from retroformer.pins import read_pins
from retroformer.storage import read_trajectories, write_trajectories
from retroformer.tombstones import TOMBSTONES, forgotten_ids
from retroformer.types import Trajectory

UNSEEN = "evaluation"
"""Split of the trajectories for off-policy evaluation alone, and the folder beside the others that holds them."""


def curate(
    config: CurateConfig,
    *,
    champion: Path = Path("data/champion.json"),
    validated: Path = Path("data/validated"),
    history: Path = Path("data/history"),
    out: Path = Path("data/batches"),
) -> dict[str, Any]:
    """Score, rank and tier the history; say how often each trajectory is to be sampled.

    Takes this round's trajectories and those of the last `window` - 1 closed rounds, without what was forgotten; where
    an id is in several rounds the newest stands. Only what ended in success or failure may be sampled; the rest is
    listed with probability 0. Trajectories of split checkpoint are kept for the choice of a checkpoint, with
    probability 0. Those of split evaluation, which imported logs have, go to a folder of their own that training never
    opens.

    Returns read, sampled and checkpoint, counts of trajectories. Raises DataError where a table is damaged, or
    nothing is left to learn from.
    """
    # The pins count the closed rounds: a closing that was killed may have left the folder of one that is still open.
    this_round = read_pins(champion).round
    past = range(this_round - 1, max(0, this_round - config.window), -1)
    sources = {this_round: validated} | {number: history / f"round-{number:04d}" / "validated" for number in past}
    forgotten = forgotten_ids(history / TOMBSTONES.name)
    found: dict[str, tuple[int, Trajectory]] = {}
    read = 0
    for number, folder in sources.items():
        if not folder.is_dir():
            hint = "run validate" if number == this_round else "it belongs to a closed round; try `dvc pull`"
            raise DataError(f"{folder} does not exist; {hint}")
        # A forgetting that was killed may have left rows of what its tombstone names.
        trajectories = [one for one in read_trajectories(folder) if one.id not in forgotten]
        read += len(trajectories)
        for trajectory in trajectories:
            found.setdefault(trajectory.id, (number, trajectory))

    rows = [row(number, trajectory) for number, trajectory in found.values()]
    catalogue: Any = pd.DataFrame(sorted(rows, key=lambda one: one["trajectory_id"]))
    unseen = [trajectory for _, trajectory in found.values() if split_of(trajectory) == UNSEEN]
    learnable = [
        trajectory for _, trajectory in found.values() if trajectory.learnable and split_of(trajectory) != UNSEEN
    ]
    if not any(split_of(trajectory) == "train" for trajectory in learnable):
        outcomes = Counter(trajectory.outcome.value for _, trajectory in found.values())
        raise DataError(
            f"no trajectory of split train in {', '.join(map(str, sources.values()))} ended in success or failure "
            f"(read {read}: {', '.join(f'{name} {n}' for name, n in sorted(outcomes.items())) or 'nothing'}); "
            "look at what collect reports, then collect again"
        )
    rate(catalogue, catalogue["trajectory_id"].isin([trajectory.id for trajectory in learnable]), config)

    sampled = int((catalogue["probability"] > 0).sum())
    totals = {"read": read, "sampled": sampled, "checkpoint": len(learnable) - sampled}
    with replacing(out) as folder:
        write_trajectories(folder, learnable)
        write_catalogue(folder / "catalogue.csv", catalogue)
        if unseen:
            (folder / UNSEEN).mkdir()
            write_trajectories(folder / UNSEEN, unseen)
        report = {
            **totals,
            "round": this_round,
            "rounds": sorted(sources),
            "repeated": read - len(found),
            "share_sampled": round(sampled / len(found), 6),
            "outcomes": counts(catalogue["outcome"]),
            "splits": counts(catalogue["split"]),
            "tiers": counts(catalogue.loc[catalogue["probability"] > 0, "tier"]),
            "tasks": {str(task): counts(mine["outcome"]) for task, mine in catalogue.groupby("task")},
        }
        write_json(folder / "curate.json", report)
    return totals


def split_of(trajectory: Trajectory) -> str:
    """What it is kept for, whatever the range that its seed came from."""
    return trajectory.task.split if trajectory.task.split in ("checkpoint", UNSEEN) else "train"


def row(number: int, trajectory: Trajectory) -> dict[str, Any]:
    """What the catalogue says of a trajectory before it is rated."""
    return {
        "trajectory_id": trajectory.id,
        "round": number,
        "family": trajectory.task.family,
        "task": trajectory.task.label,
        "split": split_of(trajectory),
        "outcome": trajectory.outcome.value,
        "total_reward": trajectory.total_reward,
        "steps": len(trajectory.steps),
        "quality": 0.0,
        "tier": 0,
        "probability": 0.0,
        "policy": trajectory.policy,
    }


def rate(catalogue: pd.DataFrame, learnable: pd.Series, config: CurateConfig) -> None:
    """Fill in quality, tier and probability of the learnable rows, each among those of its task and split."""
    rows: Any = catalogue[learnable]
    group = rows["split"] + " " + rows["task"]
    scores = quality(
        rows["outcome"],
        rows["total_reward"],
        rows["steps"],
        group,
        success_weight=config.success_weight,
        return_weight=config.return_weight,
        length_weight=config.length_weight,
    )
    catalogue.loc[learnable, "quality"] = scores
    catalogue.loc[learnable, "tier"] = tiers_of(scores, rows["trajectory_id"], group, config.tiers)
    for _, mine in scores.loc[rows["split"] == "train"].groupby(rows["task"]):
        catalogue.loc[mine.index, "probability"] = probabilities(mine.to_numpy(), config.temperature)


def counts(values: pd.Series) -> dict[str, int]:
    """How often each value stands there."""
    return {str(value): int(number) for value, number in values.value_counts().items()}
