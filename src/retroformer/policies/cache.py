"""Keys and values that live as long as the episode: one row a slot, each at its own length.

A forward appends to the rows of the slots that it is about, each at its own end. What should not stay (branches of
actions) is written behind a row's end and simply not counted, so the next forward overwrites it. Room is made for the
longest episode and given back when it has ended: memory is slots x longest episode at work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache

from retroformer.policies.batch import moved
from retroformer.policies.precision import rounded

ROOM = 64
"""Least tokens that there is room for."""


class SlotCache(Cache):
    """A key-value cache for `slots` episodes of ragged lengths, for any model that takes transformers' `Cache`."""

    def __init__(self, slots: int):
        super().__init__(layers=[])
        self.slots = slots
        self.lengths = np.zeros(slots, dtype=np.int64)
        """Tokens that count, for each slot."""
        self.keys: list[torch.Tensor] = []
        """Of each layer, [slots, room, heads, width of a head]; so are `values`."""
        self.values: list[torch.Tensor] = []
        self._at: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rows: torch.Tensor | slice = slice(None)
        self._width = self._span = self._room = 0

    def begin(self, slots: Sequence[int], width: int, device: torch.device) -> int:
        """Announce a forward of `width` tokens of these slots, appended at each one's end; returns how many keys it
        sees."""
        rows = moved(torch.tensor(slots), device)
        ends = self.lengths[slots]
        self._at = (rows[:, None], moved(torch.from_numpy(ends[:, None] + np.arange(width)), device))
        # Rows that lie side by side, in their order, are a part of the store itself; of others a copy must be made.
        beside = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        self._rows = slice(slots[0], slots[0] + len(slots)) if beside else rows
        self._width, self._span = width, int(ends.max()) + width
        needed = max(self._span, int(self.lengths.max()))
        if not needed <= self._room <= max(ROOM, 4 * needed):
            self._room = max(ROOM, 1 << (needed - 1).bit_length())
        return self._span

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):  # noqa: D102
        # Rounded as attention would round them each time anew.
        keys, values = rounded(key_states), rounded(value_states)
        return self._append(self.keys, layer_idx, keys), self._append(self.values, layer_idx, values)

    def _append(self, stores: list[torch.Tensor], layer: int, new: torch.Tensor) -> torch.Tensor:
        """Write states [R, heads, tokens, width] behind the rows' ends; all that the rows hold."""
        if layer == len(stores):
            stores.append(self._make(new, 0))
        if stores[layer].shape[1] != self._room:
            grown, kept = self._make(new, self._room), min(stores[layer].shape[1], self._room)
            grown[:, :kept] = stores[layer][:, :kept]
            stores[layer] = grown
        stores[layer][self._at] = new.transpose(1, 2)
        return stores[layer][self._rows, : self._span].transpose(1, 2)

    def _make(self, like: torch.Tensor, room: int) -> torch.Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros(self.slots, room, heads, width)

    def keep(self, slots: Sequence[int], counts: np.ndarray) -> None:
        """Count the first tokens of the last forward as part of the episodes, so many for each of these slots."""
        self.lengths[slots] += counts

    def crop(self, slot: int, length: int) -> None:
        """Forget what a slot holds behind its first `length` tokens."""
        self.lengths[slot] = min(self.lengths[slot], length)

    def get_seq_length(self, layer_idx: int = 0, cache_position: torch.Tensor | None = None) -> int:  # noqa: D102
        return self._span - self._width
