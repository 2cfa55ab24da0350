"""How good a trajectory is among those of its task, and the tier that this puts it in: pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from retroformer.errors import ConfigError


def rank_within(values: pd.Series, groups: pd.Series) -> pd.Series:
    """Rank of each value in its group, 0 the smallest and 1 the largest, ties at their mean, 1/2 where alone."""
    by = values.groupby(groups)
    size: Any = by.transform("size")
    return ((by.rank(method="average") - 1) / (size - 1)).where(size > 1, 0.5)


def quality(
    outcome: pd.Series,
    total_reward: pd.Series,
    steps: pd.Series,
    task: pd.Series,
    *,
    success_weight: float,
    return_weight: float,
    length_weight: float,
) -> pd.Series:
    """Quality in [0, 1] of each of B trajectories.

        quality = (w_s success + w_r rank(total reward) + w_l (1 - rank(steps))) / (w_s + w_r + w_l)

    success is 1 or 0; ranks are within the trajectory's task, from 0 to 1 (see `rank_within`), so that neither the
    scale of a task's rewards nor the length that it needs counts. Raises ConfigError where all weights are 0.
    """
    total = success_weight + return_weight + length_weight
    if total == 0:
        raise ConfigError("curate: success_weight, return_weight and length_weight are all 0; one must be above")
    success = (outcome == "success").astype(float)
    rank_of_return, shortness = rank_within(total_reward, task), 1 - rank_within(steps, task)
    return (success_weight * success + return_weight * rank_of_return + length_weight * shortness) / total


def tiers_of(scores: pd.Series, ids: pd.Series, task: pd.Series, tiers: int) -> pd.Series:
    """Tier of each of B trajectories: 1 holds the best share 1/tiers of each task, `tiers` the rest.

    Quantiles within the task, so that no task waits for another; equal scores are parted by id, which is a hash.
    A task with fewer trajectories than tiers fills the first, and leaves some empty.
    """
    order = np.lexsort((ids.to_numpy(str), -scores.to_numpy()))
    place = pd.Series(0, index=scores.index)
    place.iloc[order] = task.iloc[order].groupby(task.iloc[order]).cumcount().to_numpy()
    return 1 + place * tiers // task.groupby(task).transform("size")
