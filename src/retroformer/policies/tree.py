"""The prefix tree: one sequence per trajectory, every admissible action of every step a branch of it.

The trunk is the trajectory. The alternatives to the action taken hang off each step's prefix as extra tokens at the
end of the sequence; a position says how deep a token lies and the mask says what it sees: the trunk up to its
prefix, its ancestors, itself. Actions that begin alike share nodes. The last token of an action predicts nothing that
is asked for, so it is never fed; with actions of one token there are no branch tokens at all and the mask is plain
causal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from retroformer.errors import PolicyError
from retroformer.policies.layout import Encode, Layout, Transcript
from retroformer.policies.text import TextActions, room
from retroformer.types import Trajectory

Tokens = tuple[int, ...]


@dataclass(slots=True)
class Branches:
    """The actions of one step as nodes below a prefix.

    ``nodes``: (token, depth below the prefix from 1, parent node or -1 for the prefix) of what must be fed.
    ``entries``: (action, node that predicts or -1 for the prefix, token predicted).
    """

    nodes: list[tuple[int, int, int]] = field(default_factory=list)
    entries: list[tuple[int, int, int]] = field(default_factory=list)


@lru_cache(maxsize=1 << 16)
def grow(actions: tuple[Tokens, ...]) -> Branches:
    """The trie of a step's actions.

    Raises PolicyError where an action has no tokens, two have the same, or one begins another (they would share a
    node, and the longer one's mass would count for both): the layout's action template needs a terminator.
    """
    branches = Branches()
    children: dict[tuple[int, int], int] = {}
    ends: set[tuple[int, int]] = set()
    for index, tokens in enumerate(actions):
        if not tokens:
            raise PolicyError(f"admissible action {index} has no tokens")
        node = -1
        for depth, token in enumerate(tokens):
            branches.entries.append((index, node, token))
            edge = (node, token)
            if depth + 1 == len(tokens):
                if edge in ends or edge in children:
                    raise PolicyError(f"admissible action {index} has the tokens of another, or begins another")
                ends.add(edge)
            else:
                if edge in ends:
                    raise PolicyError(f"admissible action {index} begins with the tokens of another")
                if edge not in children:
                    children[edge] = len(branches.nodes)
                    branches.nodes.append((token, depth + 1, node))
                node = children[edge]
    return branches


def chain(tokens: Tokens) -> Branches:
    """The only branch of a generated action: its tokens one below the other."""
    nodes = [(token, depth + 1, depth - 1) for depth, token in enumerate(tokens[:-1])]
    return Branches(nodes, [(0, depth - 1, token) for depth, token in enumerate(tokens)])


@dataclass(slots=True)
class Window:
    """The part of a trajectory that fits the model's context: a sequence and the steps scored in it."""

    trajectory: int
    first_step: int
    tokens: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    """For each scored step the trunk position of its prefix's last token."""
    actions: list[tuple[Tokens, ...]] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    generated: set[int] = field(default_factory=set)
    """Which of the scored steps were generated: their one action is the tokens sampled, terminator included."""

    @property
    def fed(self) -> int:
        """How many tokens of the trunk predict something that is asked for."""
        last = len(self.roots) - 1
        return self.roots[last] + (len(self.actions[last][0]) if last in self.generated else 1)

    def trees(self) -> list[Branches]:
        """The branches of each scored step."""
        return [
            chain(actions[0]) if step in self.generated else grow(actions) for step, actions in enumerate(self.actions)
        ]


def windows(
    trajectory: Trajectory, index: int, layout: Layout, encode: Encode, limit: int, text: TextActions
) -> list[Window]:
    """Lay a trajectory out as one window, or several where it exceeds `limit` tokens; steps of both modes may mix.

    Raises PolicyError that names the trajectory and the step.
    """
    reached = trajectory.total_reward if layout.condition_on_return else None
    transcript = Transcript(layout, encode, trajectory.task.description, limit, reached)
    done: list[Window] = []
    window = Window(index, 0)
    for t, step in enumerate(trajectory.steps):
        try:
            generated = step.admissible_actions is None
            if step.admissible_actions is None:
                actions: tuple[Tokens, ...] = (text.tokens(step),)
                needed = max(room(limit), len(actions[0]))
            else:
                actions = tuple(encode(*layout.piece("action", action)) for action in step.admissible_actions)
                needed = max(map(len, actions), default=0)
            before = list(transcript.tokens)
            if transcript.observe(step.observation, needed) and window.roots:
                window.tokens = before
                done.append(window)
                window = Window(index, t)
            chosen = 0
            if step.admissible_actions is not None:
                if step.action not in step.admissible_actions:
                    raise PolicyError(f"the action {step.action!r} is not among the admissible ones")
                chosen = step.admissible_actions.index(step.action)
                grow(actions)
        except PolicyError as error:
            raise PolicyError(f"trajectory {trajectory.id}, step {t}: {error}") from None
        if generated:
            window.generated.add(len(window.roots))
        window.roots.append(len(transcript.tokens) - 1)
        window.actions.append(actions)
        window.chosen.append(chosen)
        transcript.act(actions[chosen])
        if generated:
            transcript.act(text.closing(actions[chosen]))
    window.tokens = transcript.tokens
    return [*done, window] if window.roots else done


@dataclass(slots=True)
class TreeBatch:
    """Windows side by side, ready for one forward. B windows, T steps, A actions, L tokens, N places scored."""

    tokens_bl: torch.Tensor
    positions_bl: torch.Tensor | None
    """None where the sequence is plainly causal."""
    visible_bll: torch.Tensor | None
    """True where a token sees another; None where the sequence is plainly causal."""
    score_n: torch.Tensor
    """Flat places in [B * L] whose next-token distribution is needed; the first B * T are the steps' prefixes."""
    entry_place: torch.Tensor
    entry_token: torch.Tensor
    entry_action: torch.Tensor
    """Entries: place in `score_n`, token predicted there, flat place in [B * T * A] that it counts for."""
    action_mask_bta: torch.Tensor
    lengths_bta: torch.Tensor
    """Tokens of each action, for length normalisation."""
    chosen_bt: torch.Tensor
    mask_bt: torch.Tensor
    generated_bt: torch.Tensor | None = None
    """True where the action was generated; None where none was."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, T, A."""
        b, t, a = self.action_mask_bta.shape
        return b, t, a

    def to(self, device: torch.device) -> TreeBatch:
        """The same on another device."""
        held = {name: getattr(self, name) for name in self.__slots__}
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in held.items()}
        return TreeBatch(**moved)


def collate(batch: Sequence[Window], pad: int) -> TreeBatch:
    """Pad windows to one shape; the last token of the last action of each is not fed."""
    fed = [window.fed for window in batch]
    trees = [window.trees() for window in batch]
    # Nodes along the action taken are on the trunk already, except below the last step's prefix, which is cut off.
    extra: list[list[tuple[int, int, int]]] = []
    place_of: list[list[dict[int, int]]] = []
    for window, tree, length in zip(batch, trees, fed, strict=True):
        nodes: list[tuple[int, int, int]] = []
        places: list[dict[int, int]] = []
        for root, step, actions, chosen in zip(window.roots, tree, window.actions, window.chosen, strict=True):
            place: dict[int, int] = {-1: root}
            taken = actions[chosen]
            on_trunk = {-1}
            for index, (token, depth, parent) in enumerate(step.nodes):
                trunk_place = root + depth
                if parent in on_trunk and token == taken[depth - 1] and trunk_place < length:
                    place[index] = trunk_place
                    on_trunk.add(index)
                else:
                    place[index] = length + len(nodes)
                    nodes.append((token, root + depth, place[parent]))
            places.append(place)
        extra.append(nodes)
        place_of.append(places)

    b = len(batch)
    t = max(len(window.roots) for window in batch)
    a = max(len(actions) for window in batch for actions in window.actions)
    length = max(trunk + len(nodes) for trunk, nodes in zip(fed, extra, strict=True))
    tokens = torch.full((b, length), pad, dtype=torch.long)
    branched = any(extra)
    # Branches make a row longer than the window; what pads the others must still have a position that exists.
    positions = torch.arange(length).clamp(max=max(fed) - 1).repeat(b, 1) if branched else None
    visible = torch.ones(length, length, dtype=torch.bool).tril().repeat(b, 1, 1) if branched else None
    chosen_bt = torch.zeros(b, t, dtype=torch.long)
    action_mask = torch.zeros(b, t, a, dtype=torch.bool)
    lengths = torch.ones(b, t, a)
    roots_bt = torch.zeros(b, t, dtype=torch.long)
    generated = [i * t + step for i, window in enumerate(batch) for step in window.generated]
    generated_bt = torch.zeros(b * t, dtype=torch.bool)
    generated_bt[generated] = True
    inner: list[int] = []
    place_index: dict[int, int] = {}
    entry_place: list[int] = []
    entry_token: list[int] = []
    entry_action: list[int] = []
    for i, (window, tree, nodes, places) in enumerate(zip(batch, trees, extra, place_of, strict=True)):
        trunk = fed[i]
        tokens[i, :trunk] = torch.tensor(window.tokens[:trunk])
        steps = len(window.roots)
        roots_bt[i, :steps] = torch.tensor(window.roots)
        chosen_bt[i, :steps] = torch.tensor(window.chosen)
        if positions is not None and visible is not None:
            for at, (token, position, parent) in enumerate(nodes, start=trunk):
                tokens[i, at] = token
                positions[i, at] = position
                visible[i, at] = visible[i, parent]
                visible[i, at, at] = True
        for j, (step, place) in enumerate(zip(tree, places, strict=True)):
            count = len(window.actions[j])
            action_mask[i, j, :count] = True
            lengths[i, j, :count] = torch.tensor([len(tokens) for tokens in window.actions[j]], dtype=lengths.dtype)
            base = (i * t + j) * a
            for action, node, token in step.entries:
                if node < 0:
                    entry_place.append(i * t + j)
                else:
                    flat = i * length + place[node]
                    entry_place.append(b * t + place_index.setdefault(flat, len(place_index)))
                    if len(place_index) > len(inner):
                        inner.append(flat)
                entry_token.append(token)
                entry_action.append(base + action)
    roots_flat = (roots_bt + torch.arange(b)[:, None] * length).reshape(-1)
    return TreeBatch(
        tokens_bl=tokens,
        positions_bl=positions,
        visible_bll=visible,
        score_n=torch.cat([roots_flat, torch.tensor(inner, dtype=torch.long)]),
        entry_place=torch.tensor(entry_place, dtype=torch.long),
        entry_token=torch.tensor(entry_token, dtype=torch.long),
        entry_action=torch.tensor(entry_action, dtype=torch.long),
        action_mask_bta=action_mask,
        lengths_bta=lengths,
        chosen_bt=chosen_bt,
        mask_bt=action_mask.any(-1),
        generated_bt=generated_bt.view(b, t) if generated else None,
    )


def action_logprobs(
    logits_nv: torch.Tensor,
    batch: TreeBatch,
    temperature: float | torch.Tensor = 1.0,
    length_normalised: bool = False,
) -> torch.Tensor:
    """log pi(a | h) of every admissible action, [B, T, A] in nats; -inf where there is no action.

    pi is the softmax over the admissible actions of their log-likelihoods divided by `temperature` (a number, or
    [B, 1, 1]), each the sum of its tokens' log-probabilities (their mean with `length_normalised`).
    A generated action stands alone: its log pi is the sum over its tokens, terminator included, of their
    log-probabilities in the softmax over the vocabulary of logits / `temperature`, as they were sampled; there are no
    alternatives to normalise over, and its length always counts.
    """
    b, t, a = batch.shape
    if batch.generated_bt is not None:
        logits_nv = logits_nv / _temperatures(batch, temperature, logits_nv)[:, None]
    token_logprobs = logits_nv.log_softmax(-1)[batch.entry_place, batch.entry_token]
    likelihood = token_logprobs.new_zeros(b * t * a).index_add(0, batch.entry_action, token_logprobs).view(b, t, a)
    scores = likelihood / batch.lengths_bta if length_normalised else likelihood
    scores = (scores / temperature).masked_fill(~batch.action_mask_bta, float("-inf"))
    # A step that is only padding has no action: give it a harmless row, so that no gradient turns into NaN.
    scores = scores.masked_fill(~batch.mask_bt[..., None], 0.0)
    log_pi = scores.log_softmax(-1)
    if batch.generated_bt is not None:
        log_pi = torch.where(batch.generated_bt[..., None], likelihood, log_pi)
    return log_pi.masked_fill(~batch.action_mask_bta, float("-inf"))


def _temperatures(batch: TreeBatch, temperature: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What divides the logits of each place, [N]: `temperature` where a token was sampled, 1 where actions compete.

    Each place belongs to one step, since an observation, which has tokens, lies between two.
    """
    assert batch.generated_bt is not None
    b, t, a = batch.shape
    of_step = torch.as_tensor(temperature, dtype=like.dtype, device=like.device).expand(b, 1, 1)[..., 0].expand(b, t)
    of_step = torch.where(batch.generated_bt, of_step, 1.0).flatten()
    return like.new_ones(len(like)).index_put((batch.entry_place,), of_step[batch.entry_action // a])
