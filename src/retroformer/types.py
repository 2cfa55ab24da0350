"""The records that everything else speaks: Task, Step, Trajectory, Outcome, StopReason.

A trajectory is both the record of an execution and the training signal. All records are
frozen: what ran is what trains. Notation used in the project's tensors, one letter an axis:
``b`` trajectories, ``t`` steps, ``a`` actions, ``l`` tokens, as in ``logprobs_bta``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How the task ended. Only SUCCESS and FAILURE carry a reward that may be learned from."""

    SUCCESS = "success"
    """The environment (or the log) says that the task was solved."""
    FAILURE = "failure"
    """The task ended unsolved, also by the step limit that belongs to the task."""
    TRUNCATED = "truncated"
    """A limit of the collector (time, tokens) cut the episode: nothing is known of the task."""
    ERROR = "error"
    """The infrastructure broke. Never a failed task; see ``Trajectory.error``."""
    UNKNOWN = "unknown"
    """The log does not say."""


LEARNABLE = (Outcome.SUCCESS, Outcome.FAILURE)
"""The task ended, and it is known how."""


class StopReason(StrEnum):
    """Why the last step was the last."""

    TERMINATED = "terminated"
    """The environment reached a terminal state."""
    STEP_LIMIT = "step_limit"
    """The task's own step limit."""
    TIME_LIMIT = "time_limit"
    """The collector's time limit for an episode."""
    TOKEN_LIMIT = "token_limit"
    """The collector's limit of generated or context tokens."""
    EXCEPTION = "exception"
    """The environment or the policy raised; the message is in ``Trajectory.error``."""
    LOG_END = "log_end"
    """An imported log that ends without saying why."""


ONLY = "default"
"""What the task of a package is called that has only one and gives it no name."""


def label(environment: str, name: str) -> str:
    """The task's name; its environment's, where it has none of its own. Two of a run differ, see `TasksConfig`."""
    return environment if name == ONLY else name


@dataclass(frozen=True, slots=True)
class Task:
    """One task instance: the same environment, name and seed always give the same episode."""

    environment: str
    """Package part of ``package:task``, e.g. ``babyai``."""
    family: str
    """Group of tasks that share mechanics, e.g. ``strict``; multi-task tables are by family."""
    name: str
    """Task part of ``package:task``, e.g. ``P6N3``; also called the level."""
    description: str
    """What the agent was told to do, as it stood in the prompt."""
    seed: int
    split: str
    """Which seed range it is from: history, train, checkpoint, gate, final or transfer."""

    @property
    def id(self) -> str:
        """``package:task#seed``."""
        return f"{self.environment}:{self.name}#{self.seed}"

    @property
    def label(self) -> str:
        """What tells it from the other tasks of a run, in tables and where tasks are compared; see `label`."""
        return label(self.environment, self.name)


@dataclass(frozen=True, slots=True)
class Step:
    """One decision."""

    observation: str
    action: str
    reward: float
    admissible_actions: tuple[str, ...] | None = None
    """Choice mode: what could be chosen, the action taken among them. None for generated text."""
    token_ids: tuple[int, ...] | None = None
    """Text mode: the sampled token ids, never re-tokenised."""
    logprob: float | None = None
    """Behaviour log-probability of the action in nats at the sampling temperature, or None."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One completed attempt at one task."""

    id: str
    task: Task
    steps: tuple[Step, ...]
    stop_reason: StopReason
    outcome: Outcome
    policy: str
    """Version of the behaviour policy: a content hash, or ``scripted:...``."""
    temperature: float = 1.0
    attempt: int = 0
    previous_id: str | None = None
    """The attempt before this one at the same task instance, if any."""
    source: str = ""
    """Where it was read: ``rollout``, or file and line of an imported log."""
    error: str | None = None
    """What was seen when the infrastructure broke."""

    @property
    def rewards(self) -> tuple[float, ...]:
        """The reward of each step."""
        return tuple(step.reward for step in self.steps)

    @property
    def total_reward(self) -> float:
        """Undiscounted return; infinite or NaN where it is beyond a float's range."""
        return total(self.rewards)

    @property
    def learnable(self) -> bool:
        """Whether its rewards mean anything: the task ended, and the log says how."""
        return self.outcome in LEARNABLE

    def __repr__(self) -> str:
        return (
            f"Trajectory({self.id} {self.task.id} steps={len(self.steps)} "
            f"{self.outcome.value}/{self.stop_reason.value} return={self.total_reward:g})"
        )


def total(rewards: Sequence[float]) -> float:
    """Their sum, rounded once; infinite or NaN where it is beyond a float's range."""
    try:
        return math.fsum(rewards)
    except (OverflowError, ValueError):
        return sum(rewards)


def trajectory_id(task: Task, policy: str, attempt: int = 0, source: str = "") -> str:
    """16 hex digits that depend on what was run alone, not on order or batching."""
    text = "\x1f".join((task.id, task.description, task.split, policy, str(attempt), source))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
