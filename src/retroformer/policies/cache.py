"""Keys and values that live as long as the episode: one row a slot, each at its own length.

A forward appends to every row at that row's own end. What should not stay (branches of actions) is written behind
the row's end and simply not counted, so the next forward overwrites it. Memory is slots x longest episode.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache


class SlotCache(Cache):
    """A key-value cache for `slots` episodes of ragged lengths, for any model that takes transformers' `Cache`."""

    def __init__(self, slots: int):
        super().__init__(layers=[])
        self.slots = slots
        self.lengths = torch.zeros(slots, dtype=torch.long)
        """Tokens that count, for each slot."""
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._rows = torch.arange(slots)[:, None]
        self._places = torch.zeros(slots, 0, dtype=torch.long)
        self._span = 0

    def begin(self, width: int) -> int:
        """Announce a forward of `width` tokens a slot, appended at each slot's end; returns how many keys it sees."""
        self._places = self.lengths[:, None] + torch.arange(width)
        self._span = int(self.lengths.max()) + width
        return self._span

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):  # noqa: D102
        if layer_idx == len(self.keys):
            self.keys.append(self._room(key_states))
            self.values.append(self._room(value_states))
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            if store[layer_idx].shape[1] < self._span:
                grown = self._room(new)
                grown[:, : store[layer_idx].shape[1]] = store[layer_idx]
                store[layer_idx] = grown
            store[layer_idx][self._rows, self._places] = new.transpose(1, 2)
        span = self._span
        return self.keys[layer_idx][:, :span].transpose(1, 2), self.values[layer_idx][:, :span].transpose(1, 2)

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = like.shape
        length = max(64, 1 << (self._span - 1).bit_length())
        return like.new_zeros(self.slots, length, heads, width)

    def keep(self, counts: torch.Tensor) -> None:
        """Count the first `counts[slot]` tokens of the last forward as part of the episode."""
        self.lengths += counts

    def release(self, slot: int) -> None:
        """Forget a slot's episode."""
        self.lengths[slot] = 0

    def get_seq_length(self, layer_idx: int = 0, cache_position: torch.Tensor | None = None) -> int:  # noqa: D102
        return self._span - self._places.shape[1]
