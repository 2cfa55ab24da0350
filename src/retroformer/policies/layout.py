"""How a trajectory becomes one append-only sequence of tokens, and where a long one is cut.

task, observation, action, observation, action, ... Each piece is tokenised once, by itself, and appended; nothing
is tokenised again later, so what acted is what trains. `Transcript` is the only code that lays tokens out: acting
feeds it step by step, training replays a trajectory through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from retroformer.errors import PolicyError

Encode = Callable[[str, str, str], tuple[int, ...]]
"""Content, what stands before it and after it -> tokens. The content is foreign text and can be no special token."""
Piece = tuple[str, str, str]
END = "<end>"
"""Ends a generated action of a model with a vocabulary of its own."""


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
    def words(cls, *, generated: bool, condition_on_return: bool = False) -> Layout:
        """The layout of a model with a vocabulary of its own; where it generates its actions, they have an end."""
        action = f"{{action}} {END}" if generated else "{action}"
        return cls(action=action, condition_on_return=condition_on_return)

    @classmethod
    def sentences(cls, *, condition_on_return: bool = False) -> Layout:
        """The layout for a pretrained model."""
        return cls(
            task="Task: {task}\n",
            observation="Observation: {observation}\nAction:",
            action=" {action}\n",
            condition_on_return=condition_on_return,
        )

    def piece(self, name: str, content: str) -> Piece:
        """Content between the two ends of the template `name`: task, observation or action."""
        before, _, after = getattr(self, name).partition("{" + name + "}")
        return content, before.format(), after.format()

    def opening(self, description: str, total_return: float | None = None) -> Piece:
        """What stands before the first observation. `total_return`: the one achieved, or None for the target."""
        if not self.condition_on_return:
            return self.piece("task", description)
        reached = self.target_return if total_return is None else total_return
        # Adding 0 turns -0.0, which is no word of a built vocabulary, into 0.0.
        return self.piece("task", f"return {round(reached, 1) + 0.0:.1f} {description}")


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
    fed: int = 0
    """How many tokens of the window an acting policy has already encoded."""
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
        self.fed = 0
