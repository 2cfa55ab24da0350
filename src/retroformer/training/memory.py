"""How many windows go through the model together: as many as memory holds, known before the first one does.

What a forward keeps for its backward is measured once, at two lengths, by counting what autograd saves; it grows with
the tokens, and where a model makes whole attention matrices with their square.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.autograd.graph import saved_tensors_hooks

from retroformer.policies.language_model import LanguageModelPolicy
from retroformer.policies.tree import Window

SHARE = 0.25
"""Of the memory that is free, what a batch may take: others train beside it, and a backward needs room of its own."""
LENGTHS = (64, 192)
"""Tokens of the two windows that are measured."""
CGROUP = Path("/sys/fs/cgroup")
COPIES = 4
"""Of the trained parameters, still to come: gradient, two moments, the best checkpoint."""


@dataclass(frozen=True, slots=True)
class Memory:
    """`budget` bytes are allowed; a row of L tokens keeps `linear` L + `quadratic` L^2 bytes for the backward."""

    budget: int
    linear: float
    quadratic: float
    checkpointed: float
    """Bytes a token with gradient checkpointing: the layers' inputs and one layer's own."""

    def rows(self, length: int, checkpointing: bool = False) -> int:
        """How many rows of `length` tokens fit the budget; 0 where not even one does."""
        linear = self.checkpointed if checkpointing else self.linear
        return int(self.budget / max(1.0, linear * length + self.quadratic * length**2))

    def parts(self, windows: Sequence[Window], policy: LanguageModelPolicy, checkpointing: bool) -> list[list[Window]]:
        """The windows in their order, cut where the next one's rows would no longer fit."""
        parts: list[list[Window]] = []
        count, longest = 0, 0
        for window in windows:
            rows, length = shape(window, policy)
            count, longest = count + rows, max(longest, length)
            if not parts or count > self.rows(longest, checkpointing):
                parts.append([])
                count, longest = rows, length
            parts[-1].append(window)
        return parts


def allowed(device: torch.device, parameters: Iterable[torch.nn.Parameter]) -> int:
    """Bytes that a batch may take on this device: a power of two, so that it is the same from run to run."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = min(psutil.virtual_memory().available, _left_in_container())
    free -= COPIES * sum(parameter.nbytes for parameter in parameters)
    return 1 << max(0, int(SHARE * free).bit_length() - 1) if free > 0 else 0


def _left_in_container() -> float:
    """Bytes below the limit of the control group that this process is in; no limit is infinite."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):
        return math.inf


def checkpoint_layers(model: Any) -> bool:
    """Keep each layer's input alone and compute the rest again in the backward; False where the model cannot.

    The layers are told that they train, their parts are not: dropout stays off, also where a layer has it as a function
    of its own numbers (OPT, Falcon).
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        return False
    model.activation_checkpointing_enable({"use_reentrant": False})
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = True
        for name, value in vars(layer).items():
            if isinstance(value, float) and ("dropout" in name or "layerdrop" in name):
                setattr(layer, name, 0.0)
    return bool(layers)


def shape(window: Window, policy: LanguageModelPolicy) -> tuple[int, int]:
    """Rows that a window becomes, and the most tokens that a row has."""
    if policy.method == "sequences":
        longest = max(len(action) for actions in window.actions for action in actions)
        return sum(map(len, window.actions)), len(window.tokens) + longest
    chosen = [actions for step, actions in enumerate(window.actions) if step not in window.generated]
    return 1, len(window.tokens) + sum(len(action) - 1 for actions in chosen for action in actions)


def measure(policy: LanguageModelPolicy) -> Memory:
    """What the policy keeps for a backward, by counting; nothing is allowed yet."""
    short, long = (min(length, policy.limit) for length in LENGTHS)
    small, large = kept(policy, short), kept(policy, long)
    quadratic = max(0.0, (large / long - small / short) / (long - short)) if long > short else 0.0
    linear = large / long - quadratic * long
    config = policy.model.config
    inputs = config.num_hidden_layers * config.hidden_size * policy.model.dtype.itemsize
    return Memory(0, linear, quadratic, linear / config.num_hidden_layers + inputs)


def kept(policy: LanguageModelPolicy, length: int) -> int:
    """Bytes that autograd keeps of the forward of one window of `length` tokens, parameters left out."""
    known = {parameter.untyped_storage()._cdata for parameter in policy.model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Any] = []  # or the next one could have the number of one that is gone

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    window = Window(0, 0, [policy.pad] * length, [length - 1], [((policy.pad,),)], [0])
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.hidden(policy.collate([window]))
    return sum(sizes.values())
