"""Which step of which trajectory broke an update: noted on the device at every one, read where one was broken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.tree import Window

if TYPE_CHECKING:
    from retroformer.training.replay import Minibatch

REMEDY = "lower train.learning_rate, or start from another checkpoint"
NAMES = ("log-probability", "behaviour's log-probability", "advantage", "return", "value")
"""Of a step, in nats and in units of reward."""


def suspect(
    batch: Minibatch, logprobs_bt: torch.Tensor, advantages_bt: torch.Tensor, values_bt: torch.Tensor
) -> torch.Tensor:
    """[1 + NAMES]: flat place in [W, T] of the first step that has no finite numbers, and these numbers.

    Where all steps have, the one with the largest. The host does not wait for it.
    """
    behaviour_bt = batch.behaviour_logprobs_bt
    numbers = torch.stack(
        [logprobs_bt, torch.where(behaviour_bt.isnan(), 0.0, behaviour_bt), advantages_bt, batch.returns_bt, values_bt]
    ).detach()
    numbers = numbers.masked_fill(~batch.mask_bt, 0.0).flatten(1)
    size = torch.where(numbers.isfinite().all(0), numbers.abs().sum(0), torch.inf)
    # The first of the largest, whichever of equals a device finds.
    place = torch.where(size == size.max(), torch.arange(len(size), 0, -1, device=size.device), 0).argmax().view(1)
    return torch.cat([place.to(numbers.dtype), numbers.index_select(1, place)[:, 0]])


def accusation(
    row: Sequence[float],
    windows: Sequence[tuple[str, int]],
    width: int,
    step: Callable[[str, int], int | None],
) -> str:
    """A sentence from what `suspect` noted of a batch of `windows` (see `Minibatch.windows`) of `width` steps.

    `step` finds the step that alone breaks a window: attention multiplies what it does not see by 0, and 0 times no
    number is none, so that the first step seems broken by a later one.
    """
    window, t = divmod(int(row[0]), width)
    trajectory, first = windows[window]
    numbers = dict(zip(NAMES, row[1:], strict=True))
    listed = ", ".join(f"{name} {number:.3g}" for name, number in numbers.items())
    if not all(math.isfinite(numbers[name]) for name in ("return", "behaviour's log-probability")):
        remedy = "mend the rewards and log-probabilities of that trajectory in the history, or leave it out"
    elif not all(math.isfinite(numbers[name]) for name in ("log-probability", "value")):
        remedy = f"the model gives no number there: {REMEDY}"
        found = step(trajectory, first)
        t = t if found is None else found
    else:
        remedy = "lower train.learning_rate, or look for extreme rewards or log-probabilities in that trajectory"
    return f"trajectory {trajectory}, step {first + t} ({listed}): {remedy}"


@torch.no_grad()
def breaking(policy: LanguageModelPolicy, window: Window) -> int | None:
    """The first step of a window up to which it has a log-probability that is no finite number; None where none is."""
    for t, (root, chosen) in enumerate(zip(window.roots, window.chosen, strict=True)):
        steps = t + 1
        until = replace(
            window,
            tokens=window.tokens[: root + 1 + len(window.actions[t][chosen])],
            roots=window.roots[:steps],
            actions=window.actions[:steps],
            chosen=window.chosen[:steps],
            generated={one for one in window.generated if one < steps},
        )
        if not bool(policy.score(policy.collate([until]))[0, t, chosen].isfinite()):
            return t
    return None


def first_broken(
    logprobs_bt: torch.Tensor, windows: Sequence[tuple[str, int]], step: Callable[[str, int], int | None]
) -> str | None:
    """The start of a sentence that names the first step without a finite log-probability; None where all have one."""
    if bool(logprobs_bt.isfinite().all()):
        return None
    window, t = (~logprobs_bt.isfinite()).nonzero()[0].tolist()
    trajectory, first = windows[window]
    found = step(trajectory, first)
    t = t if found is None else found
    return f"there is no finite log-probability for trajectory {trajectory}, step {first + t}"
