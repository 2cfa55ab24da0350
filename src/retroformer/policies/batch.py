"""Windows side by side, ready for one forward, and the log-probabilities of actions that come out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from retroformer.policies.attention import Chunk
from retroformer.policies.tree import Branches, Window, alone

OBSERVED = 256
"""Tokens of observations that a batch predicts at most: the output layer costs as much for each as for a whole step."""
WIDTH = 128
"""Branch tokens that are queries together; fewer see less that is not theirs, more are fewer calls."""


PINNED = ("cuda",)
"""Devices that copy from pinned memory while the host goes on."""


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor`, which the host made, on a device, for which the host does not wait."""
    if device.type in PINNED:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True, slots=True, eq=False)
class TreeBatch:
    """B windows, T steps, A actions, L columns of tokens, N places scored."""

    tokens_bl: torch.Tensor
    positions_bl: torch.Tensor | None
    """None where the rows are plainly causal."""
    branches: tuple[Chunk, ...]
    """The columns behind the trunks and what they see; none where the rows are plainly causal."""
    score_n: torch.Tensor
    """Flat places in `tokens_bl` whose next-token distribution is needed; the first B * T are the steps' prefixes, and
    the last P predict `observed_token`."""
    entry_place: torch.Tensor
    entry_token: torch.Tensor
    entry_action: torch.Tensor
    """Entries: place in `score_n`, token predicted there, flat place in [B * T * A] that it counts for."""
    entry_rivals: torch.Tensor
    """Which entries compete, below E: those of a step that follow the same prefix have the same number."""
    entry_twins: torch.Tensor
    """How many of its rivals are the same token, itself included."""
    action_mask_bta: torch.Tensor
    chosen_bt: torch.Tensor
    mask_bt: torch.Tensor
    generated_bt: torch.Tensor | None = None
    """True where the action was generated; None where none was."""
    generated_entries: torch.Tensor | None = None
    """The entries of generated actions, for which the whole vocabulary competes."""
    observed_token: torch.Tensor | None = None
    """[P]: the tokens of the observations between the window's decisions; None where they are not asked for."""
    lengths: tuple[tuple[int, int], ...] = ()
    """(rows, tokens): how many rows, in their order, have how many tokens; of sequences alone, which are not padded."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, T, A."""
        b, t, a = self.action_mask_bta.shape
        return b, t, a

    def to(self, device: torch.device) -> TreeBatch:
        """The same on another device; see `moved`."""
        held: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        there = {name: moved(value, device) for name, value in held.items() if isinstance(value, torch.Tensor)}
        chunks = tuple(replace(one, visible_bqk=moved(one.visible_bqk, device)) for one in self.branches)
        return replace(self, **there, branches=chunks)


@dataclass(slots=True)
class Steps:
    """All steps of a batch one after the other, and their nodes and entries likewise, as flat arrays.

    A node's parent and an entry's node are places in these arrays, -1 for the step's prefix.
    """

    row: np.ndarray
    column: np.ndarray
    root: np.ndarray
    chosen: np.ndarray
    trees: list[Branches]
    step_of_node: np.ndarray
    node_token: np.ndarray
    node_depth: np.ndarray
    node_parent: np.ndarray
    step_of_entry: np.ndarray
    entry_action: np.ndarray
    entry_node: np.ndarray
    entry_token: np.ndarray
    entry_rivals: np.ndarray
    entry_twins: np.ndarray

    @classmethod
    def of(cls, batch: Sequence[Window], trees: list[Branches]) -> Steps:
        """The steps of these windows, in their order, with the branches of each."""
        counts = [len(window.roots) for window in batch]
        nodes = np.array([len(tree.node_token) for tree in trees])
        entries = np.array([len(tree.entry_token) for tree in trees])
        start, first = nodes.cumsum() - nodes, entries.cumsum() - entries
        step_of_node, step_of_entry = (np.repeat(np.arange(len(trees)), count) for count in (nodes, entries))

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(tree, name) for tree in trees])

        parent, node = joined("node_parent"), joined("entry_node")
        return cls(
            row=np.repeat(np.arange(len(batch)), counts),
            column=np.concatenate([np.arange(count) for count in counts]),
            root=np.concatenate([window.roots for window in batch]),
            chosen=np.concatenate([window.chosen for window in batch]),
            trees=trees,
            step_of_node=step_of_node,
            node_token=joined("node_token"),
            node_depth=joined("node_depth"),
            node_parent=np.where(parent < 0, -1, parent + start[step_of_node]),
            step_of_entry=step_of_entry,
            entry_action=joined("entry_action"),
            entry_node=np.where(node < 0, -1, node + start[step_of_entry]),
            entry_token=joined("entry_token"),
            entry_rivals=joined("entry_rivals") + first[step_of_entry],
            entry_twins=joined("entry_twins"),
        )


def collate(batch: Sequence[Window], pad: int, observed: Sequence[Sequence[int]] | None = None) -> TreeBatch:
    """Trunks side by side from column 0 and the branches behind the longest; what predicts nothing is not fed.

    `observed`: places of each window that are to predict their next token, see `observed_places`.
    """
    steps = Steps.of(batch, [tree for window in batch for tree in window.trees()])
    fed = np.array([window.fed for window in batch])
    b, trunk = len(batch), int(fed.max())
    row = steps.row[steps.step_of_node]
    depth = steps.root[steps.step_of_node] + steps.node_depth

    # Nodes along the action taken are on the trunk already, except below the last step's prefix, which is cut off.
    taken = steps.entry_node[(steps.entry_action == steps.chosen[steps.step_of_entry]) & (steps.entry_node >= 0)]
    off_trunk = np.ones(len(row), dtype=bool)
    off_trunk[taken] = depth[taken] >= fed[row[taken]]
    extra = np.bincount(row[off_trunk], minlength=b)
    rank = off_trunk.cumsum() - 1 - (extra.cumsum() - extra)[row]
    place = np.where(off_trunk, trunk + rank, depth)
    length = trunk + int(extra.max())

    tokens = np.full((b, length), pad)
    for i, window in enumerate(batch):
        tokens[i, : fed[i]] = window.tokens[: fed[i]]
    positions, chunks = None, ()
    if length > trunk:
        tokens[row[off_trunk], place[off_trunk]] = steps.node_token[off_trunk]
        positions = np.zeros((b, length), dtype=np.int64)
        positions[:, :trunk] = np.arange(trunk)
        positions[row[off_trunk], place[off_trunk]] = depth[off_trunk]
        chunks = _chunks(steps, row, place, depth, off_trunk, (b, trunk, length))
    laid = _batch(batch, steps, steps.row * length + steps.root, row * length + place, tokens, positions, chunks)
    return laid if observed is None else _observing(laid, batch, observed, np.arange(b) * length)


def _observing(
    laid: TreeBatch, batch: Sequence[Window], observed: Sequence[Sequence[int]], start: np.ndarray
) -> TreeBatch:
    """The same, asked for the tokens behind these places of each window; `start`: flat place of its first token."""
    places = np.concatenate([first + np.array(own, dtype=np.int64) for first, own in zip(start, observed, strict=True)])
    tokens = [window.tokens[place + 1] for window, own in zip(batch, observed, strict=True) for place in own]
    scored = torch.cat([laid.score_n, torch.from_numpy(places)])
    return replace(laid, score_n=scored, observed_token=torch.tensor(tokens, dtype=torch.long))


def observed_places(batch: Sequence[Window], phase: float) -> list[list[int]]:
    """Of each window places whose next token is an observation's: all, or OBSERVED of the batch's, evenly spaced.

    `phase`, drawn from [0, 1), says where the first lies, so that each place is as probable as any other.
    """
    every = [window.observed for window in batch]
    count = sum(map(len, every))
    if count <= OBSERVED:
        return every
    kept = np.zeros(count, dtype=bool)
    kept[((np.arange(OBSERVED) + phase) * count / OBSERVED).astype(np.int64).clip(max=count - 1)] = True
    pieces = np.split(kept, np.cumsum([len(own) for own in every])[:-1])
    return [
        [place for place, one in zip(own, piece, strict=True) if one] for own, piece in zip(every, pieces, strict=True)
    ]


def _chunks(
    steps: Steps, row: np.ndarray, place: np.ndarray, depth: np.ndarray, off_trunk: np.ndarray, shape: tuple
) -> tuple[Chunk, ...]:
    """What the branches see, chunk by chunk: the trunk up to `seen`, their ancestors off the trunk, themselves."""
    b, trunk, length = shape
    parent = steps.node_parent
    top = off_trunk & ((parent < 0) | ~off_trunk[parent])
    above = np.where(parent < 0, depth - steps.node_depth, depth[parent])
    seen = _inherited(np.where(top, above, -1), parent, off_trunk)
    oldest = _inherited(np.where(top, place, -1), parent, off_trunk)
    # What only pads a row sees the first token, so that every query sees something.
    seen_bl = np.zeros((b, length), dtype=np.int64)
    seen_bl[row[off_trunk], place[off_trunk]] = seen[off_trunk]
    chunks = []
    for start in range(trunk, length, WIDTH):
        stop = min(start + WIDTH, length)
        here = np.flatnonzero((place >= start) & (place < stop))
        reach, first = int(seen[here].max()) + 1, int(oldest[here].min())
        visible = np.zeros((b, stop - start, reach + stop - first), dtype=bool)
        visible[..., :reach] = np.arange(reach) <= seen_bl[:, start:stop, None]
        ancestor = here
        while len(here):
            visible[row[here], place[here] - start, reach + place[ancestor] - first] = True
            ancestor = parent[ancestor]
            further = (ancestor >= 0) & off_trunk[ancestor]
            here, ancestor = here[further], ancestor[further]
        chunks.append(Chunk(start, stop, reach, first, torch.from_numpy(visible)))
    return tuple(chunks)


def _inherited(value: np.ndarray, parent: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Each wanted node's `value`, or where it is -1 that of the nearest ancestor that has one."""
    missing = np.flatnonzero(wanted & (value < 0))
    while len(missing):
        value[missing] = value[parent[missing]]
        missing = missing[value[missing] < 0]
    return value


def collate_sequences(batch: Sequence[Window], pad: int, observed: Sequence[Sequence[int]] | None = None) -> TreeBatch:
    """The same without a tree: every action of every step is a row of its own, behind its prefix once more.

    For models that can be trusted with plain forwards alone: rows are sorted by length, so that those of one length can
    go through the model together and none is padded. Exact, and as slow as it sounds.
    """
    steps = Steps.of(batch, [alone(actions) for window in batch for actions in window.actions])
    counts = np.array([tree.actions for tree in steps.trees])
    first = counts.cumsum() - counts
    inner = steps.entry_node >= 0
    action = np.empty_like(steps.node_token)
    action[steps.entry_node[inner]] = steps.entry_action[inner]
    rows = [
        [*window.tokens[: root + 1], *tokens[:-1]]
        for window in batch
        for root, actions in zip(window.roots, window.actions, strict=True)
        for tokens in actions
    ]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    length = len(rows[order[-1]])
    tokens = np.full((len(rows), length), pad)
    for row, own in enumerate(rows):
        tokens[rank[row], : len(own)] = own
    at = rank[first[steps.step_of_node] + action] * length + steps.root[steps.step_of_node] + steps.node_depth
    laid = _batch(batch, steps, rank[first] * length + steps.root, at, tokens, None, ())
    counted = Counter(map(len, rows))
    laid = replace(laid, lengths=tuple((counted[own], own) for own in sorted(counted)))
    last = np.cumsum([len(window.roots) for window in batch]) - 1  # whose prefix has all observations
    return laid if observed is None else _observing(laid, batch, observed, rank[first[last]] * length)


def _batch(
    batch: Sequence[Window],
    steps: Steps,
    root_place: np.ndarray,
    node_place: np.ndarray,
    tokens: np.ndarray,
    positions: np.ndarray | None,
    chunks: tuple[Chunk, ...],
) -> TreeBatch:
    """The batch from where its prefixes and nodes lie in `tokens`."""
    counts = np.array([tree.actions for tree in steps.trees])
    b, t, a = len(batch), int(steps.column.max()) + 1, int(counts.max())
    step = steps.row * t + steps.column
    roots, chosen = np.zeros(b * t, dtype=np.int64), np.zeros(b * t, dtype=np.int64)
    roots[step], chosen[step] = root_place, steps.chosen
    mask = np.zeros((b * t, a), dtype=bool)
    mask[step] = np.arange(a) < counts[:, None]
    generated = np.zeros((b, t), dtype=bool)
    for i, window in enumerate(batch):
        generated[i, list(window.generated)] = True
    of_entry = step[steps.step_of_entry]
    tensor = torch.from_numpy
    return TreeBatch(
        tokens_bl=tensor(tokens),
        positions_bl=None if positions is None else tensor(positions),
        branches=chunks,
        score_n=tensor(np.concatenate([roots, node_place])),
        entry_place=tensor(np.where(steps.entry_node < 0, of_entry, b * t + steps.entry_node)),
        entry_token=tensor(steps.entry_token),
        entry_action=tensor(of_entry * a + steps.entry_action),
        entry_rivals=tensor(steps.entry_rivals),
        entry_twins=tensor(steps.entry_twins),
        action_mask_bta=tensor(mask).view(b, t, a),
        chosen_bt=tensor(chosen).view(b, t),
        mask_bt=tensor(mask.any(1)).view(b, t),
        generated_bt=tensor(generated) if generated.any() else None,
        generated_entries=tensor(np.flatnonzero(generated.flat[of_entry])) if generated.any() else None,
    )


def temperatures(batch: TreeBatch, temperature: float | torch.Tensor) -> torch.Tensor | float:
    """`temperature` (a number, or [B, 1, 1]) for each entry."""
    if not isinstance(temperature, torch.Tensor):
        return temperature
    b, t, a = batch.shape
    return temperature.expand(b, 1, 1).flatten()[batch.entry_action // (t * a)]


def rival_logprobs(logits: torch.Tensor, batch: TreeBatch) -> torch.Tensor:
    """log p of each entry's token among its rivals, from their logits; both [E], in nats.

    Rivals are the different tokens that, after the same prefix, go on with an admissible action.
    """
    rivals = batch.entry_rivals
    highest = torch.full_like(logits, float("-inf")).scatter_reduce(0, rivals, logits.detach(), "amax")
    above = logits - highest[rivals]
    mass = torch.zeros_like(logits).index_add(0, rivals, above.exp() / batch.entry_twins.to(logits.dtype))
    return above - mass[rivals].log()


def action_logprobs(token_logprobs: torch.Tensor, batch: TreeBatch) -> torch.Tensor:
    """log pi(a | h) of each admissible action, [B, T, A] in nats: the sum over its tokens; -inf where there is none."""
    b, t, a = batch.shape
    log_pi = token_logprobs.new_zeros(b * t * a).index_add(0, batch.entry_action, token_logprobs).view(b, t, a)
    return log_pi.masked_fill(~batch.action_mask_bta, float("-inf"))
