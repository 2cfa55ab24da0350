"""Where agents act. `make` is the door: it finds the package part of ``package:task``, see `packages`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from retroformer.environments.packages import ADAPTERS, find, nearest
from retroformer.environments.protocol import Mission, TextEnvironment
from retroformer.errors import EnvironmentFault

__all__ = ["ADAPTERS", "known", "lexicon", "made", "make", "split_name", "start", "with_missions"]

TEXTS = ("compact", "plain")
ACTIONS = ("token", "words")
TRIES = 32
"""Seeds that are tried for another mission."""


def make(name: str, *, text: str = "compact", actions: str = "token") -> TextEnvironment:
    """The environment that ``package:task`` names.

    A package that has more than one way of telling what it sees and of naming actions is told `text` and `actions`.
    Raises EnvironmentFault with the nearest known names, or with what is missing and how to install it.
    """
    check("text", text, TEXTS)
    check("actions", actions, ACTIONS)
    package, task = split_name(name)
    return find(package).make(task, text=text, actions=actions)


def start(environment: TextEnvironment, seed: int, mission: Mission = "true") -> tuple[str, dict[str, Any]]:
    """Reset, and tell the agent another mission where one is asked for and the environment does not know how.

    Then ``info["task"]``, and the first observation where it repeats that, are told as another seed's. Raises
    EnvironmentFault where every episode has the same mission.
    """
    observation, info = environment.reset(seed=seed, options={"mission": mission})
    if mission == "true" or "mission" in info:
        return observation, info
    true = info["task"]
    told = another_task(environment, seed, true)
    if told is None:
        raise EnvironmentFault(f"the mission cannot be swapped: every episode is told {true!r:.80}")
    observation, info = environment.reset(seed=seed, options={"mission": "true"})
    return observation.replace(true, told), {**info, "task": told, "mission": "shuffled"}


def another_task(environment: TextEnvironment, seed: int, true: str) -> str | None:
    """What the agent is told under another seed, drawn by `seed`, that is not what it is told under this one."""
    for other in np.random.SeedSequence(seed).generate_state(TRIES):
        _, info = environment.reset(seed=int(other), options={"mission": "true"})
        if info["task"] != true:
            return info["task"]
    return None


@contextmanager
def made(name: str, *, text: str, actions: str) -> Iterator[TextEnvironment]:
    """A task's environment, closed afterwards; what it says to that matters as little as where it is played."""
    environment = make(name, text=text, actions=actions)
    try:
        yield environment
    finally:
        with suppress(BaseException):
            environment.close()


def with_missions(names: Iterable[str], *, text: str, actions: str) -> tuple[str, ...]:
    """Those of the tasks whose mission can be swapped. Makes each of them once, and raises as `make` does."""
    able = []
    for name in names:
        with made(name, text=text, actions=actions) as environment:
            try:
                _, info = environment.reset(seed=0, options={"mission": "shuffled"})
                if "mission" in info or another_task(environment, 0, info["task"]) is not None:
                    able.append(name)
            except Exception:  # what breaks is told when it is played
                able.append(name)
    return tuple(able)


def known(package: str) -> tuple[str, ...]:
    """The task names of a package, sorted."""
    return tuple(sorted(find(package).known()))


def lexicon(names: Iterable[str], text: str = "compact", actions: str = "token") -> tuple[str, ...]:
    """Every whitespace-separated word that these tasks' packages can ever say or be told, sorted.

    It covers the packages whole, so that a held-out level has no unknown word. A package that does not list its words
    adds none: they are those of its history. Nothing is imported by its path here, as the names may be those of logs.
    """
    check("text", text, TEXTS)
    check("actions", actions, ACTIONS)
    packages = {package for package, _ in map(split_name, (name for name in names if "." not in name.split(":")[0]))}
    return tuple(sorted({word for one in packages for word in find(one).lexicon(text=text, actions=actions)}))


def split_name(name: str) -> tuple[str, str]:
    """``package:task`` as two strings. Raises EnvironmentFault for anything that is not known."""
    package, colon, task = name.partition(":")
    if not colon:
        raise EnvironmentFault(f"environment {name!r} is not of the form package:task, e.g. babyai:P6N3")
    accept = find(package).accept
    if accept is not None:
        accept(task)
        return package, task
    tasks = known(package)
    if task not in tasks:
        raise EnvironmentFault(f"{package} has no task {task!r}; {nearest(task, tasks)}")
    return package, task


def check(parameter: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise EnvironmentFault where a parameter has a value that is not allowed."""
    if value not in allowed:
        raise EnvironmentFault(f"{parameter} is {value!r}, allowed: {', '.join(allowed)}")
