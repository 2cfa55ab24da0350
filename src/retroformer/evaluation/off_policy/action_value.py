"""The action value of the policy that is evaluated: fitted Q evaluation, cross-fitted.

Q is linear in (state features) x (kind of action), refitted by ridge regression until it has looked as far ahead as
the longest trajectory (Le, Voloshin and Yue 2019, algorithm 3, for a finite horizon). It is never the trainer's
baseline, which is a value of other policies and has seen its own data. In doubly robust estimates a poor Q costs
variance alone, so the model is light; what would bias them is a Q that has seen the trajectory it is used on, so
each task instance is predicted by a fit without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

FOLDS = 5
RIDGE = 10.0
"""Added to the Gram matrix of standardised features: the weight of ten decisions."""
CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Decisions:
    """S logged decisions, those of a trajectory together and in order; A actions at most, K kinds of action."""

    trajectory_s: Integers
    """0..N-1, not decreasing."""
    states_sd: Array
    """Features of the history."""
    probabilities_sa: Array
    """pi(a | h), 0 where there is no action."""
    kinds_sa: Integers
    """0..K-1; anything where there is no action."""
    chosen_s: Integers
    rewards_s: Array

    @property
    def last_s(self) -> NDArray[np.bool_]:
        """Whether it is the last of its trajectory."""
        return np.append(self.trajectory_s[1:] != self.trajectory_s[:-1], True)


def fitted_q(decisions: Decisions, fold_n: Integers, discount: float = 1.0) -> tuple[Array, Array]:
    """Q(h, a) of pi at the actions taken and V(h) = sum_a pi(a | h) Q(h, a), both [S].

    ``fold_n`` is the fold of each trajectory, 0..; a trajectory's values come from the fit without its fold. Values
    are held within the range of the returns-to-go, which any mixture of them stays in.
    """
    fold_s = fold_n[decisions.trajectory_s]
    x_sd, kinds = standardised(decisions.states_sd), int(decisions.kinds_sa.max()) + 1
    taken_s = np.take_along_axis(decisions.kinds_sa, decisions.chosen_s[:, None], 1)[:, 0]
    last_s = decisions.last_s
    limits = reach(decisions, discount)
    horizon = int(np.bincount(decisions.trajectory_s).max())
    folds = range(int(fold_n.max()) + 1)
    grams = [gram(x_sd[fold_s == fold], taken_s[fold_s == fold], kinds) for fold in folds]
    whole = np.sum(grams, 0)
    q_s, v_s = np.zeros(len(x_sd)), np.zeros(len(x_sd))
    for fold, own in zip(folds, grams, strict=True):
        seen, unseen = fold_s != fold, fold_s == fold
        if not seen.any() or not unseen.any():
            continue
        factor = cho_factor(whole - own + RIDGE * np.eye(len(whole)))
        weights = np.zeros((x_sd.shape[1], kinds + 1))
        for _ in range(horizon):
            values_sa = action_values(x_sd, weights, decisions.kinds_sa, limits)
            ahead_s = np.append((values_sa * decisions.probabilities_sa).sum(1)[1:], 0.0)
            targets_s = np.where(seen, decisions.rewards_s + discount * np.where(last_s, 0.0, ahead_s), 0.0)
            weights = cho_solve(factor, moments(x_sd, taken_s, targets_s, kinds)).reshape(weights.shape)
        values_sa = action_values(x_sd[unseen], weights, decisions.kinds_sa[unseen], limits)
        q_s[unseen] = np.take_along_axis(values_sa, decisions.chosen_s[unseen, None], 1)[:, 0]
        v_s[unseen] = (values_sa * decisions.probabilities_sa[unseen]).sum(1)
    return q_s, v_s


def standardised(states_sd: Array) -> Array:
    """Mean 0, deviation 1, with a constant in front; a feature that never changes is left out."""
    states_sd = np.asarray(states_sd, dtype=np.float64)
    deviation_d = states_sd.std(0)
    kept = deviation_d > 1e-9
    scaled = (states_sd[:, kept] - states_sd[:, kept].mean(0)) / deviation_d[kept]
    return np.concatenate([np.ones((len(scaled), 1)), scaled], 1)


def design(x_sd: Array, taken_s: Integers, kinds: int) -> Array:
    """The features of state and action: x, and x once more in the place of the action's kind, [S, D (K + 1)]."""
    s, d = x_sd.shape
    phi = np.zeros((s, d, kinds + 1))
    phi[:, :, 0] = x_sd
    phi[np.arange(s), :, taken_s + 1] = x_sd
    return phi.reshape(s, -1)


def gram(x_sd: Array, taken_s: Integers, kinds: int) -> Array:
    """Sum of the products of the features, in pieces, so that they need not all be there at once."""
    total = np.zeros((x_sd.shape[1] * (kinds + 1),) * 2)
    for at in range(0, len(x_sd), CHUNK):
        phi = design(x_sd[at : at + CHUNK], taken_s[at : at + CHUNK], kinds)
        total += phi.T @ phi
    return total


def moments(x_sd: Array, taken_s: Integers, targets_s: Array, kinds: int) -> Array:
    """Sum of features times targets, [D (K + 1)]."""
    by_kind_sk = np.zeros((len(x_sd), kinds + 1))
    by_kind_sk[:, 0] = targets_s
    by_kind_sk[np.arange(len(x_sd)), taken_s + 1] = targets_s
    return (x_sd.T @ by_kind_sk).reshape(-1)


def action_values(x_sd: Array, weights_dk: Array, kinds_sa: Integers, limits: tuple[float, float]) -> Array:
    """Q of every action, [S, A]."""
    values_sk = x_sd @ weights_dk
    return (values_sk[:, :1] + np.take_along_axis(values_sk[:, 1:], kinds_sa, 1)).clip(*limits)


def reach(decisions: Decisions, discount: float) -> tuple[float, float]:
    """Smallest and largest return-to-go of the logs, 0 among them."""
    togo, least, most = 0.0, 0.0, 0.0
    for reward, last in zip(decisions.rewards_s[::-1], decisions.last_s[::-1], strict=True):
        togo = reward + (0.0 if last else discount * togo)
        least, most = min(least, togo), max(most, togo)
    return least, most
