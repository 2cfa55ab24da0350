"""Baselines, advantages, and their scale.

A baseline that does not depend on the action leaves the expected gradient unchanged on-policy and under importance
weights pi / mu, since sum over a of pi(a) grad log pi(a) = 0 (Williams 1992, section 4; Greensmith et al. 2004). On raw
replay, or with clipped weights, that sum is another one and the baseline also decides what is learned.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from retroformer.objectives.shapes import require

ConstantBaseline = Literal["none", "mean", "task", "leave_one_out"]


def constant_baselines(
    returns_bt: Tensor,
    mask_bt: Tensor,
    kind: ConstantBaseline,
    *,
    task_b: Tensor | None = None,
    instance_b: Tensor | None = None,
) -> Tensor:
    """One number a trajectory: the mean return-to-go over the steps of *other* trajectories (Kool et al. 2019).

    ``none``: 0. ``mean``: all others. ``task``: others of the same task. ``leave_one_out``: other attempts at the same
    task instance; a single attempt falls back to its task. A task seen once falls back to ``mean``, and a lone
    trajectory to 0. A trajectory is never in its own baseline: that would shrink its gradient.

    Give it the whole history once rather than each batch: attempts at one instance seldom meet in a batch.
    returns_bt [B, T], mask_bt [B, T] bool, task_b and instance_b [B] integer labels -> [B].
    """
    require(mask_bt.shape, returns_bt=returns_bt)
    sum_b = torch.where(mask_bt, returns_bt, 0.0).sum(1)
    return baselines_of_sums(sum_b, mask_bt.sum(1), kind, task_b=task_b, instance_b=instance_b)


def baselines_of_sums(
    sum_b: Tensor,
    count_b: Tensor,
    kind: ConstantBaseline,
    *,
    task_b: Tensor | None = None,
    instance_b: Tensor | None = None,
) -> Tensor:
    """`constant_baselines` from each trajectory's sum of returns and its number of steps, for what is not padded.

    sum_b, count_b, task_b and instance_b [B] -> [B].
    """
    require(sum_b.shape, count_b=count_b)
    count_b = count_b.to(sum_b.dtype)
    baseline_b = torch.zeros_like(sum_b)
    labels = {"none": [], "mean": [torch.zeros_like(sum_b, dtype=torch.long)]}
    if kind in ("task", "leave_one_out"):
        if task_b is None or (kind == "leave_one_out" and instance_b is None):
            raise ValueError(f"the baseline {kind} needs {'task_b' if task_b is None else 'instance_b'}")
        labels[kind] = [*labels["mean"], task_b] + ([instance_b] if kind == "leave_one_out" else [])
    for label_b in labels[kind]:  # from coarse to fine: a finer group replaces where it has others
        require(sum_b.shape, label_b=label_b)
        _, group_b = torch.unique(label_b, return_inverse=True)
        zeros_b = torch.zeros_like(sum_b)
        others_b = zeros_b.index_add(0, group_b, sum_b)[group_b] - sum_b
        other_count_b = zeros_b.index_add(0, group_b, count_b)[group_b] - count_b
        baseline_b = torch.where(other_count_b > 0, others_b / other_count_b.clamp(min=1), baseline_b)
    return baseline_b


def advantages(returns_bt: Tensor, baselines_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """A_t = G_t - b_t without a gradient, 0 where there is no step (Williams 1992, eq. 4).

    A learned value goes in as it is: it is detached here. A constant baseline goes in as
    ``baseline_b[:, None].expand_as(returns_bt)``. All [B, T] -> [B, T].
    """
    require(mask_bt.shape, returns_bt=returns_bt, baselines_bt=baselines_bt)
    return torch.where(mask_bt, returns_bt - baselines_bt, 0.0).detach()


def normalise(advantages_bt: Tensor, mask_bt: Tensor, floor: float = 0.1, limit: float = 3.0) -> Tensor:
    """A_t / max(rms, floor), clamped to +-limit; rms is the root of the mean square over the batch's steps.

    The mean is not subtracted: the baseline has done that, and the sign of an advantage means something to TOPR. The
    floor is there because advantages vanish once the task is solved or hopeless: dividing by their deviation then
    blows noise up to full size, and policies have collapsed from that. advantages_bt, mask_bt [B, T] -> [B, T].
    """
    require(mask_bt.shape, advantages_bt=advantages_bt)
    advantages_bt = torch.where(mask_bt, advantages_bt, 0.0)
    rms = (advantages_bt.square().sum() / mask_bt.sum().clamp(min=1)).sqrt()
    return (advantages_bt / rms.clamp(min=floor)).clamp(-limit, limit)
