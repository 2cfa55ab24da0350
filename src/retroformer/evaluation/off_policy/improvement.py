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
ANSWER = "weighted doubly robust, least variance"
"""What the verdict rests on; see `estimators.least_variance`."""


WITHOUT_Q = "weighted per-decision"
"""What the verdict has to agree with: the same without an action value, and without a share chosen on the logs."""


def answer(of: Ratios, reference: Means) -> Means:
    """The estimate that the verdict rests on."""
    plain, robust = METHODS[WITHOUT_Q](of), METHODS["weighted doubly robust"](of)
    return estimators.least_variance(plain, robust, reference)[0]


def reference_of(policies: Sequence[Ratios]) -> Means:
    """What the first is compared with: the second's value by the same estimator, or the behaviour's own returns."""
    own, *others = policies
    behaviour = on_policy(own.rewards_nt)
    return answer(others[0], behaviour) if others else behaviour


def improvement(policies: Sequence[Ratios], instance_n: Integers, confidence: float, ess: float) -> Interval:
    """The first policy's value minus that of the second, or of the behaviour where there is none, on the same logs.

    The interval also covers that of the weighted per-decision estimate. Near the behaviour the two are one. Far from
    it the share of Q is fitted to the same few large weights that its standard error is made from, which makes the
    answer's own interval too narrow.
    """
    reference = reference_of(policies)
    own = interval(answer(policies[0], reference).plus(reference, -1), instance_n, confidence, ess)
    plain_of = METHODS[WITHOUT_Q]
    other = plain_of(policies[1]) if len(policies) > 1 else reference
    plain = interval(plain_of(policies[0]).plus(other, -1), instance_n, confidence, ess)
    return own._replace(lower=min(own.lower, plain.lower), upper=max(own.upper, plain.upper))


def interval(estimate: Means, instance_n: Integers, confidence: float, ess: float) -> Interval:
    """Two-sided interval of an estimate or a difference.

    The wider, at each end, of the percentile bootstrap over task instances (Efron 1979; all attempts at an instance
    stay together) and Student's t with the linearised standard error and as many degrees of freedom as `freedom` finds,
    at most ESS - 1. The former follows the skew that few large weights make, the latter does not end where the largest
    of them ends, and knows on how few trajectories the standard error rests.
    """
    grouped = estimate.grouped(instance_n)
    count = len(grouped.parts_nk)
    influence = grouped.influence()
    error = math.sqrt(float(influence @ influence) / count / max(count - 1, 1))
    degrees = min(max(ess - 1, 1.0), freedom(influence))
    half = float(stdtrit(degrees, (1 + confidence) / 2)) * error + ROUNDING
    draws = resampled(grouped)
    low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    mean = estimate.value
    return Interval(mean, error, min(mean - half, float(low)), max(mean + half, float(high)))


def freedom(influence_n: Array) -> float:
    """Degrees of freedom of a variance: 2 over its squared relative error (Satterthwaite 1946), 1 to n - 1.

    The relative variance of a sample variance is about sum x^4 / (sum x^2)^2 - 1 / n. With weights, a few trajectories
    may carry nearly all of it.
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
