"""Losses. A policy loss is a surrogate whose gradient is

    - 1/n sum over the n steps of w_t grad log pi(a_t | h_t)

with w_t free of gradient; the objectives differ in w_t alone. `OBJECTIVES` names them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retroformer.objectives import weights
from retroformer.objectives.shapes import require

ASYMMETRIC_SHIFT = 0.15
"""How far below the mean return the baseline of `asymmetric` lies, in units of return."""


class PolicyLoss(NamedTuple):
    """A surrogate, and what multiplied each log-probability in it."""

    loss: Tensor
    """Scalar with a gradient."""
    weights_bt: Tensor
    """w_t, without a gradient, 0 where there is no step."""


class Batch(NamedTuple):
    """What an objective may look at; all [B, T] but success_b [B]."""

    logprobs_bt: Tensor
    """The only one with a gradient."""
    behaviour_logprobs_bt: Tensor
    """NaN where the log does not have it: fatal to an objective in NEEDS_BEHAVIOUR, without effect on the others."""
    advantages_bt: Tensor
    returns_bt: Tensor
    success_b: Tensor
    """bool"""
    mask_bt: Tensor


def surrogate(logprobs_bt: Tensor, weights_bt: Tensor, mask_bt: Tensor) -> PolicyLoss:
    """- 1/n sum of w_t log pi(a_t | h_t) over the n steps of the batch (Williams 1992). All [B, T]."""
    require(mask_bt.shape, logprobs_bt=logprobs_bt, weights_bt=weights_bt)
    weights_bt = torch.where(mask_bt, weights_bt, 0.0).detach()
    # Where the weight is 0 the log-probability may be -inf, and 0 times -inf is not a number.
    logprobs_bt = torch.where(weights_bt == 0, 0.0, logprobs_bt)
    return PolicyLoss(-(weights_bt * logprobs_bt).sum() / mask_bt.sum().clamp(min=1), weights_bt)


def topr(batch: Batch) -> PolicyLoss:
    """w = A where A > 0, min(1, pi / mu) A otherwise: tapered off-policy REINFORCE (Le Roux et al. 2025).

    arXiv 2503.14286: good actions as in imitation, bad ones only as long as the policy still takes them, so the
    objective is bounded above. Bounded, not safe: where the baseline is above the value of a state, every action of it
    has A < 0, and since min(1, pi / mu) spares whichever pi takes more often than mu does, that one grows, good or bad.
    Below the value the same sum is imitation. So a baseline that may be wrong belongs below, as Arnal et al. 2025
    (arXiv 2506.20520) prove for REINFORCE without weights: the trainer's `train.margin`.
    """
    ratios_bt = weights.ratios(batch.logprobs_bt, batch.behaviour_logprobs_bt, batch.mask_bt)
    weights_bt = weights.tapered(ratios_bt, batch.advantages_bt) * batch.advantages_bt
    return surrogate(batch.logprobs_bt, weights_bt, batch.mask_bt)


def truncated(batch: Batch, limit: float = 1.0) -> PolicyLoss:
    """w = min(limit, pi / mu) A: truncated importance sampling (Espeholt et al. 2018, section 4.2)."""
    ratios_bt = weights.ratios(batch.logprobs_bt, batch.behaviour_logprobs_bt, batch.mask_bt)
    weights_bt = weights.truncated(ratios_bt, limit) * batch.advantages_bt
    return surrogate(batch.logprobs_bt, weights_bt, batch.mask_bt)


def symmetric(batch: Batch) -> PolicyLoss:
    """w = A: REINFORCE (Williams 1992) on replay as if it were on-policy. Collapses; here to be compared with."""
    return surrogate(batch.logprobs_bt, batch.advantages_bt, batch.mask_bt)


def asymmetric(batch: Batch, shift: float = ASYMMETRIC_SHIFT) -> PolicyLoss:
    """w = A + shift: off-policy REINFORCE with a baseline below the behaviour's value (Arnal et al. 2025).

    arXiv 2506.20520: the gradient of E_mu[(G - V) log pi], stable for V below the behaviour's value. No importance
    weights, so no behaviour log-probabilities. `shift` is in units of the advantages: do not normalise them.
    """
    return surrogate(batch.logprobs_bt, batch.advantages_bt + shift, batch.mask_bt)


def reward_weighted(batch: Batch) -> PolicyLoss:
    """w = max(G, 0): reward-weighted regression (Peters and Schaal 2007) without its temperature."""
    return surrogate(batch.logprobs_bt, batch.returns_bt.clamp(min=0), batch.mask_bt)


def imitation(batch: Batch) -> PolicyLoss:
    """w = 1: behaviour cloning (Pomerleau 1991), the maximum likelihood of the history."""
    return surrogate(batch.logprobs_bt, torch.ones_like(batch.logprobs_bt), batch.mask_bt)


def imitation_of_successes(batch: Batch) -> PolicyLoss:
    """w = 1 in a trajectory that succeeded, 0 in others: filtered behaviour cloning."""
    require(batch.mask_bt.shape[:1], success_b=batch.success_b)
    weights_bt = batch.success_b.to(batch.logprobs_bt.dtype)[:, None].expand_as(batch.logprobs_bt)
    return surrogate(batch.logprobs_bt, weights_bt, batch.mask_bt)


OBJECTIVES: dict[str, Callable[[Batch], PolicyLoss]] = {
    "topr": topr,
    "truncated": truncated,
    "symmetric": symmetric,
    "asymmetric": asymmetric,
    "reward_weighted": reward_weighted,
    "imitation": imitation,
    "imitation_of_successes": imitation_of_successes,
}
NEEDS_BEHAVIOUR = frozenset({"topr", "truncated"})
"""Objectives that cannot do without the behaviour's log-probabilities."""
NEEDS_ADVANTAGES = frozenset({"topr", "truncated", "symmetric", "asymmetric"})
"""Objectives that look at advantages; a baseline means nothing to the others."""
TAKES_MARGIN = frozenset({"topr"})
"""Objectives that `train.margin` steadies; `asymmetric` has a shift of its own."""
NORMALISES_ADVANTAGES = NEEDS_ADVANTAGES - {"asymmetric"}
"""Objectives whose advantages may be rescaled by `baselines.normalise`; `asymmetric` needs units of return."""


def entropy(logprobs_bta: Tensor, mask_bta: Tensor) -> Tensor:
    """Mean over the steps of - sum over a of pi(a) log pi(a), in nats (Shannon 1948), with a gradient.

    logprobs_bta [B, T, A] normalised over the admissible actions, mask_bta [B, T, A] True for those; -inf anywhere
    counts as probability 0. A step with no admissible action is padding; leave out generated actions too, since the
    entropy over all texts does not follow from the probability of one. -> scalar.
    """
    require(mask_bta.shape, logprobs_bta=logprobs_bta)
    # Replaced before the product, or the gradient of 0 times -inf would not be a number.
    possible_bta = mask_bta & (logprobs_bta > -torch.inf)
    safe_bta = torch.where(possible_bta, logprobs_bta, 0.0)
    plogp_bta = torch.where(possible_bta, safe_bta.exp() * safe_bta, 0.0)
    return -plogp_bta.sum() / mask_bta.any(-1).sum().clamp(min=1)


def observation_loss(logprobs_p: Tensor) -> Tensor:
    """Mean cross-entropy of the observations' tokens, in nats a token; logprobs_p [P] -> scalar, 0 where P is 0.

    What the environment says next is predicted as an auxiliary task, which shapes the states that the policy reads
    (Jaderberg et al. 2017, arXiv 1611.05397; of language agents' logs Zhang et al. 2025, arXiv 2510.08558).
    """
    return -logprobs_p.sum() / max(1, len(logprobs_p))


def value_loss(values_bt: Tensor, returns_bt: Tensor, mask_bt: Tensor, weights_b: Tensor | None = None) -> Tensor:
    """Weighted mean of (V(h_t) - G_t)^2 over the steps (Sutton and Barto 2018, eq. 9.1).

    `weights_b`: inverse sampling probability of each trajectory, up to a factor, so that drawing good trajectories
    more often does not bias the value (Horvitz and Thompson 1952, self-normalised). All [B, T], weights_b [B] ->
    scalar.
    """
    require(mask_bt.shape, values_bt=values_bt, returns_bt=returns_bt)
    weights_bt = mask_bt.to(values_bt.dtype)
    if weights_b is not None:
        require(mask_bt.shape[:1], weights_b=weights_b)
        weights_bt = weights_bt * weights_b[:, None]
    errors_bt = torch.where(mask_bt, values_bt - returns_bt, 0.0).square()
    return (weights_bt * errors_bt).sum() / weights_bt.sum().clamp(min=torch.finfo(weights_bt.dtype).tiny)
