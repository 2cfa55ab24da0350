"""How much better a policy is than what made the logs: estimates, their paired difference, its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from retroformer.evaluation.off_policy import estimators
from retroformer.evaluation.off_policy.action_value import Array, Integers
from retroformer.evaluation.off_policy.estimators import Means, on_policy

RESAMPLES = 2000
ROUNDING = 1e-4
"""Least reach of an interval: a policy that is the behaviour but for rounding is neither better nor worse."""
CHUNK = 1 << 22
"""Counts held at once."""


class Interval(NamedTuple):
    """A mean, its standard error, and an interval that both ways of making one lie in."""

    mean: float
    standard_error: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Ratios:
    """What the estimators need of one policy, [N, T]; see `estimators`."""

    ratios_nt: Array
    rewards_nt: Array
    q_nt: Array
    v_nt: Array

    def of(self, chosen: NDArray[np.bool_] | slice) -> Ratios:
        """The same of some of the trajectories."""
        return Ratios(self.ratios_nt[chosen], self.rewards_nt[chosen], self.q_nt[chosen], self.v_nt[chosen])


METHODS = {
    "per-decision importance sampling": lambda of: estimators.per_decision(of.ratios_nt, of.rewards_nt),
    "weighted per-decision": lambda of: estimators.weighted_per_decision(of.ratios_nt, of.rewards_nt),
    "doubly robust": lambda of: estimators.doubly_robust(of.ratios_nt, of.rewards_nt, of.q_nt, of.v_nt),
    "weighted doubly robust": lambda of: estimators.weighted_doubly_robust(
        of.ratios_nt, of.rewards_nt, of.q_nt, of.v_nt
    ),
    "direct method": lambda of: estimators.direct(of.v_nt),
}
"""All undiscounted: success counts the same at whatever step."""
ANSWER = "weighted per-decision"
"""What the verdict rests on. The others stand beside it; `docs/off-policy.md` has what each was found to be worth."""


def reference_of(policies: Sequence[Ratios]) -> Means:
    """What the first is compared with: the second's value by the same estimator, or the behaviour's own returns."""
    own, *others = policies
    return METHODS[ANSWER](others[0]) if others else on_policy(own.rewards_nt)


def improvement(policies: Sequence[Ratios], instance_n: Integers, confidence: float) -> Interval:
    """The first policy's value minus that of the second, or of the behaviour where there is none, on the same logs."""
    return interval(METHODS[ANSWER](policies[0]).plus(reference_of(policies), -1), instance_n, confidence)


def interval(estimate: Means, instance_n: Integers, confidence: float) -> Interval:
    """Two-sided interval of an estimate or a difference.

    The wider, at each end, of the percentile bootstrap over task instances (Efron 1979; all attempts at an instance
    stay together) and Student's t with the linearised standard error. The former follows the skew that few large
    weights make; the latter knows, by its degrees of freedom, on how few trajectories the standard error rests.
    """
    grouped = estimate.grouped(instance_n)
    influence = grouped.influence()
    count, square = len(influence), float(influence @ influence)
    error = math.sqrt(square / count / max(count - 1, 1))
    half = float(stdtrit(freedom(influence), (1 + confidence) / 2)) * error + ROUNDING
    draws = resampled(grouped)
    low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    mean = estimate.value
    return Interval(mean, error, min(mean - half, float(low)), max(mean + half, float(high)))


def freedom(influence_n: Array) -> float:
    """Degrees of freedom of a variance: 2 over its squared relative error (Satterthwaite 1946), at most n - 1.

    The relative variance of a sample variance is sum x^4 / (sum x^2)^2 - 1 / n. With weights, a few trajectories may
    carry nearly all of it.
    """
    count, square = len(influence_n), float((influence_n**2).sum())
    if square == 0:
        return max(count - 1.0, 1.0)
    relative = float((influence_n**4).sum()) / square**2 - 1 / count
    return max(1.0, min(count - 1.0, 2 / max(relative, 1e-12)))


def spent(confidence: float, number: int) -> float:
    """The confidence of the `number`-th question, 1.., to the same logs, so that all answers together hold.

    1 - confidence over number (number + 1): summed over all numbers that is 1 - confidence (a spending function in the
    sense of Lan and DeMets 1983, with the union bound).
    """
    return 1 - (1 - confidence) / (number * (number + 1))


def resampled(grouped: Means) -> Array:
    """The estimate of RESAMPLES bootstrap samples. The same logs give the same samples."""
    count = len(grouped.parts_nk)
    rows = max(1, CHUNK // count)
    return np.concatenate(
        [grouped.resampled(counts(count, min(rows, RESAMPLES - at), at)) for at in range(0, RESAMPLES, rows)]
    )


@lru_cache(maxsize=1)
def counts(count: int, rows: int, seed: int) -> Array:
    """How often each of `count` stands in each of `rows` samples; kept, as several estimates are asked for in turn."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=rows).astype(float)
