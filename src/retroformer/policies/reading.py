"""The model read while acting: what it gives each action, or each next token, after each slot's history.

`Cached` keeps what it has read of each slot and feeds only what is new, with the branches of the actions behind it;
`Plain` reads everything anew each time, for models that cannot be scored as trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from retroformer.policies.attention import additive
from retroformer.policies.batch import moved
from retroformer.policies.cache import SlotCache
from retroformer.policies.tree import Branches, Tokens, Window, grow

if TYPE_CHECKING:
    from retroformer.policies.language_model import LanguageModelPolicy

PART = 1024
"""Branch tokens of one slot in one forward; where its actions have more they are read in parts."""
MASK = 1 << 24
"""Pairs of tokens in the mask of one forward; a longer prompt is read in parts."""
WASTE = 512
"""Tokens of padding that are worth a forward of their own."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about a slot whose history is `tokens`: the tokens of actions, or where there are none the next
    token."""

    slot: int
    tokens: list[int]
    actions: tuple[Tokens, ...] = ()


class Reader(Protocol):
    """Answers questions about histories, each of which begins with the one asked about before in its slot."""

    def read(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """For each question the logits of the actions' tokens, one action after the other [E], or the log-probabilities
        of all next tokens [V] in nats."""
        ...

    def release(self, slot: int) -> None:
        """The next history in this slot is another one."""
        ...


class Plain:
    """Reads every history anew, one sequence an action."""

    def __init__(self, policy: LanguageModelPolicy):
        self.policy = policy

    def release(self, slot: int) -> None:  # noqa: D102
        pass

    def read(self, questions: Sequence[Question]) -> list[np.ndarray]:  # noqa: D102
        return [self._read(one) for one in questions]

    def _read(self, question: Question) -> np.ndarray:
        policy = self.policy
        if not question.actions:
            tokens = torch.tensor([question.tokens], device=policy.model.device)
            hidden = policy.states(tokens, use_cache=False)[0, -1:]
            return policy.logits(hidden).log_softmax(-1)[0].cpu().numpy()
        window = Window(0, 0, question.tokens, [len(question.tokens) - 1], [question.actions], [0])
        batch = policy.collate([window])
        return policy.token_logits(policy.hidden(batch), batch.entry_place, batch.entry_token).cpu().numpy()


class Cached:
    """Reads what is new of each history, and all branches behind it, in one forward for all slots that ask."""

    def __init__(self, policy: LanguageModelPolicy, slots: int):
        self.policy = policy
        self.cache = SlotCache(slots)

    def release(self, slot: int) -> None:  # noqa: D102
        self.cache.crop(slot, 0)

    def read(self, questions: Sequence[Question]) -> list[np.ndarray]:  # noqa: D102
        parts = [list(portions(question.actions)) for question in questions]
        answers: list[list[np.ndarray]] = [[] for _ in questions]
        for turn in range(max(map(len, parts))):
            asked = [place for place, own in enumerate(parts) if turn < len(own)]
            widths = []
            for place in asked:
                question = questions[place]
                # Every part is asked for behind the history's last token, so that is always fed.
                self.cache.crop(question.slot, len(question.tokens) - 1)
                fed = int(self.cache.lengths[question.slot])
                widths.append(len(question.tokens) - fed + len(parts[place][turn].node_token))
            for group in alike(widths):
                places = sorted((asked[one] for one in group), key=lambda place: questions[place].slot)
                found = self._answer([questions[place] for place in places], [parts[place][turn] for place in places])
                for place, answer in zip(places, found, strict=True):
                    answers[place].append(answer)
        return [np.concatenate(own) for own in answers]

    def _answer(self, questions: Sequence[Question], trees: Sequence[Branches]) -> list[np.ndarray]:
        """The answers to questions about different slots, or to these parts of them."""
        slots = [question.slot for question in questions]
        new = [question.tokens[self.cache.lengths[question.slot] :] for question in questions]
        piece = max(1, MASK // (len(questions) * max(len(question.tokens) for question in questions)))
        while max(map(len, new)) > piece:
            count = [min(piece, len(tokens) - 1) for tokens in new]
            self._feed(slots, [tokens[:n] for tokens, n in zip(new, count, strict=True)], [NONE] * len(slots))
            new = [tokens[n:] for tokens, n in zip(new, count, strict=True)]
        hidden = self._feed(slots, new, trees)
        # Only the places that are read go through the output layer: first where the histories end, then the nodes.
        policy, device = self.policy, hidden.device
        nodes = np.array([len(tree.node_token) for tree in trees])
        entries = np.array([len(tree.entry_token) for tree in trees])
        ends = np.array([len(tokens) for tokens in new]) - 1
        row, inside = ragged(nodes)
        rows = np.concatenate([np.arange(len(slots)), row])
        columns = np.concatenate([ends, ends[row] + 1 + inside])
        hidden = hidden[moved(torch.from_numpy(rows), device), moved(torch.from_numpy(columns), device)]
        answers: list[np.ndarray] = [np.empty(0)] * len(slots)
        if entries.any():
            of_entry, _ = ragged(entries)
            node = np.concatenate([tree.entry_node for tree in trees])
            place = np.where(node < 0, of_entry, len(slots) + (nodes.cumsum() - nodes)[of_entry] + node)
            token = np.concatenate([tree.entry_token for tree in trees])
            places, tokens = (moved(torch.from_numpy(one), device) for one in (place, token))
            own = policy.token_logits(hidden, places, tokens)
            answers = np.split(own.cpu().numpy(), entries.cumsum()[:-1])
        open_ended = [i for i, question in enumerate(questions) if not question.actions]
        if open_ended:
            logprobs = policy.logits(hidden[open_ended]).log_softmax(-1).cpu().numpy()
            for i, row_v in zip(open_ended, logprobs, strict=True):
                answers[i] = row_v
        return answers

    def _feed(self, slots: list[int], new: Sequence[list[int]], trees: Sequence[Branches]) -> torch.Tensor:
        """Hidden states [R, W, D] of each slot's new tokens, which are kept, and its branches, which are not."""
        policy, device = self.policy, self.policy.model.device
        counts = np.array([len(tokens) for tokens in new])
        nodes = np.array([len(tree.node_token) for tree in trees])
        row, inside = ragged(nodes)
        width = int((counts + nodes).max())
        before = self.cache.lengths[slots]
        span = self.cache.begin(slots, width, device)
        tokens = np.full((len(slots), width), policy.pad)
        for i, own in enumerate(new):
            tokens[i, : len(own)] = own
        columns = np.arange(width)
        positions = before[:, None] + columns
        # A token of the history sees all that is before it; a branch the history, its ancestors and itself.
        last = before[:, None] + np.minimum(columns, counts[:, None] - 1)
        visible = np.arange(span) <= last[..., None]
        if len(row):
            column, end = counts[row] + inside, (before + counts)[row]
            tokens[row, column] = np.concatenate([tree.node_token for tree in trees])
            positions[row, column] = end - 1 + np.concatenate([tree.node_depth for tree in trees])
            parent = np.concatenate([tree.node_parent for tree in trees])
            parent = np.where(parent < 0, -1, parent + (nodes.cumsum() - nodes)[row])
            here = ancestor = np.arange(len(row))
            while len(here):
                visible[row[here], column[here], end[here] + inside[ancestor]] = True
                ancestor = parent[ancestor]
                here, ancestor = here[ancestor >= 0], ancestor[ancestor >= 0]
        hidden = policy.states(
            moved(torch.from_numpy(tokens), device),
            attention_mask=additive(moved(torch.from_numpy(visible), device), policy.model.dtype)[:, None],
            position_ids=moved(torch.from_numpy(positions.clip(max=policy.limit - 1)), device),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache.keep(slots, counts)
        return hidden


NONE = Branches.of((), (), ())


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows of so many elements one after the other: the row of each element, and its place in the row."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - (counts.cumsum() - counts)[rows]


def portions(actions: tuple[Tokens, ...]) -> Iterator[Branches]:
    """The actions as branches, cut where there are more than PART tokens of them."""
    if not actions:
        yield NONE
        return
    start = count = 0
    for index, tokens in enumerate(actions):
        if count > PART:
            yield grow(actions[start:index])
            start, count = index, 0
        count += len(tokens) - 1
    yield grow(actions[start:])


def alike(widths: Sequence[int]) -> Iterator[list[int]]:
    """Places in `widths`, the widest first, cut where a forward of their own saves the others enough padding."""
    order = sorted(range(len(widths)), key=lambda place: -widths[place])
    start = 0
    for index, place in enumerate(order):
        if (widths[order[start]] - widths[place]) * (len(order) - index) > WASTE:
            yield order[start:index]
            start = index
    yield order[start:]


def probabilities(
    logits: Sequence[np.ndarray], trees: Sequence[Branches], temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """pi and log pi over the actions of each of D questions, [D, A], 0 and -inf where there is none.

    From the logits of the actions' tokens at `temperature`, by the definition of `LanguageModelPolicy.logprobs`.
    """
    entries, actions = np.array([len(one) for one in logits]), np.array([tree.actions for tree in trees])
    row = np.repeat(np.arange(len(trees)), entries)
    rivals = np.concatenate([tree.entry_rivals for tree in trees]) + (entries.cumsum() - entries)[row]
    twins = np.concatenate([tree.entry_twins for tree in trees])
    place = row * actions.max() + np.concatenate([tree.entry_action for tree in trees])
    scores = np.concatenate(logits).astype(np.float64) / temperature
    highest = np.full(len(scores), -np.inf)
    np.maximum.at(highest, rivals, scores)
    above = scores - highest[rivals]
    mass = np.bincount(rivals, np.exp(above) / twins)
    own = above - np.log(mass[rivals])
    log_pi = np.bincount(place, own, len(trees) * actions.max()).reshape(len(trees), -1)
    log_pi[np.arange(actions.max()) >= actions[:, None]] = -np.inf
    return np.exp(log_pi), log_pi
