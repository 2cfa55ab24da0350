"""Many environments advance together, each at its own step; a finished one is replaced at once.

An environment that lists admissible actions is played in choice mode, one that lists none in text mode; both may play
side by side.

The rollout buffer holds the partial trajectories. What breaks is data: an environment that raises ends its episode
as ``error`` with the message, a limit of the collector ends it as ``truncated``, the task's own step limit as
``failure``.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retroformer.chat import describe_tools
from retroformer.environments import make, start
from retroformer.environments.protocol import Mission, TextEnvironment
from retroformer.errors import PolicyError
from retroformer.policies.agent import Agent, Choice, Decision
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory, trajectory_id


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
    """Wall time an episode may take; beyond it is truncated."""
    max_new_tokens: int = 256
    """Most tokens of a generated action. One that is cut there is given to the environment as it is."""
    keep_probabilities: bool = False


@dataclass(frozen=True, slots=True)
class Played:
    """An episode and what came of it."""

    episode: Episode
    trajectory: Trajectory
    probabilities: tuple[tuple[float, ...], ...] = ()
    """pi over the admissible actions of each step, where `Conditions.keep_probabilities` asked for it."""
    cut: int = 0
    """Generated actions that the limit of tokens ended."""


@dataclass(slots=True)
class Partial:
    """An episode in the rollout buffer."""

    episode: Episode
    environment: TextEnvironment | None
    chance: np.random.Generator
    started: float
    family: str = ""
    description: str = ""
    observation: str = ""
    admissible: tuple[str, ...] | None = None
    """None in text mode."""
    steps: list[Step] = field(default_factory=list)
    probabilities: list[tuple[float, ...]] = field(default_factory=list)
    cut: int = 0

    def finish(self, agent: Agent, stop: StopReason, outcome: Outcome, error: str | None = None) -> Played:
        """The record of what was played."""
        package, _, task_name = self.episode.name.partition(":")
        split, seed = self.episode.split, self.episode.seed
        task = Task(package, self.family, task_name, self.description, seed, split)
        trajectory = Trajectory(
            id=trajectory_id(task, agent.version, self.episode.attempt, self.episode.mission),
            task=task,
            steps=tuple(self.steps),
            stop_reason=stop,
            outcome=outcome,
            policy=agent.version,
            temperature=agent.temperature,
            attempt=self.episode.attempt,
            source="rollout",
            error=error,
        )
        return Played(self.episode, trajectory, tuple(self.probabilities), self.cut)


def play(agent: Agent, episodes: Sequence[Episode], conditions: Conditions) -> Iterator[Played]:
    """Play all `episodes` with `agent`; yields each as it ends, whatever its outcome.

    Chance is keyed by run seed, task and seed, so an episode's random numbers do not depend on its neighbours.
    """
    waiting = iter(episodes)
    buffer: dict[int, Partial] = {}
    instances: dict[tuple[int, str], TextEnvironment] = {}
    try:
        free = list(range(conditions.environments))[::-1]
        exhausted = False
        while buffer or not exhausted:
            while free and not exhausted:
                episode = next(waiting, None)
                if episode is None:
                    exhausted = True
                    break
                slot = free.pop()
                partial = Partial(episode, None, _chance(conditions.run_seed, episode), time.monotonic())
                try:
                    key = (slot, episode.name)
                    if key not in instances:
                        instances[key] = make(episode.name, text=conditions.text, actions=conditions.actions)
                    _start(partial, instances[key])
                    buffer[slot] = partial
                except Exception as error:
                    _discard(instances, key)
                    free.append(slot)
                    yield partial.finish(agent, StopReason.EXCEPTION, Outcome.ERROR, _told(error))
            if not buffer:
                continue
            decisions = [
                Decision(
                    slot=slot,
                    t=len(partial.steps),
                    description=partial.description,
                    observation=partial.observation,
                    admissible_actions=partial.admissible,
                    uniform=partial.chance.random(),
                    environment=partial.environment,
                    max_new_tokens=conditions.max_new_tokens,
                )
                for slot, partial in buffer.items()
            ]
            for decision, choice in zip(decisions, agent.act(decisions), strict=True):
                slot, partial = decision.slot, buffer[decision.slot]
                ended = _advance(partial, choice, conditions)
                if ended is None:
                    continue
                stop, outcome, error = ended
                if outcome is Outcome.ERROR:
                    _discard(instances, (slot, partial.episode.name))
                agent.release(slot)
                del buffer[slot]
                free.append(slot)
                yield partial.finish(agent, stop, outcome, error)
    finally:
        for environment in instances.values():
            environment.close()


def _discard(instances: dict[tuple[int, str], TextEnvironment], key: tuple[int, str]) -> None:
    """A broken environment is closed and not used again; what it says to that no longer matters."""
    broken = instances.pop(key, None)
    if broken is not None:
        with suppress(Exception):
            broken.close()


def _chance(run_seed: int, episode: Episode) -> np.random.Generator:
    return np.random.default_rng([run_seed, zlib.crc32(episode.name.encode()), episode.seed, episode.attempt])


def _start(partial: Partial, environment: TextEnvironment) -> None:
    partial.environment = environment
    partial.family = environment.family
    observation, info = start(environment, partial.episode.seed, partial.episode.mission)
    told = (str(info["task"]), describe_tools(info.get("tools") or ()))
    partial.description = "\n\n".join(part for part in told if part)
    _observe(partial, observation, info, text=info.get("admissible_actions") is None)


def _observe(partial: Partial, observation: Any, info: dict[str, Any], *, text: bool) -> None:
    """What the agent sees next; an episode that began in choice mode stays in it."""
    if not isinstance(observation, str):
        raise TypeError(f"the observation must be a str, got {type(observation).__name__}")
    actions = info.get("admissible_actions")
    if not actions and not text:
        raise ValueError("info['admissible_actions'] must hold at least one action")
    partial.observation, partial.admissible = observation, None if actions is None else tuple(actions)


def _advance(
    partial: Partial, choice: Choice | PolicyError, conditions: Conditions
) -> tuple[StopReason, Outcome, str | None] | None:
    """Do the chosen action; None where the episode goes on."""
    assert partial.environment is not None
    if isinstance(choice, PolicyError):
        return StopReason.EXCEPTION, Outcome.ERROR, _told(choice)
    try:
        observation, reward, terminated, truncated, info = partial.environment.step(choice.action)
        reward = float(reward)
        if not math.isfinite(reward):
            raise ValueError(f"the reward must be finite, got {reward}")
        step = Step(partial.observation, choice.action, reward, partial.admissible, choice.token_ids, choice.logprob)
        partial.steps.append(step)
        partial.cut += choice.cut
        if conditions.keep_probabilities:
            partial.probabilities.append(choice.probabilities)
        if terminated or truncated:
            stop = StopReason.TERMINATED if terminated else StopReason.STEP_LIMIT
            return stop, Outcome.SUCCESS if info.get("success") else Outcome.FAILURE, None
        _observe(partial, observation, info, text=partial.admissible is None)
    except Exception as error:
        return StopReason.EXCEPTION, Outcome.ERROR, _told(error)
    if time.monotonic() - partial.started > conditions.max_seconds:
        return StopReason.TIME_LIMIT, Outcome.TRUNCATED, None
    return None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]
