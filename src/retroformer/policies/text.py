"""Text mode: actions that a language model generates, as tokens and as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retroformer.errors import PolicyError
from retroformer.policies.agent import Decision
from retroformer.policies.layout import Encode, Layout
from retroformer.types import Step


def room(limit: int) -> int:
    """Tokens kept free for a generated action in a window of `limit`: a quarter.

    How long an action will be is not known before it is generated, and the window must be cut alike in acting and in
    training, so the rule depends on the window alone.
    """
    return limit // 4


class TextActions:
    """How generated actions are written in tokens, and where they end.

    An action ends with the layout's terminator or, as some models do, with another token that its generation config
    names. What was sampled is kept as it was, terminator included, so that stopping is learned.
    """

    def __init__(
        self, tokenizer: Any, layout: Layout, encode: Encode, stops: Iterable[int] = (), vocabulary: int | None = None
    ):
        """`vocabulary`: tokens that the model knows, which may be more than the tokenizer has; all can be sampled."""
        self.tokenizer, self.layout, self.encode = tokenizer, layout, encode
        self.vocabulary = vocabulary or len(tokenizer)
        self.terminator = encode("", *layout.piece("action", "")[1:])
        self.ends = tuple(dict.fromkeys((self.terminator, *((stop,) for stop in stops)))) if self.terminator else ()

    def require_end(self) -> None:
        """Raise PolicyError where the layout does not let a generated action end."""
        if not self.ends:
            raise PolicyError(
                f"its action is to be generated, and layout.action = {self.layout.action!r} has no end that could be "
                "learned: choose a model with a chat template or an end-of-text token, or train afresh"
            )

    def end_of(self, tokens: tuple[int, ...]) -> int:
        """How many of the last tokens end the action; 0 where it was cut."""
        return max((len(end) for end in self.ends if tokens[-len(end) :] == end), default=0)

    def closing(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """What follows the action's tokens in the history: a terminator, unscored, where they were cut without one."""
        return () if self.end_of(tokens) else self.terminator

    def text(self, tokens: tuple[int, ...]) -> str:
        """What the environment is given: the tokens without their end, as text; that end where it is all."""
        said = self.tokenizer.decode(tokens[: len(tokens) - self.end_of(tokens)], skip_special_tokens=False).strip()
        return said or self.tokenizer.decode(tokens, skip_special_tokens=False).strip()

    def tokens(self, step: Step) -> tuple[int, ...]:
        """The ids as sampled; the text and a terminator, tokenised, where there are none or another tokenizer's.

        Raises PolicyError where the layout does not let an action end.
        """
        self.require_end()
        sampled = step.token_ids
        if (
            sampled
            and 0 <= min(sampled) <= max(sampled) < self.vocabulary
            and self.text(sampled) == step.action.strip()
        ):
            return sampled
        return self.encode(*self.layout.piece("action", step.action))


@dataclass(slots=True)
class Utterance:
    """A generated action as it grows, token by token."""

    decision: Decision
    limit: int
    """Most tokens it may have."""
    chance: np.random.Generator = field(init=False)
    """Keyed by the decision's own number, so that an episode does not depend on its neighbours."""
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0

    def __post_init__(self) -> None:
        self.chance = np.random.default_rng(int(self.decision.uniform * 2**53))

    def add(self, token: int, logprob: float) -> None:
        """The next token and its log-probability in nats."""
        self.tokens.append(token)
        self.logprob += logprob


def sample(
    logprobs_sv: np.ndarray, uniforms_s: np.ndarray, temperature: float, greedy: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The next token of S texts and its log-probability at `temperature`, both [S].

    Token k where the cumulative distribution first exceeds the uniform number, or the likeliest one. A row that holds
    no numbers gives the log-probability NaN.
    """
    scores = logprobs_sv.astype(np.float64) / temperature
    scores -= scores.max(1, keepdims=True)
    pi = np.exp(scores)
    below = pi.cumsum(1)
    total = below[:, -1]
    # The last token takes what rounding leaves.
    drawn = np.minimum((below <= (uniforms_s * total)[:, None]).sum(1), pi.shape[1] - 1)
    tokens = pi.argmax(1) if greedy else drawn
    return tokens, scores[np.arange(len(tokens)), tokens] - np.log(total)
