"""Returns from rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from retroformer.objectives.shapes import require


def returns_to_go(rewards_bt: Tensor, mask_bt: Tensor, discount: float) -> Tensor:
    """G_t = r_t + discount G_(t+1) (Sutton and Barto 2018, eq. 3.9), 0 where there is no step.

    rewards_bt [B, T] float, mask_bt [B, T] bool -> [B, T].
    """
    require(mask_bt.shape, rewards_bt=rewards_bt)
    rewards_bt = torch.where(mask_bt, rewards_bt, 0.0)
    returns_bt = torch.empty_like(rewards_bt)
    following_b = rewards_bt.new_zeros(rewards_bt.shape[0])
    for t in reversed(range(rewards_bt.shape[1])):
        following_b = rewards_bt[:, t] + discount * following_b
        returns_bt[:, t] = following_b
    return torch.where(mask_bt, returns_bt, 0.0)


def lambda_returns(returns_bt: Tensor, values_bt: Tensor, mask_bt: Tensor, discount: float, decay: float) -> Tensor:
    """G^l_t = r_t + discount ((1 - l) V_(t+1) + l G^l_(t+1)) (Sutton and Barto 2018, eq. 12.2), l being `decay`.

    Minus V it is the generalised advantage estimate (Schulman et al. 2016, eq. 16): 1 is the return itself, without
    bias, and every step takes the blame for all that came after it; less has less variance, and the bias of V. The
    rewards are those of `returns_to_go` with the same discount; values are detached. The last step of a row keeps its
    return: nothing comes after it, or, where the row is a window of a longer trajectory, no value is at hand.
    All [B, T] -> [B, T], 0 where there is no step.
    """
    require(mask_bt.shape, returns_bt=returns_bt, values_bt=values_bt)
    returns_bt = torch.where(mask_bt, returns_bt, 0.0)
    values_bt = torch.where(mask_bt, values_bt.detach(), 0.0)
    rewards_bt = returns_bt - discount * after(returns_bt)
    # The same recursion as a return's, over rewards that have a share of the next value in them.
    return returns_to_go(rewards_bt + discount * (1 - decay) * after(values_bt), mask_bt, discount * decay)


def after(values_bt: Tensor) -> Tensor:
    """Of each step the value at the next one, and 0 at the last. [B, T] -> [B, T]."""
    return torch.nn.functional.pad(values_bt, (0, 1))[:, 1:]
