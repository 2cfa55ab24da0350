"""Off-policy estimators as pure functions of arrays: what pi would have earned, from what mu did.

N trajectories, T steps, padded to the longest: after a trajectory's end its ratio is 1, its reward and values 0, so
its cumulative weight stays what it was (the absorbing state of Thomas and Brunskill 2016). ``ratios_nt`` is
pi(a | h) / mu(a | h) of the actions taken, ``q_nt`` an action value of pi at them, ``v_nt`` its mean under pi.

Every estimate is a sum of ratios of means over trajectories, see `Means`: so the bootstrap, the influence of each
trajectory and the difference of two estimates are the same few lines for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Means:
    """The estimate sum over k of (mean of ``parts_nk``) / (mean of ``weights_nk``), over trajectories or clusters n."""

    parts_nk: Array
    weights_nk: Array

    @property
    def value(self) -> float:
        """The estimate."""
        return float((self.parts_nk.sum(0) / self.weights_nk.sum(0)).sum())

    def influence(self) -> Array:
        """What each n adds to the estimate's error, [N]: its deviation is the standard error times the root of N.

        The linearisation of a ratio estimator (Cochran 1977, section 6.4): (x - R d) / mean(d), summed over k.
        """
        mean_k = self.weights_nk.mean(0)
        ratio_k = self.parts_nk.mean(0) / mean_k
        return ((self.parts_nk - ratio_k * self.weights_nk) / mean_k).sum(1)

    def resampled(self, counts_bn: Array) -> Array:
        """The estimate of B bootstrap samples in which n stands ``counts_bn`` times, [B]."""
        return ((counts_bn @ self.parts_nk) / (counts_bn @ self.weights_nk)).sum(1)

    def plus(self, other: Means, factor: float = 1.0) -> Means:
        """This estimate plus `factor` times another on the same trajectories; paired, as their resamples are the same.

        So with factor -1 the error of what both have in common cancels.
        """
        parts = np.concatenate([self.parts_nk, factor * other.parts_nk], 1)
        return Means(parts, np.concatenate([self.weights_nk, other.weights_nk], 1))

    def grouped(self, labels_n: NDArray[np.int64]) -> Means:
        """The same estimate with the trajectories of a label as one: attempts at one task instance are not independent.

        ``labels_n`` in 0..C-1.
        """
        count = int(labels_n.max()) + 1
        parts, weights = (np.zeros((count, of.shape[1])) for of in (self.parts_nk, self.weights_nk))
        np.add.at(parts, labels_n, self.parts_nk)
        np.add.at(weights, labels_n, self.weights_nk)
        return Means(parts, weights)


def cumulative(ratios_nt: Array) -> Array:
    """w_t, the product of the ratios up to and with step t. [N, T] -> [N, T]."""
    return np.cumprod(ratios_nt, axis=1)


def before(weights_nt: Array) -> Array:
    """w_{t-1}: the weights one step earlier, 1 at the first. [N, T] -> [N, T]."""
    return np.concatenate([np.ones((len(weights_nt), 1)), weights_nt[:, :-1]], 1)


def discounts(steps: int, discount: float) -> Array:
    """discount^t, [T]."""
    return discount ** np.arange(steps)


def on_policy(rewards_nt: Array, discount: float = 1.0) -> Means:
    """The behaviour's own value: the mean return."""
    returns = (rewards_nt * discounts(rewards_nt.shape[1], discount)).sum(1, keepdims=True)
    return Means(returns, np.ones_like(returns))


def per_decision(ratios_nt: Array, rewards_nt: Array, discount: float = 1.0) -> Means:
    """Per-decision importance sampling (Precup, Sutton and Singh 2000): mean of sum_t discount^t w_t r_t. Unbiased."""
    terms = cumulative(ratios_nt) * rewards_nt * discounts(rewards_nt.shape[1], discount)
    return Means(terms.sum(1, keepdims=True), np.ones((len(terms), 1)))


def weighted_per_decision(ratios_nt: Array, rewards_nt: Array, discount: float = 1.0) -> Means:
    """Weighted per-decision importance sampling: sum_t discount^t (sum_n w_t r_t) / (sum_n w_t).

    The consistent form (CWPDIS: Thomas 2015, section 3.8, after Precup et al. 2000), normalised at each step.
    Biased by order 1/N, of far less variance.
    """
    weights_nt = cumulative(ratios_nt)
    return Means(weights_nt * rewards_nt * discounts(rewards_nt.shape[1], discount), weights_nt)


def doubly_robust(ratios_nt: Array, rewards_nt: Array, q_nt: Array, v_nt: Array, discount: float = 1.0) -> Means:
    """Doubly robust (Jiang and Li 2016): mean of sum_t discount^t [w_t (r_t - Q_t) + w_{t-1} V_t].

    Unbiased where the ratios are right, whatever Q is, as long as it does not rest on the trajectory itself.
    """
    weights_nt = cumulative(ratios_nt)
    terms = weights_nt * (rewards_nt - q_nt) + before(weights_nt) * v_nt
    terms = (terms * discounts(rewards_nt.shape[1], discount)).sum(1, keepdims=True)
    return Means(terms, np.ones_like(terms))


def weighted_doubly_robust(
    ratios_nt: Array, rewards_nt: Array, q_nt: Array, v_nt: Array, discount: float = 1.0
) -> Means:
    """Weighted doubly robust (Thomas and Brunskill 2016, section 5): as `doubly_robust`, each w_t over its mean."""
    weights_nt = cumulative(ratios_nt)
    earlier_nt, powers_t = before(weights_nt), discounts(rewards_nt.shape[1], discount)
    parts = [weights_nt * (rewards_nt - q_nt) * powers_t, earlier_nt * v_nt * powers_t]
    return Means(np.concatenate(parts, 1), np.concatenate([weights_nt, earlier_nt], 1))


def direct(v_nt: Array) -> Means:
    """The direct method: the mean value of the first history. As good as the action value is; no weight corrects it."""
    return Means(v_nt[:, :1], np.ones((len(v_nt), 1)))


def least_variance(first: Means, second: Means, reference: Means) -> tuple[Means, float]:
    """(1 - c) `first` + c `second`, c in 0..1 such that its difference from `reference` has the least variance; and c.

    Of `weighted_per_decision` and `weighted_doubly_robust` it is the latter with c Q in place of Q, so as consistent
    as they are. c is the coefficient of a control variate, chosen on the logs themselves as in Kallus and Uehara 2019
    ("Intrinsically efficient, stable, and bounded off-policy evaluation"). Near the behaviour c tends to 0, because
    what Q explains is in the behaviour's return too and cancels; far from it to 1.
    """
    base_n = first.plus(reference, -1).influence()
    change_n = second.influence() - first.influence()
    spread = float(change_n @ change_n)
    share = min(max(-float(base_n @ change_n) / spread, 0.0), 1.0) if spread > 0 else 0.0
    return Means(first.parts_nk * (1 - share), first.weights_nk).plus(second, share), share
