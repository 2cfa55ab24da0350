"""Challenger against champion on the same seeds, looked at repeatedly while the number of episodes grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

MIN_PAIRS = 2
"""Pairs that a task must have before anything may be decided: fewer have no variance."""


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """Challenger minus champion on one task; the intervals of all tasks hold at once."""

    task: str
    mean: float
    lower: float
    upper: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Challenger minus champion, tasks weighted equally."""

    mean: float
    lower: float
    upper: float
    n: int
    """Pairs that count."""
    lost: int
    """Pairs dropped because either side has no valid outcome."""
    standard_error: float
    critical: float
    """Student's quantile that the interval was made with."""
    per_task: tuple[TaskDifference, ...]


def planned_looks(first_look: int, looks: int) -> list[int]:
    """Episodes a policy at each look: `first_look`, then double that of the look before."""
    return [first_look * 2**look for look in range(looks)]


def paired_difference(
    champion: Mapping[str, Sequence[float | None]],
    challenger: Mapping[str, Sequence[float | None]],
    confidence: float,
    looks: int,
) -> Difference:
    """Stratified paired difference of success, with an interval that is valid at each of `looks` planned looks.

    Both map a task to its scores in 0..1 in the order of the same seeds, None where an episode ended in an error or
    was truncated. The mean is the mean over tasks of the mean difference; its variance the sum of the tasks' own;
    Student's t with Welch and Satterthwaite's degrees of freedom (Welch 1947).

    Repeated looks: alpha = 1 - confidence is split evenly over the planned looks (Bonferroni's union bound; repeated
    confidence intervals, Jennison and Turnbull 1989). All intervals together hold with `confidence`, whenever and for
    whatever reason one stops. Intervals of tasks split alpha over the tasks as well, so that they too hold at once.

    Variance: half a pair is added to each of the four cells won, lost, both solved, both failed (Agresti and Min 2005),
    in the variance alone: the mean stays as observed. So n equal pairs give an interval of about +-t/n, never one of
    width 0. A task without any pair counts as 0 with variance 1, the largest that a value in -1..1 can have.

    Raises ValueError where tasks or lengths differ, or a score is not in 0..1.
    """
    if champion.keys() != challenger.keys() or not champion:
        raise ValueError(f"champion played {sorted(champion)}, challenger {sorted(challenger)}")
    alpha = (1 - confidence) / looks
    means, variances, freedoms, sizes, lost, per_task = [], [], [], [], 0, []
    for task in sorted(champion):
        differences = pairs(task, champion[task], challenger[task])
        n = len(differences)
        lost += len(champion[task]) - n
        mean = math.fsum(differences) / n if n else 0.0
        variance = variance_of_mean(differences)
        freedom = max(n - 1, 1)
        half = quantile(freedom, alpha / len(champion)) * math.sqrt(variance)
        per_task.append(TaskDifference(task, mean, max(-1.0, mean - half), min(1.0, mean + half), n))
        means.append(mean)
        variances.append(variance)
        freedoms.append(freedom)
        sizes.append(n)
    mean = math.fsum(means) / len(means)
    total = math.fsum(variances)
    error = math.sqrt(total) / len(means)
    freedom = total**2 / math.fsum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    critical = quantile(freedom, alpha)
    lower, upper = max(-1.0, mean - critical * error), min(1.0, mean + critical * error)
    return Difference(mean, lower, upper, sum(sizes), lost, error, critical, tuple(per_task))


def pairs(task: str, champion: Sequence[float | None], challenger: Sequence[float | None]) -> list[float]:
    """Challenger minus champion where both have an outcome."""
    if len(champion) != len(challenger):
        raise ValueError(f"{task}: {len(champion)} episodes of the champion, {len(challenger)} of the challenger")
    for score in (*champion, *challenger):
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"{task}: a score must be in 0..1, got {score}")
    both = zip(champion, challenger, strict=True)
    return [theirs - ours for ours, theirs in both if ours is not None and theirs is not None]


def variance_of_mean(differences: Sequence[float]) -> float:
    """Variance of a task's mean difference, half a pair added to each cell of the table; see `paired_difference`.

    Where most pairs differ that correction would shrink the variance: then the sample's own, unbiased, stands.
    """
    n = len(differences)
    if n == 0:
        return 1.0
    squares = math.fsum(d * d for d in differences)
    mean = math.fsum(differences) / (n + 2)
    corrected = (squares + 1) / (n + 2) - mean**2
    plain = (squares - math.fsum(differences) ** 2 / n) / (n - 1) if n > 1 else 0.0
    return max(corrected, plain) / n


def quantile(freedom: float, alpha: float) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # here, as most who import this module need no interval

    return float(stdtrit(freedom, 1 - alpha / 2))


def decided(difference: Difference, min_improvement: float, max_regression: float = 1.0) -> bool:
    """Whether to stop looking: the gate could promote, or has proof against the challenger.

    Proof of being better than `min_improvement` is not enough while some task seems to have fallen by more than
    `max_regression`: an early stop would then promote on the few episodes that could not prove the fall yet. At the
    last look the fall is either proven or not. 1, the default, is a fall that cannot be exceeded.
    """
    if any(task.n < MIN_PAIRS for task in difference.per_task):
        return False
    if difference.upper < 0 or any(task.upper < -max_regression for task in difference.per_task):
        return True
    return difference.lower > min_improvement and all(task.mean >= -max_regression for task in difference.per_task)


def pairs_needed(difference: Difference, min_improvement: float, power: float = 0.8) -> int | None:
    """Pairs at which the observed difference, were it the true one, is proven above `min_improvement`.

    With probability `power`; the usual n proportional to ((t + z) error / effect)^2. None where the observed difference
    is not above `min_improvement`: no number of episodes proves it then.
    """
    effect = difference.mean - min_improvement
    if effect <= 0:
        return None
    factor = (difference.critical + NormalDist().inv_cdf(power)) * difference.standard_error / effect
    return math.ceil(difference.n * factor**2)
