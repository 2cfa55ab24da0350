"""Whether logs can answer at all: effective sample size, overlap, support. And what would change a no.

The thresholds are stated here and shown with every answer; `docs/off-policy.md` has what they were measured on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroformer.evaluation.off_policy.action_value import Array
from retroformer.evaluation.off_policy.estimators import cumulative

MIN_ESS = 50.0
"""Trajectories' worth of evidence below which no interval is given."""
MIN_EVENTS = 10
"""Trajectories whose return is another than the most frequent one: with fewer, no spread can be estimated."""
MAX_OUTSIDE = 0.01
"""Share of the policy's decisions that may be proven to lie where the behaviour never acts."""
MAX_DRIFT = 0.1
"""How far the mean weight may be proven to lie from 1, which it is where the ratios are right."""
ERRORS = 3.0
"""Standard errors that count as proof here."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How much the logs say of a policy."""

    trajectories: int
    decisions: int
    ess: float
    """Effective sample size, see `effective_size`."""
    events: int
    """Trajectories whose return is another than the most frequent one."""
    overlap: float
    """Mean over logged decisions of sum_a min(pi, mu), 1 minus the total variation; 1 where both act alike."""
    outside: float
    """Share of the policy's probability where the behaviour has none, at logged histories; may come out below 0."""
    outside_error: float
    mean_weight: float
    """Of whole trajectories; 1 where the ratios are right and nothing lies outside."""
    mean_weight_error: float
    largest_weight: float
    """Share of all weight that one trajectory has."""

    def to_dict(self) -> dict[str, Any]:
        """As evaluation.json holds it."""
        return asdict(self)


def effective_size(ratios_nt: Array, rewards_nt: Array) -> float:
    """How many of the policy's own trajectories the logs are worth.

    At each step (sum w_t)^2 / sum w_t^2 (Kish 1965); over steps the harmonic mean, weighted by the part of the
    policy's estimated return that is paid there: a weight matters as far as to the step where it multiplies a reward,
    and the errors that it makes add up as 1 / size. Where nothing is paid, that of whole trajectories.
    """
    weights_nt = cumulative(ratios_nt)
    square_t = (weights_nt**2).sum(0)
    size_t = np.divide(weights_nt.sum(0) ** 2, square_t, out=np.zeros_like(square_t), where=square_t > 0)
    paid_t = (weights_nt * np.abs(rewards_nt)).sum(0) / np.maximum(weights_nt.sum(0), np.finfo(float).tiny)
    if size_t.min() == 0 or paid_t.sum() == 0:
        return float(size_t[-1])
    return float(paid_t.sum() / (paid_t / size_t).sum())


def evidence(ratios_nt: Array, rewards_nt: Array, mask_nt: NDArray[np.bool_]) -> Evidence:
    """Diagnostics from the ratios of the actions taken alone.

    Actions are drawn from mu, so the mean of min(1, pi / mu) is that of sum_a min(mu, pi), and the mean of pi / mu
    that of pi's mass where mu has some: neither needs mu at the actions not taken.
    """
    weights_n = cumulative(ratios_nt)[:, -1]
    total, n = float(weights_n.sum()), len(weights_n)
    inside_n = np.where(mask_nt, 1 - ratios_nt, 0.0).sum(1)
    steps_n = mask_nt.sum(1)
    outside = float(inside_n.sum() / steps_n.sum())
    residual_n = inside_n - outside * steps_n
    return Evidence(
        trajectories=n,
        decisions=int(steps_n.sum()),
        ess=effective_size(ratios_nt, rewards_nt),
        events=n - int(np.unique(rewards_nt.sum(1).round(9), return_counts=True)[1].max()),
        overlap=float(np.minimum(ratios_nt, 1.0)[mask_nt].mean()),
        outside=outside,
        outside_error=float(np.sqrt(residual_n @ residual_n)) / float(steps_n.sum()),
        mean_weight=total / n,
        mean_weight_error=float(weights_n.std()) / math.sqrt(n),
        largest_weight=float(weights_n.max()) / total if total > 0 else 1.0,
    )


def refusal(found: Evidence, ess_of_tasks: dict[str, tuple[int, float]]) -> str | None:
    """Why the logs cannot answer and what would change it, in one sentence; None where they can.

    `ess_of_tasks`: task -> its trajectories and their effective sample size.
    """
    if found.outside - ERRORS * found.outside_error > MAX_OUTSIDE:
        return (
            f"{found.outside:.1%} of the policy's decisions lie where the behaviour never acts (at most "
            f"{MAX_OUTSIDE:.0%} may be proven): no number of these logs can tell; log an agent that explores there, "
            "or evaluate a policy that stays nearer"
        )
    drift = abs(found.mean_weight - 1) - ERRORS * found.mean_weight_error
    if drift > MAX_DRIFT:
        return (
            f"the trajectories' weights have mean {found.mean_weight:.2f} where 1 is due: the recorded "
            "log-probabilities are not those at which the actions were sampled (temperature, top-p), or the policy "
            "leaves the logs"
        )
    if found.events < MIN_EVENTS:
        return (
            f"all but {found.events} of the {found.trajectories:,} trajectories have the same return, at least "
            f"{MIN_EVENTS} others are needed: log more, above all of tasks that are sometimes solved"
        )
    if found.ess < MIN_ESS:
        missing = math.ceil(found.trajectories * (MIN_ESS / max(found.ess, 1.0) - 1))
        return (
            f"the {found.trajectories:,} trajectories are worth {found.ess:.0f} of the policy's own (effective sample "
            f"size), at least {MIN_ESS:.0f} are needed: about {missing:,} more would do, above all of "
            f"{thinnest(ess_of_tasks)}, or logs of an agent nearer to the policy"
        )
    return None


def thinnest(ess_of_tasks: dict[str, tuple[int, float]], most: int = 3) -> str:
    """The tasks with the least evidence a trajectory, by name."""
    order: Sequence[str] = sorted(ess_of_tasks, key=lambda task: (ess_of_tasks[task][1] / ess_of_tasks[task][0], task))
    return ", ".join(order[:most])
