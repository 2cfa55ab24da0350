"""Where agents act. `make` is the door: it loads an adapter by the package part of ``package:task``.

An adapter is a module with three functions: ``make(task, text, actions)``, ``known()`` and ``lexicon(text, actions)``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from retroformer.environments.protocol import TextEnvironment
from retroformer.errors import EnvironmentFault

ADAPTERS = {"babyai": "retroformer.environments.babyai"}
TEXTS = ("compact", "plain")
ACTIONS = ("token", "words")


def make(name: str, *, text: str = "compact", actions: str = "token") -> TextEnvironment:
    """The environment that ``package:task`` names, telling what it sees in `text` and acting in `actions`.

    Raises EnvironmentFault with the nearest known names.
    """
    check("text", text, TEXTS)
    check("actions", actions, ACTIONS)
    package, task = split_name(name)
    return adapter(package).make(task, text, actions)


def known(package: str) -> tuple[str, ...]:
    """The task names of a package, sorted."""
    return adapter(package).known()


def lexicon(names: Iterable[str], text: str = "compact", actions: str = "token") -> tuple[str, ...]:
    """Every whitespace-separated word that these tasks' packages can ever say or be told, sorted.

    It covers the packages whole, so that a held-out level has no unknown word.
    """
    check("text", text, TEXTS)
    check("actions", actions, ACTIONS)
    packages = {split_name(name)[0] for name in names}
    return tuple(sorted({word for package in packages for word in adapter(package).lexicon(text, actions)}))


def split_name(name: str) -> tuple[str, str]:
    """``package:task`` as two strings. Raises EnvironmentFault for anything that is not known."""
    package, colon, task = name.partition(":")
    if not colon:
        raise EnvironmentFault(f"environment {name!r} is not of the form package:task, e.g. babyai:P6N3")
    tasks = adapter(package).known()
    if task not in tasks:
        raise EnvironmentFault(f"{package} has no task {task!r}; {nearest(task, tasks)}")
    return package, task


def adapter(package: str) -> ModuleType:
    """The package's adapter, imported when it is first asked for."""
    if package not in ADAPTERS:
        raise EnvironmentFault(f"no environment package {package!r}; {nearest(package, tuple(ADAPTERS))}")
    return import_module(ADAPTERS[package])


def nearest(word: str, among: tuple[str, ...]) -> str:
    """The end of an error message that helps with a misspelt name."""
    near = difflib.get_close_matches(word, among, n=3, cutoff=0.4)
    return f"nearest: {', '.join(near)}" if near else f"known: {', '.join(among)}"


def check(parameter: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise EnvironmentFault where a parameter has a value that is not allowed."""
    if value not in allowed:
        raise EnvironmentFault(f"{parameter} is {value!r}, allowed: {', '.join(allowed)}")
