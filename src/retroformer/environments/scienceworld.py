"""ScienceWorld (Wang et al. 2022, arXiv 2203.07540): thirty tasks of school science, official splits, gold paths.

The task is ScienceWorld's, with its ``easy`` simplifications; an episode is one of its variations, see
`retroformer.environments.splits.official`. A step's reward is what it changed of the score, over 100; below 0 is lost.
Some variations have points before anything is done, which are no reward.

Up to thousands of actions are valid. At most `OFFERED` are offered: the moves, looks and waits, and then what
`retroformer.environments.subset` chooses, anew at every step. What else ScienceWorld understands may be done too; some
of what it lists as valid it does not understand, and says so, which costs a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from scienceworld import ScienceWorldEnv  # pyright: ignore[reportMissingImports]
from scienceworld.constants import ID2TASK  # pyright: ignore[reportMissingImports]

from retroformer.environments.java import share
from retroformer.environments.splits import official
from retroformer.environments.subset import subset
from retroformer.errors import EnvironmentFault

MAX_STEPS = 100
OFFERED = 64
ALWAYS = ("go to ", "teleport to ", "look around", "inventory", "wait")
"""Beginnings of the actions that are always offered."""
NOT_UNDERSTOOD = "No known action matches that input."
INTERFACE = "scienceworld.runtime.pythonapi.PythonInterface"
SIMPLIFICATIONS = "easy"


def known() -> tuple[str, ...]:
    """The tasks' names."""
    return tuple(ID2TASK.values())


def make(task: str) -> ScienceWorld:
    """One of the tasks that `known` names."""
    return ScienceWorld(task)


@lru_cache
def variations(task: str) -> tuple[list[int], list[int], list[int]]:
    """The task's variations for training, development and test."""
    world = share(ScienceWorldEnv, INTERFACE)
    with Statics(world._gateway.jvm).own():
        world.load(task, 0, SIMPLIFICATIONS)
    return world.get_variations_train(), world.get_variations_dev(), world.get_variations_test()


class Statics:
    """What ScienceWorld keeps once a Java machine, for one instance: its random numbers and its count of objects.

    Instances that take turns in a machine would draw from one sequence and number each other's objects, by which
    things are named; so each puts its own in place before it is asked for anything.
    """

    def __init__(self, machine: Any):
        self._random = machine.java.util.Random()
        self._drawn_from = getattr(getattr(machine.scala.util, "Random$"), "MODULE$")
        self._field = machine.java.lang.Class.forName("scala.util.Random").getDeclaredField("self")
        self._field.setAccessible(True)
        self._ids, self._count = machine.util.UniqueIdentifier, 0

    @contextmanager
    def own(self) -> Iterator[None]:
        """In this block they are this instance's."""
        self._field.set(self._drawn_from, self._random)
        getattr(self._ids, "count_$eq")(self._count)
        try:
            yield
        finally:
            self._count = self._ids.count()


class ScienceWorld:
    """A task as a TextEnvironment, see `retroformer.environments.protocol`."""

    def __init__(self, task: str):
        self.task = task
        self.family = "scienceworld"
        self.world: Any = share(ScienceWorldEnv, INTERFACE)
        self._statics = Statics(self.world._gateway.jvm)
        self.world.envStepLimit = 10 * MAX_STEPS  # the limit is ours, so that reaching it can be told from losing
        self._running = False

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`."""
        self._seed = seed
        self._variation = official(seed, *variations(self.task))
        self._actions: list[str] = []
        self._gold: list[str] | None = None
        observation, info = self._load(gold=False)
        self._running = True
        self._description = " ".join(info["taskDesc"].removeprefix("Task Description:").split())
        return tidy(observation), {"task": self._description, "admissible_actions": self._offer(observation, info)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do what was offered or anything else that ScienceWorld understands."""
        if not self._running:
            raise EnvironmentFault(f"scienceworld:{self.task} is not running: reset it before a step")
        with self._statics.own():
            observation, reward, terminated, info = self.world.step(action)
        if observation.strip() == NOT_UNDERSTOOD and action not in self._offered:
            raise EnvironmentFault(f"scienceworld:{self.task} does not understand {action!r}")
        self._actions.append(action)
        truncated = not terminated and len(self._actions) >= MAX_STEPS
        self._running = not (terminated or truncated)
        if self._running:
            result: dict[str, Any] = {"admissible_actions": self._offer(observation, info)}
        else:
            result = {"success": info["score"] == 100, "score": info["score"]}
        return tidy(observation), reward / 100, bool(terminated), truncated, result

    def close(self) -> None:
        """The Java machine is shared and ends with the process."""

    def gold_action(self) -> str | None:
        """The next action of the variation's gold path, as long as nothing else was done."""
        if self._gold is None:
            if self._actions:
                return None
            self._load(gold=True)
            self._gold = list(self.world.get_gold_action_sequence())
        done = len(self._actions)
        on_path = self._actions == self._gold[:done] and done < len(self._gold)
        return self._gold[done] if on_path else None

    def expert_action(self) -> str | None:
        """The gold action where it is among those offered."""
        action = self.gold_action()
        return action if action in self._offered else None

    def _load(self, *, gold: bool) -> tuple[str, dict[str, Any]]:
        with self._statics.own():
            self.world.load(self.task, self._variation, SIMPLIFICATIONS, generateGoldPath=gold)
            return self.world.reset()

    def _offer(self, observation: str, info: dict[str, Any]) -> tuple[str, ...]:
        valid = sorted(set(info["valid"]))
        always = [action for action in valid if action.startswith(ALWAYS)][: OFFERED // 2]
        rest = [action for action in valid if action not in always]
        context = f"{self._description} {observation} {info['inv']}"
        chosen = {*always, *subset(rest, context, OFFERED - len(always), (self._seed, len(self._actions)))}
        self._offered = tuple(action for action in valid if action in chosen)
        return self._offered


def tidy(observation: str) -> str:
    """The observation on one line."""
    return " ".join(observation.split())
