"""Attention over a prefix tree: the trunk causally, then its branches as queries over the trunk and themselves.

One dense mask over trunk and branches would cost as much as all pairs of tokens. Here the trunk is plainly causal, and
branch tokens come in chunks, each of which sees the trunk only as far as its prefixes reach and the branch tokens of
its own steps. Registered as an attention function of transformers, it serves every model that takes its attention
from there; without branches it is the library's ``sdpa``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX_TREE = "prefix_tree"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring columns of branch tokens, and what they see. B rows, Q queries, K keys."""

    start: int
    stop: int
    """The queries are the columns from `start` to `stop`."""
    reach: int
    """The trunk's columns from 0 to `reach` are keys,"""
    first: int
    """and the columns from `first` to `stop`, the chunk and its ancestors among them."""
    visible_bqk: torch.Tensor
    """True where a query sees a key; as a mask to be added (see `additive`) when attention is computed."""


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask that is added to attention scores: 0 where visible, the type's minimum where not."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def dense(chunks: Sequence[Chunk], length: int) -> torch.Tensor:
    """What each of `length` columns sees, as one mask [B, 1, L, L], for models that take their attention elsewhere."""
    b, trunk = len(chunks[0].visible_bqk), chunks[0].start
    visible = torch.zeros(b, length, length, dtype=torch.bool, device=chunks[0].visible_bqk.device)
    visible[:, :trunk, :trunk] = torch.ones(trunk, trunk, dtype=torch.bool, device=visible.device).tril()
    for one in chunks:
        visible[:, one.start : one.stop, : one.reach] = one.visible_bqk[..., : one.reach]
        visible[:, one.start : one.stop, one.first : one.stop] = one.visible_bqk[..., one.reach :]
    return visible[:, None]


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    branches: Sequence[tuple[Chunk, torch.Tensor]] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries [B, H, L, d], the branches' columns behind the trunk's. Returns [B, L, H, d].

    `branches` are the chunks with their additive masks [B, 1, Q, K], behind a causal trunk; `attention_mask` counts
    only where they are None, which is no tree.
    """
    if not branches:
        return _attend(module, query, key, value, attention_mask if branches is None else None, options), None
    trunk = branches[0][0].start
    parts = [_attend(module, query[:, :, :trunk], key[:, :, :trunk], value[:, :, :trunk], None, options)]
    for one, mask in branches:
        keys, values = (
            torch.cat([states[:, :, : one.reach], states[:, :, one.first : one.stop]], 2) for states in (key, value)
        )
        parts.append(_attend(module, query[:, :, one.start : one.stop], keys, values, mask, options))
    return torch.cat(parts, 1), None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """The library's ``sdpa``, [B, L, H, d]; without its copies of keys shared by heads where no kernel needs them."""
    if mask is None or query.device.type != "cpu" or key.shape[1] == query.shape[1]:
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=True
    )
    return attended.transpose(1, 2)


ALL_ATTENTION_FUNCTIONS.register(PREFIX_TREE, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PREFIX_TREE, sdpa_mask)  # for forwards that are no tree's
