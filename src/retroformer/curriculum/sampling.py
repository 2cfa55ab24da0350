"""Draw trajectories in proportion to their quality, and know the probability with which each was drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from retroformer.errors import DataError

UNIFORM_SHARE = 0.1
"""Share of the draws that ignores quality. It bounds inverse-probability weights: none is above 1 / UNIFORM_SHARE
times the weight under uniform sampling of the task."""


def probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Probability of each of the n trajectories of one task; positive, and they sum to 1.

        p_i = (1 - e) q_i^(1/temperature) / sum_j q_j^(1/temperature) + e / n,    e = UNIFORM_SHARE

    `scores` q are in [0, 1]. A high temperature is uniform, a low one keeps to the best.
    """
    best = scores.max()
    # Relative to the best, so that a low temperature cannot make every power underflow.
    powers = (scores / best) ** (1 / temperature) if best > 0 else np.ones_like(scores)
    return (1 - UNIFORM_SHARE) * powers / powers.sum() + UNIFORM_SHARE / len(scores)


class TrajectorySampler:
    """Draws ids of split ``train``, with replacement: a task by its weight, then a trajectory within the task.

    Within the task the catalogue's probabilities count, made to sum to 1 over the admitted tiers; with `uniform`
    all admitted trajectories of the task are alike. The order of the catalogue's rows does not matter.
    Raises DataError where nothing may be sampled.
    """

    def __init__(
        self,
        catalogue: pd.DataFrame,
        *,
        seed: int,
        tiers_admitted: int | None = None,
        uniform: bool = False,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        rows = catalogue.query("split == 'train' and probability > 0").sort_values("trajectory_id")
        if rows.empty:
            raise DataError("the catalogue has no trajectory of split train with a positive probability")
        self.ids = rows["trajectory_id"].to_numpy(str)
        self.tiers = rows["tier"].to_numpy()
        self.tasks, self.task_of = np.unique(rows["task"].to_numpy(str), return_inverse=True)
        self.mass = np.ones(len(rows)) if uniform else rows["probability"].to_numpy()
        self.place = {id: place for place, id in enumerate(self.ids)}
        self.generator = np.random.default_rng(seed)
        self.tiers_admitted = int(self.tiers.max()) if tiers_admitted is None else tiers_admitted
        self.task_weights = np.ones(len(self.tasks))
        self.weigh(task_weights or {})

    def admit(self, tiers: int) -> None:
        """From now on draw from tiers 1 to `tiers`. The best trajectories of each task are in tier 1."""
        self.tiers_admitted = tiers
        self._share_out()

    def weigh(self, task_weights: Mapping[str, float]) -> None:
        """From now on draw tasks in proportion to these weights; a task that is not named keeps its own.

        Raises ValueError for a task that is not there or a weight that is not positive and finite.
        """
        for task, weight in task_weights.items():
            if task not in self.tasks or not 0 < weight < np.inf:
                raise ValueError(f"weight {weight} of task {task}: expected above 0, for one of {self.tasks.tolist()}")
            self.task_weights[self.tasks == task] = weight
        self._share_out()

    def _share_out(self) -> None:
        """Probability of each trajectory in one draw, shape [n]; 0 outside the admitted tiers."""
        mass = np.where(self.tiers <= self.tiers_admitted, self.mass, 0.0)
        of_task = np.bincount(self.task_of, weights=mass, minlength=len(self.tasks))
        # A task with nothing admitted is not drawn, and the others share its weight.
        weights = np.where(of_task > 0, self.task_weights, 0.0)
        if not weights.any():
            raise DataError(f"no trajectory is in tiers 1 to {self.tiers_admitted}")
        with np.errstate(invalid="ignore"):
            scale = np.where(of_task > 0, weights / weights.sum() / of_task, 0.0)
        self.probability_of_draw = mass * scale[self.task_of]
        cumulative = np.cumsum(self.probability_of_draw)
        self._cumulative = cumulative / cumulative[-1]

    def draw(self, count: int) -> list[str]:
        """`count` ids, each drawn independently."""
        # Task first, trajectory second is one draw from the product of the two probabilities.
        places = np.searchsorted(self._cumulative, self.generator.random(count), side="right")
        return self.ids[places].tolist()

    def probability(self, ids: Sequence[str]) -> np.ndarray:
        """Probability of each id in one draw, shape [B]; 0 where its tier is not admitted yet."""
        return self.probability_of_draw[[self.place[id] for id in ids]]

    def inverse_weights(self, ids: Sequence[str]) -> np.ndarray:
        """1 / (N p) of each drawn id, shape [B], N the number of admitted trajectories.

        The mean of weight times x over draws is an unbiased estimate of the plain mean of x over all that are
        admitted (Horvitz and Thompson 1952; with replacement, Hansen and Hurwitz 1943).
        """
        return 1 / (np.count_nonzero(self.probability_of_draw) * self.probability(ids))

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on with exactly the same draws; plain JSON."""
        return {
            "generator": self.generator.bit_generator.state,
            "tiers_admitted": self.tiers_admitted,
            "task_weights": dict(zip(self.tasks.tolist(), self.task_weights.tolist(), strict=True)),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on the same catalogue."""
        self.generator.bit_generator.state = state["generator"]
        self.tiers_admitted = state["tiers_admitted"]
        self.weigh(state["task_weights"])
