"""What collection asks of a policy: choose actions for many environments at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from retroformer.errors import PolicyError


@dataclass(frozen=True, slots=True)
class Decision:
    """One environment waiting for an action."""

    slot: int
    """Which of the agent's places the episode occupies, from its first step until `release`."""
    t: int
    """Step of the episode; 0 starts a new one in this slot."""
    description: str
    """The task, as the agent is told it."""
    observation: str
    admissible_actions: tuple[str, ...] | None
    """None where the agent is to say what it wants in words of its own."""
    uniform: float
    """Random number in [0, 1) keyed by run seed, episode and step: the only source of chance."""
    environment: Any = None
    """What scripted agents ask: the environment, or what stands for it. An agent whose attribute `questions` names
    methods of environments finds those here that there are."""
    max_new_tokens: int = 256
    """Most tokens of a generated action."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The action chosen and log pi(action | history) in nats, at the temperature in use; None where unknown."""

    action: str
    logprob: float | None
    probabilities: tuple[float, ...] = ()
    """pi over the admissible actions, in their order."""
    token_ids: tuple[int, ...] | None = None
    """What was sampled, where the action was generated; the end of the turn is part of it."""
    cut: bool = False
    """Whether a generated action was ended by the limit of tokens and not by the model."""


class Agent(Protocol):
    """A policy at work. It keeps what it needs of each slot's history by itself."""

    version: str
    """Content hash of the policy, or its ``scripted:`` name."""
    temperature: float

    def act(self, decisions: Sequence[Decision]) -> Sequence[Choice | PolicyError]:
        """Choose for all that wait, in their order. The chosen action is what the environment will be given.

        A PolicyError in place of a choice ends that one episode as an error; the others are not touched.
        """
        ...

    def release(self, slot: int) -> None:
        """The episode in this slot is over; forget it."""
        ...

    def suspend(self, slot: int) -> Any:
        """Give the slot to another episode for a while; what `resume` needs to take this one up again."""
        ...

    def resume(self, slot: int, kept: Any) -> None:
        """Take up an episode where `suspend` left it, in this slot, which is free."""
        ...
