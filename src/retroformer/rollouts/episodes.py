"""What is to be played, how, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from retroformer.config import CollectConfig, TasksConfig
from retroformer.environments.protocol import Mission
from retroformer.types import Trajectory


@dataclass(frozen=True, slots=True)
class Episode:
    """What is to be played."""

    name: str
    """``package:task``."""
    seed: int
    split: str
    mission: Mission = "true"
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Conditions:
    """How all episodes of a run are played; a run is its episodes and these."""

    run_seed: int
    text: str
    actions: str
    environments: int
    """How many episodes advance together."""
    max_seconds: float = 60.0
    """Seconds that an episode may take in its environment and waiting for the policy; beyond it is truncated."""
    max_new_tokens: int = 256
    """Most tokens of a generated action. One that is cut there is given to the environment as it is."""
    keep_probabilities: bool = False
    max_step_seconds: float = 30.0
    """Seconds that an environment may take to start or to do one step; beyond it is ended."""
    retries: int = 0
    """How often an episode that ended in error is tried again."""

    @staticmethod
    def of(collect: CollectConfig, tasks: TasksConfig, run_seed: int) -> Conditions:
        """Those that the parameters state."""
        return Conditions(
            run_seed,
            tasks.text,
            tasks.actions,
            collect.environments,
            collect.max_seconds,
            collect.max_new_tokens,
            max_step_seconds=collect.max_step_seconds,
            retries=collect.retries,
        )


@dataclass(frozen=True, slots=True)
class Played:
    """An episode and what came of it."""

    episode: Episode
    trajectory: Trajectory
    probabilities: tuple[tuple[float, ...], ...] = ()
    """pi over the admissible actions of each step, where `Conditions.keep_probabilities` asked for it."""
    cut: int = 0
    """Generated actions that the limit of tokens ended."""
    earlier: tuple[Trajectory, ...] = ()
    """The tries before this one, each of which ended in error; the last trajectory counts as the episode's."""
