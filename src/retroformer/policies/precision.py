"""Numbers as products in a lower precision take them, and as sums and softmaxes should."""

from __future__ import annotations

import torch


def rounded(numbers: torch.Tensor) -> torch.Tensor:
    """In the precision of the autocast in force, if there is one: what it would make of them at every product."""
    kind = numbers.device.type
    return numbers.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else numbers


def widened(numbers: torch.Tensor) -> torch.Tensor:
    """In fp32 or better."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
