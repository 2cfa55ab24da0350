"""Many environments advance together, each at its own step; a finished one is replaced at once.

An environment that lists admissible actions is played in choice mode, one that lists none in text mode; both may play
side by side.

The rollout buffer holds the partial trajectories. What breaks is data: an environment that raises, or returns what no
record can hold, ends its episode as ``error`` with the message, a limit of the collector ends it as ``truncated``, the
task's own step limit as ``failure``.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from retroformer.errors import PolicyError
from retroformer.policies.agent import Agent, Decision
from retroformer.rollouts.apart import Apart
from retroformer.rollouts.episodes import Conditions, Episode, Played
from retroformer.rollouts.lanes import Answer, Lanes, Order, Said, told
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory, trajectory_id

__all__ = ["Conditions", "Episode", "Played", "play"]


@dataclass(slots=True)
class Partial:
    """An episode in the rollout buffer."""

    episode: Episode
    chance: np.random.Generator
    now: Answer
    """What its environment said last."""
    family: str
    description: str
    seconds: float
    """Spent in its environment and waiting for the policy."""
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


def play(
    agent: Agent, episodes: Sequence[Episode], conditions: Conditions, lanes: Lanes | Apart | None = None
) -> Iterator[Played]:
    """Play all `episodes` with `agent`; yields each as it ends, whatever its outcome.

    Chance is keyed by run seed, task and seed, so an episode's random numbers do not depend on its neighbours. The
    environments live in `lanes`, which the caller closes; without, in this process, and are closed at the end.
    """
    own = lanes is None
    lanes = Lanes(conditions.text, conditions.actions, questions_of(agent)) if lanes is None else lanes
    waiting = iter(episodes)
    buffer: dict[int, Partial] = {}
    free = list(range(conditions.environments))[::-1]
    try:
        while True:
            while starting := [Order(free.pop(), episode) for episode in islice(waiting, len(free))]:
                for order, answer in zip(starting, lanes.do(starting), strict=True):
                    assert order.episode is not None
                    chance = _chance(conditions.run_seed, order.episode)
                    partial = Partial(order.episode, chance, answer, answer.family, answer.description, answer.seconds)
                    if answer.error is None:
                        buffer[order.slot] = partial
                        continue
                    free.append(order.slot)
                    yield partial.finish(agent, StopReason.EXCEPTION, Outcome.ERROR, answer.error)
            if not buffer:
                return
            for slot, played in _advance(agent, buffer, conditions, lanes):
                agent.release(slot)
                del buffer[slot]
                free.append(slot)
                yield played
    finally:
        if own:
            lanes.close()


def questions_of(agent: Agent) -> tuple[str, ...]:
    """What the agent asks environments besides; most ask nothing."""
    return getattr(agent, "questions", ())


def _chance(run_seed: int, episode: Episode) -> np.random.Generator:
    return np.random.default_rng([run_seed, zlib.crc32(episode.name.encode()), episode.seed, episode.attempt])


def _advance(
    agent: Agent, buffer: dict[int, Partial], conditions: Conditions, lanes: Lanes | Apart
) -> list[tuple[int, Played]]:
    """One step of every episode in the buffer; those that ended with it, by slot."""
    began = time.monotonic()
    decisions = [
        Decision(
            slot=slot,
            t=len(partial.steps),
            description=partial.description,
            observation=partial.now.observation,
            admissible_actions=partial.now.admissible,
            uniform=partial.chance.random(),
            environment=Said(partial.episode.name, partial.now.said),
            max_new_tokens=conditions.max_new_tokens,
        )
        for slot, partial in buffer.items()
    ]
    choices = dict(zip(buffer, agent.act(decisions), strict=True))
    waited = time.monotonic() - began
    orders = [
        Order(slot, action=choice.action, t=len(buffer[slot].steps))
        for slot, choice in choices.items()
        if not isinstance(choice, PolicyError)
    ]
    answers = dict(zip((order.slot for order in orders), lanes.do(orders) if orders else (), strict=True))
    ended: list[tuple[int, Played]] = []
    for slot, partial in buffer.items():
        choice = choices[slot]
        if isinstance(choice, PolicyError):
            lanes.release(slot)
            ended.append((slot, partial.finish(agent, StopReason.EXCEPTION, Outcome.ERROR, told(choice))))
            continue
        before, answer = partial.now, answers[slot]
        partial.now = answer
        partial.seconds += waited + answer.seconds
        if answer.reward is not None:
            step = Step(
                before.observation, choice.action, answer.reward, before.admissible, choice.token_ids, choice.logprob
            )
            partial.steps.append(step)
            partial.cut += choice.cut
            if conditions.keep_probabilities:
                partial.probabilities.append(choice.probabilities)
        if answer.error is not None:
            ended.append((slot, partial.finish(agent, StopReason.EXCEPTION, Outcome.ERROR, answer.error)))
        elif answer.ended is not None:
            ended.append((slot, partial.finish(agent, *answer.ended)))
        elif partial.seconds > conditions.max_seconds:
            lanes.release(slot)
            ended.append((slot, partial.finish(agent, StopReason.TIME_LIMIT, Outcome.TRUNCATED)))
    return ended
