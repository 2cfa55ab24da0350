"""Intervals for a success rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

from retroformer.errors import DataError


class Estimate(NamedTuple):
    """A mean with its interval and the number of episodes that it rests on."""

    mean: float
    lower: float
    upper: float
    n: int


def wilson(successes: float, n: float, confidence: float) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): honest at 0 and 1, and (0, 1) where n is 0.

    `successes` of `n`, both may be fractional; `confidence` two-sided, in (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n = {n:g}, got {successes:g}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The interval touches 0 and 1 exactly there; rounding must not move it past the share.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def stratified_mean(outcomes: Mapping[str, Sequence[float | None]], confidence: float) -> Estimate:
    """Mean over tasks of the success in each, tasks weighted equally, with a Wilson interval.

    `outcomes`: task -> scores in 0..1, None where the episode has no valid outcome. A task without any is left out of
    the mean. The interval is Wilson's at the effective size n' = p (1 - p) / V, where V is the variance of the
    stratified mean and rates are estimated with one success and one failure added (Agresti and Coull 1998), so that
    n' exists at 0 and 1. With one task, or equal tasks, n' = n. Raises DataError where no episode has an outcome.
    """
    strata = [[score for score in scores if score is not None] for scores in outcomes.values()]
    strata = [scores for scores in strata if scores]
    if not strata:
        raise DataError("no episode has an outcome: all ended in an error or were truncated")
    mean = math.fsum(math.fsum(scores) / len(scores) for scores in strata) / len(strata)
    rates = [(math.fsum(scores) + 1) / (len(scores) + 2) for scores in strata]
    variance = math.fsum(rate * (1 - rate) / len(scores) for rate, scores in zip(rates, strata, strict=True))
    variance /= len(strata) ** 2
    rate = math.fsum(rates) / len(rates)
    size = rate * (1 - rate) / variance
    return Estimate(mean, *wilson(min(mean * size, size), size, confidence), sum(map(len, strata)))
