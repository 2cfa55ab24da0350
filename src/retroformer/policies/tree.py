"""The prefix tree: one sequence per trajectory, every admissible action of every step a branch of it.

The trunk is the trajectory. The alternatives to the action taken hang off each step's prefix as extra tokens behind
the trunk; a position says how deep a token lies, and it sees the trunk up to its prefix, its ancestors and itself
(`policies.attention`). Actions that begin alike share nodes. The last token of an action predicts nothing that is
asked for, so it is never fed; with actions of one token there are no branch tokens at all and the whole is plainly
causal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from retroformer.errors import PolicyError
from retroformer.policies.layout import Encode, Layout, Transcript
from retroformer.policies.text import TextActions, room
from retroformer.types import Trajectory

Tokens = tuple[int, ...]
BLOCK = 512
"""Nodes of one trie. Where a step needs more they are several tries, so that no mask grows with their square."""


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """The actions of one step as nodes below a prefix, parents before their children.

    Nodes are the tokens that must be fed: token, depth below the prefix from 1, parent node or -1 for the prefix.
    Entries are what is asked for: action, node that predicts or -1 for the prefix, token predicted.
    """

    node_token: np.ndarray
    node_depth: np.ndarray
    node_parent: np.ndarray
    entry_action: np.ndarray
    entry_node: np.ndarray
    entry_token: np.ndarray
    entry_rivals: np.ndarray
    """Which entries compete: those after the same prefix have the same number."""
    entry_twins: np.ndarray
    """How many of its rivals are the same token, itself included: actions that go on alike."""

    @classmethod
    def of(
        cls,
        actions: tuple[Tokens, ...],
        nodes: Sequence[tuple[int, int, int]],
        entries: Sequence[tuple[int, int, int]],
    ) -> Branches:
        """From (token, depth, parent) of each node and (action, node, token) of each entry, in the actions' order."""
        token, depth, parent = np.array(nodes, dtype=np.int64).reshape(-1, 3).T
        action, node, predicted = np.array(entries, dtype=np.int64).reshape(-1, 3).T
        if len(actions) == 1:  # long, where it was generated: nothing competes
            return cls(token, depth, parent, action, node, predicted, np.arange(len(action)), np.ones(len(action)))
        prefixes: dict[Tokens, int] = {}
        rivals = [
            prefixes.setdefault(tokens[:depth], len(prefixes)) for tokens in actions for depth in range(len(tokens))
        ]
        key = np.array(rivals, dtype=np.int64) * (int(predicted.max(initial=0)) + 1) + predicted
        _, same, counts = np.unique(key, return_inverse=True, return_counts=True)
        return cls(
            token, depth, parent, action, node, predicted, np.array(rivals, dtype=np.int64), counts[same].astype(float)
        )

    @property
    def actions(self) -> int:
        """How many there are."""
        return int(self.entry_action[-1]) + 1


@lru_cache(maxsize=1 << 12)
def grow(actions: tuple[Tokens, ...]) -> Branches:
    """The tries of a step's actions, each of little more than BLOCK nodes.

    Raises PolicyError where an action has no tokens, two have the same, or one begins another (they would share a
    node, and the longer one's mass would count for both): the layout's action template needs a terminator.
    """
    tell_apart(actions)
    nodes: list[tuple[int, int, int]] = []
    entries: list[tuple[int, int, int]] = []
    children: dict[tuple[int, int], int] = {}
    block = 0
    for index, tokens in enumerate(actions):
        if len(nodes) - block > BLOCK:
            children, block = {}, len(nodes)
        node = -1
        for depth, token in enumerate(tokens[:-1], start=1):
            entries.append((index, node, token))
            if (node, token) not in children:
                children[node, token] = len(nodes)
                nodes.append((token, depth, node))
            node = children[node, token]
        entries.append((index, node, tokens[-1]))
    return Branches.of(actions, nodes, entries)


def tell_apart(actions: tuple[Tokens, ...], texts: Sequence[str] = ()) -> None:
    """Raise PolicyError where the tokens of an action are none, or those of another or its beginning.

    `texts`: how the actions read, for the message.
    """
    if not actions:
        raise PolicyError(
            "no action is admissible: end the episode there, or leave out steps at which nothing is chosen"
        )

    def named(index: int) -> str:
        return f"{index} ({texts[index]!r:.80})" if texts else str(index)

    for index, tokens in enumerate(actions):
        if not tokens:
            raise PolicyError(
                f"admissible action {named(index)} has no tokens: give it a text, or one that the tokenizer knows"
            )
    # Sorted, an action stands right before those that it begins.
    order = sorted(range(len(actions)), key=actions.__getitem__)
    for one, other in pairwise(order):
        if actions[one] != actions[other][: len(actions[one])]:
            continue
        if texts and texts[one] == texts[other]:
            raise PolicyError(f"admissible action {named(other)} is action {one} once more: list every action once")
        same = len(actions[one]) == len(actions[other])
        raise PolicyError(
            f"admissible action {named(other)} {'has' if same else 'begins with'} the tokens of action {named(one)}: "
            + (
                "name them differently, in words that the tokenizer knows"
                if same
                else "end layout.action in a terminator, such as a newline"
            )
        )


def alone(actions: tuple[Tokens, ...]) -> Branches:
    """Branches that share nothing, one chain of nodes an action."""
    nodes: list[tuple[int, int, int]] = []
    entries: list[tuple[int, int, int]] = []
    for index, tokens in enumerate(actions):
        node = -1
        for depth, token in enumerate(tokens[:-1], start=1):
            entries.append((index, node, token))
            nodes.append((token, depth, node))
            node = len(nodes) - 1
        entries.append((index, node, tokens[-1]))
    return Branches.of(actions, nodes, entries)


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
    ends: list[int] = field(default_factory=list)
    """For each scored step the trunk position of its action's last token, of what closes one that was cut included."""

    @property
    def fed(self) -> int:
        """How many tokens of the trunk predict something that is asked for."""
        last = len(self.roots) - 1
        return self.roots[last] + (len(self.actions[last][0]) if last in self.generated else 1)

    @property
    def observed(self) -> list[int]:
        """Trunk positions whose next token is an observation's, in the layout's words, before another decision."""
        return [place for end, root in zip(self.ends, self.roots[1:], strict=False) for place in range(end, root)]

    def trees(self) -> list[Branches]:
        """The branches of each scored step."""
        return [
            alone(actions) if step in self.generated else grow(actions) for step, actions in enumerate(self.actions)
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
                try:
                    grow(actions)  # which it knows again where the actions are those of another step
                except PolicyError:
                    tell_apart(actions, step.admissible_actions)
                    raise
                needed = max(map(len, actions))
            before = list(transcript.tokens)
            if transcript.observe(step.observation, needed) and window.roots:
                window.tokens = before
                done.append(window)
                window = Window(index, t)
            chosen = 0
            if step.admissible_actions is not None:
                if step.action not in step.admissible_actions:
                    raise PolicyError(
                        f"the action {step.action!r} is not among the {len(actions)} admissible ones: add it to them, "
                        "or leave the trajectory out"
                    )
                chosen = step.admissible_actions.index(step.action)
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
        window.ends.append(len(transcript.tokens) - 1)
    window.tokens = transcript.tokens
    return [*done, window] if window.roots else done
