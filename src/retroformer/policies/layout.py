"""How a trajectory becomes one append-only sequence of tokens, and where a long one is cut.

task, observation, action, observation, action, ... Each piece is tokenised once, by itself, and appended; nothing
is tokenised again later, so what acted is what trains. `Transcript` is the only code that lays tokens out: acting
feeds it step by step, training replays a trajectory through it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from retroformer.errors import PolicyError

Encode = Callable[[str, str, str], tuple[int, ...]]
"""Content, what stands before it and after it -> tokens. The content is foreign text and can be no special token."""
Piece = tuple[str, str, str]
END = "<end>"
"""Ends an action of a model with a vocabulary of its own, where that is generated or another goes on from it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The texts around the pieces, and whether the prompt names the return to reach.

    A model that reads words of its own vocabulary needs nothing around them; a pretrained one reads
    sentences with markers. An action's template ends in a terminator where one action's tokens could
    begin another's.
    """

    task: str = "{task}"
    observation: str = "{observation}"
    action: str = "{action}"
    condition_on_return: bool = False
    target_return: float = 1.0
    """Return (sum of rewards) asked for when acting with a policy that was trained conditioned on it."""

    @classmethod
    def words(cls, *, ended: bool, condition_on_return: bool = False) -> Layout:
        """The layout of a model with a vocabulary of its own; actions have an end where words alone do not tell it."""
        action = f"{{action}} {END}" if ended else "{action}"
        return cls(action=action, condition_on_return=condition_on_return)

    @classmethod
    def sentences(cls, *, end: str = "\n", condition_on_return: bool = False) -> Layout:
        """The layout for a pretrained model without a chat template; `end` is its end-of-text token, if it has one.

        Its markers are plain words, which an environment can say too. Where an action ends with its line, generated
        ones have one line.
        """
        return cls(
            task="Task: {task}\n",
            observation="Observation: {observation}\nAction:",
            action=f" {{action}}{end}",
            condition_on_return=condition_on_return,
        )

    @classmethod
    def chat(cls, tokenizer: Any, *, condition_on_return: bool = False) -> Layout | None:
        """The layout of the tokenizer's chat template: the task is the system's turn, observations are the user's.

        Sentinels are rendered and cut around. Where the template has no turn of its own for the system, the task is
        one of the user's. What a template does to earlier turns (some drop their reasoning) is not done: the prompt
        is append-only. None where there is no template, or none that can be cut so.
        """
        if not tokenizer.chat_template:
            return None
        bare = _around(tokenizer, "user", "assistant", "user")
        # An answer must follow its prompt alike whether or not more was said since.
        if bare is None or bare[1] != bare[3] or bare[:2] != _around(tokenizer, "user"):
            return None
        opening, prompt, between, _ = bare
        end, user_end = _through_marker(tokenizer, between), _through_marker(tokenizer, prompt)
        if not end or not user_end:
            return None
        turn = between[len(end) :]
        task = opening, user_end
        whole = _around(tokenizer, "system", "user", "assistant", "user")
        if whole is not None and whole[1].endswith(turn) and whole[2:] == bare[1:]:
            task = whole[0], whole[1].removesuffix(turn)
        return cls(
            task=_literal(task[0]) + "{task}" + _literal(task[1]),
            observation=_literal(turn) + "{observation}" + _literal(prompt),
            action="{action}" + _literal(end),
            condition_on_return=condition_on_return,
        )

    def piece(self, name: str, content: str) -> Piece:
        """Content between the two ends of the template `name`: task, observation or action."""
        return content, *_ends(getattr(self, name), name)

    def opening(self, description: str, total_return: float | None = None) -> Piece:
        """What stands before the first observation. `total_return`: the one achieved, or None for the target."""
        if not self.condition_on_return:
            return self.piece("task", description)
        reached = self.target_return if total_return is None else total_return
        # Adding 0 turns -0.0, which is no word of a built vocabulary, into 0.0.
        return self.piece("task", f"return {round(reached, 1) + 0.0:.1f} {description}")


@lru_cache
def _ends(template: str, name: str) -> tuple[str, str]:
    """What stands in a template before ``{name}`` and after it."""
    before, _, after = template.partition("{" + name + "}")
    return before.format(), after.format()


def _around(tokenizer: Any, *roles: str) -> list[str] | None:
    """What a chat template puts before, between and after messages of these roles, the next answer's start included.

    None where the template refuses them, or does not render each once, in their order.
    """
    contents = [f"sentinel{place}" for place in range(len(roles))]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    try:
        # Some templates tell the day, by which the same policy would differ from day to day.
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
        )
    except Exception:  # a template is a program: it raises what it likes
        return None
    pieces = re.split("|".join(contents), text)
    found = re.findall("|".join(contents), text)
    return pieces if found == contents else None


def _through_marker(tokenizer: Any, text: str) -> str:
    """The text up to and with the first token that was added to the vocabulary; empty where there is none."""
    ends = [text.index(token) + len(token) for token in tokenizer.get_added_vocab() if token in text]
    return text[: min(ends, default=0)]


def _literal(text: str) -> str:
    """As a part of a template."""
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(slots=True)
class Transcript:
    """One trajectory's tokens as they grow, within a window of `limit` tokens.

    The rule of the window, the same in training and acting: when the next observation and its longest action
    would not fit, the sequence starts anew with the task and as many of the last whole steps as fit in half of
    the window. A window that slides token by token over cached keys would be another policy.

    Raises PolicyError where the task, one observation and its longest action alone exceed the window.
    """

    layout: Layout
    encode: Encode
    description: str
    limit: int
    total_return: float | None = None
    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Where each step of this window begins."""
    opening: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.opening = self.encode(*self.layout.opening(self.description, self.total_return))
        self.tokens = list(self.opening)

    def observe(self, observation: str, longest_action: int) -> bool:
        """Append an observation; True where the window had to start anew."""
        piece = self.encode(*self.layout.piece("observation", observation))
        if not piece:
            raise PolicyError(f"observation {observation!r} has no tokens")
        restart = len(self.tokens) + len(piece) + longest_action > self.limit
        if restart:
            self._restart(len(piece) + longest_action)
        self.starts.append(len(self.tokens))
        self.tokens.extend(piece)
        return restart

    def act(self, action: Sequence[int]) -> None:
        """Append the tokens of the action taken."""
        self.tokens.extend(action)

    def _restart(self, needed: int) -> None:
        room = self.limit - len(self.opening) - needed
        if room < 0:
            raise PolicyError(
                f"the task and one observation need {len(self.opening) + needed} tokens, the model's window has "
                f"{self.limit}: use a model with a longer context or shorten the observation"
            )
        budget = min(room, self.limit // 2)
        kept = next((start for start in self.starts if len(self.tokens) - start <= budget), len(self.tokens))
        tail = self.tokens[kept:]
        shift = len(self.opening) - kept
        self.starts = [start + shift for start in self.starts if start >= kept]
        self.tokens = [*self.opening, *tail]
