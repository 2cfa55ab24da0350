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
