"""Text mode: actions that a language model generates, as tokens and as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from retroformer.errors import PolicyError
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

    def __init__(self, tokenizer: Any, layout: Layout, encode: Encode, stops: Iterable[int] = ()):
        self.tokenizer, self.layout, self.encode = tokenizer, layout, encode
        self.terminator = encode("", *layout.piece("action", "")[1:])
        self.ends = tuple(dict.fromkeys((self.terminator, *((stop,) for stop in stops)))) if self.terminator else ()

    def end_of(self, tokens: tuple[int, ...]) -> int:
        """How many of the last tokens end the action; 0 where it was cut."""
        return max((len(end) for end in self.ends if tokens[-len(end) :] == end), default=0)

    def closing(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """What follows the action's tokens in the history: a terminator, unscored, where they were cut without one."""
        return () if self.end_of(tokens) else self.terminator

    def text(self, tokens: tuple[int, ...]) -> str:
        """What the environment is given: the tokens without their end, as text."""
        return self.tokenizer.decode(tokens[: len(tokens) - self.end_of(tokens)], skip_special_tokens=False).strip()

    def tokens(self, step: Step) -> tuple[int, ...]:
        """The ids as sampled; the text and a terminator, tokenised, where there are none or another tokenizer's.

        Raises PolicyError where the layout does not let an action end.
        """
        if not self.ends:
            raise PolicyError(
                f"its action was generated, and layout.action = {self.layout.action!r} has no end that could be "
                "learned: choose a model with a chat template or an end-of-text token, or train afresh"
            )
        sampled = step.token_ids
        if (
            sampled
            and 0 <= min(sampled) <= max(sampled) < len(self.tokenizer)
            and self.text(sampled) == step.action.strip()
        ):
            return sampled
        return self.encode(*self.layout.piece("action", step.action))
