"""Importance weights per step, and the diagnostics that say whether replay can still be trusted.

Weights are per step, pi(a_t | h_t) / mu(a_t | h_t): the product over a trajectory would be the unbiased one for the
distribution of histories too, at a variance exponential in the horizon. Histories stay distributed as mu made them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retroformer.objectives.shapes import require

MAX_LOG_RATIO = 20.0
"""Nats. Ratios beyond e^20 are held there so that neither they nor their squares overflow in fp32."""


def ratios(logprobs_bt: Tensor, behaviour_logprobs_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """pi / mu of the actions taken, without a gradient, 0 where there is no step. All [B, T] -> [B, T].

    The ratio of a generated action is that of the whole text, the product over its tokens: their log-ratios are summed
    first, then the sum is held within MAX_LOG_RATIO, and what an objective truncates or tapers is that one ratio a
    step. Ratios of single tokens are never clipped (as PPO's and GRPO's are): that would leave the bias of a long
    action unseen. The longer the actions the wider the ratios, which the effective sample size shows.
    """
    require(mask_bt.shape, logprobs_bt=logprobs_bt, behaviour_logprobs_bt=behaviour_logprobs_bt)
    log_ratio_bt = (logprobs_bt - behaviour_logprobs_bt).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.where(mask_bt, log_ratio_bt.exp(), 0.0)


def truncated(ratios_bt: Tensor, limit: float = 1.0) -> Tensor:
    """min(limit, pi / mu) (Ionides 2008; Espeholt et al. 2018, the rho-bar of eq. 1). [B, T] -> [B, T]."""
    return ratios_bt.clamp(max=limit)


def tapered(ratios_bt: Tensor, advantages_bt: Tensor) -> Tensor:
    """1 for a positive advantage, min(1, pi / mu) for a negative one (Le Roux et al. 2025, arXiv 2503.14286).

    The paper's canonical choice a+ = b+ = 1, a- = 0, b- = 1, with the weight per step in place of per trajectory.
    ratios_bt, advantages_bt [B, T] -> [B, T].
    """
    require(ratios_bt.shape, advantages_bt=advantages_bt)
    return torch.where(advantages_bt > 0, 1.0, ratios_bt.clamp(max=1.0))


def effective_sample_size(ratios_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) over the n steps, from 1 / n to 1 (Kish 1965). [B, T] -> scalar."""
    require(mask_bt.shape, ratios_bt=ratios_bt)
    weights_bt = torch.where(mask_bt, ratios_bt, 0.0)
    square_sum = (weights_bt.square().sum() * mask_bt.sum()).clamp(min=torch.finfo(weights_bt.dtype).tiny)
    return weights_bt.sum().square() / square_sum


def clipped_share(ratios_bt: Tensor, mask_bt: Tensor, limit: float = 1.0) -> Tensor:
    """Share of the steps whose ratio is above `limit`. [B, T] -> scalar in 0..1."""
    require(mask_bt.shape, ratios_bt=ratios_bt)
    return ((ratios_bt > limit) & mask_bt).sum() / mask_bt.sum().clamp(min=1)


def kl_from_behaviour(logprobs_bt: Tensor, behaviour_logprobs_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """KL(mu || pi) in nats a step: mean of (r - 1) - log r with r = pi / mu and actions drawn from mu.

    The estimator k3 of Schulman 2020, "Approximating KL divergence": unbiased, never negative, and of less variance
    than the mean of log mu - log pi. All [B, T] -> scalar.
    """
    ratios_bt = ratios(logprobs_bt, behaviour_logprobs_bt, mask_bt)
    log_ratio_bt = (logprobs_bt - behaviour_logprobs_bt).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3_bt = torch.where(mask_bt, ratios_bt - 1 - log_ratio_bt, 0.0)
    return k3_bt.sum() / mask_bt.sum().clamp(min=1)


def surrogate_advantage(
    logprobs_bt: Tensor, behaviour_logprobs_bt: Tensor, advantages_bt: Tensor, mask_bt: Tensor
) -> tuple[Tensor, Tensor]:
    """sum of (pi / mu) A over sum of pi / mu: how much better pi acts than mu in the states that mu visits.

    The local approximation of Kakade and Langford 2002 (Schulman et al. 2015, eq. 3), estimated on logs with
    self-normalised weights; in units of return. Unlike a likelihood it does not mind that a policy stops imitating the
    behaviour's noise. The advantages' baseline must not come from pi. All [B, T] -> the estimate, scalar, and the
    influence of each trajectory on it, [B]: its norm is the standard error of the estimate by linearisation (Cochran
    1977, section 6.4), and the norm of the difference of two policies' influences that of their difference.
    """
    require(mask_bt.shape, advantages_bt=advantages_bt)
    ratios_bt = ratios(logprobs_bt, behaviour_logprobs_bt, mask_bt)
    total = ratios_bt.sum().clamp(min=torch.finfo(ratios_bt.dtype).tiny)
    advantages_bt = torch.where(mask_bt, advantages_bt, 0.0)
    estimate = (ratios_bt * advantages_bt).sum() / total
    return estimate, (ratios_bt * (advantages_bt - estimate)).sum(1) / total
