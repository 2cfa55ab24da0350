"""The shape contract that every function of this package states first."""

from __future__ import annotations

from torch import Size, Tensor


def require(shape: Size | tuple[int, ...], **tensors: Tensor) -> None:
    """Raise ValueError that names the first tensor whose shape is not `shape`, with got and expected.

    Broadcasting is refused on purpose: [B, 1] against [B, T] is a mistake far more often than a wish.
    """
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
