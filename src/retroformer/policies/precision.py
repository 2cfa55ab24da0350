"""Numbers as products in a lower precision take them, and as sums and softmaxes should."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def rounded(numbers: torch.Tensor) -> torch.Tensor:
    """In the precision of the autocast in force, if there is one: what it would make of them at every product."""
    kind = numbers.device.type
    lower = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return numbers.to(torch.get_autocast_dtype(kind)) if lower else numbers


def unrounded(kind: str) -> AbstractContextManager[Any]:
    """While the block lasts, products on this kind of device are in the precision of what is multiplied."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def widened(numbers: torch.Tensor) -> torch.Tensor:
    """In fp32 or better."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
