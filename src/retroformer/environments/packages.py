"""Where environments come from: those that ship here, entry points of other packages, import paths.

A package of tasks is one of

- a module with ``make(task)`` and ``known()``, and optionally ``lexicon()``, every word that it can say or be told,
  and ``accept(task)`` where tasks cannot be listed, which raises EnvironmentFault for what cannot be one;
- a class with ``reset`` and ``step`` (an environment, see `retroformer.environments.protocol`). One that lists its
  ``tasks`` is built with one of them; one that does not is built with nothing, and its only task is ``default``;
- a class with ``reset`` whose other public methods are tools, see `retroformer.environments.tools`.

`make` and `lexicon` are given ``tasks.text`` and ``tasks.actions`` of params.yaml where they have parameters ``text``
and ``actions``.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Any

from retroformer.environments.protocol import TextEnvironment
from retroformer.errors import EnvironmentFault
from retroformer.types import ONLY

GROUP = "retroformer.environments"
"""The entry points' group."""
ADAPTERS = {
    "babyai": "retroformer.environments.babyai",
    "desk": "retroformer.environments.desk",
    "miniwob": "retroformer.environments.miniwob",
    "openenv": "retroformer.environments.openenv",
    "scienceworld": "retroformer.environments.scienceworld",
    "textworld": "retroformer.environments.textworld",
    "textworld-express": "retroformer.environments.textworld_express",
    "toy_text": "retroformer.environments.toy_text",
}
"""What ships here."""
EXTRAS = {
    "miniwob": "pip install 'retroformer[miniwob]' && apt-get install chromium chromium-driver",
    "openenv": "pip install 'retroformer[openenv]'",
    "scienceworld": "pip install 'retroformer[scienceworld]' && apt-get install default-jre-headless",
    "textworld": "pip install 'retroformer[textworld]'",
    "textworld-express": "pip install 'retroformer[textworld-express]' && apt-get install default-jre-headless",
}
"""Of these, the extras, and what installs them in a shell."""


@dataclass(frozen=True, slots=True)
class Package:
    """Some tasks that come together."""

    name: str
    build: Callable[..., Any]
    known: Callable[[], Iterable[str]]
    words: Callable[..., Iterable[str]] | None = None
    accept: Callable[[str], None] | None = None

    def make(self, task: str, **telling: str) -> TextEnvironment:
        """The environment of a task. Raises EnvironmentFault where it cannot start or is no environment."""
        try:
            environment = self.build(task, **asked_for(self.build, telling))
        except EnvironmentFault:
            raise
        except Exception as error:
            raise EnvironmentFault(f"{self.name}:{task} cannot start: {type(error).__name__}: {error}") from error
        lacking = [name for name in ("family", "reset", "step", "close") if not hasattr(environment, name)]
        if lacking:
            raise EnvironmentFault(
                f"{self.name}:{task} is a {type(environment).__name__} without {', '.join(lacking)}; "
                "docs/environments.md has a template"
            )
        return environment

    def lexicon(self, **telling: str) -> tuple[str, ...]:
        """Every word of the package; none where it does not say."""
        return () if self.words is None else tuple(self.words(**asked_for(self.words, telling)))


def asked_for(function: Callable[..., Any], values: dict[str, str]) -> dict[str, str]:
    """Those of `values` that the function has parameters for."""
    wanted = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in wanted}


def find(name: str) -> Package:
    """The package called `name`: one that ships here, an entry point, or an import path, which has a dot in it.

    Raises EnvironmentFault with the nearest names, or with what is missing and how to install it.
    """
    if name in ADAPTERS:
        return shipped(name)
    installed = {point.name: point for point in entry_points(group=GROUP)}
    if "." in name and name not in installed:
        return import_path(name)
    if name not in installed:
        every = tuple({**ADAPTERS, **installed})
        raise EnvironmentFault(
            f"no environment package {name!r}; {nearest(name, every)}. "
            "One of your own is named by its import path, e.g. my_module.MyEnvironment:task"
        )
    return entry_point(name, installed[name])


@lru_cache
def shipped(name: str) -> Package:
    """One of the packages that ship here."""
    try:
        return described(name, import_module(ADAPTERS[name]))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("retroformer"):
            raise
        needs = EXTRAS.get(name, "pip install retroformer")
        raise EnvironmentFault(f"{name} needs {error.name}, which is not installed: {needs}") from None


@lru_cache
def entry_point(name: str, point: EntryPoint) -> Package:
    """One that an installed distribution offers."""
    return described(name, loaded(name, point.load))


@lru_cache
def import_path(path: str) -> Package:
    """A module, or a class in a module, by its dotted path; modules of the working folder are found too."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return described(path, loaded(path, partial(resolve, path)))


def loaded(name: str, load: Callable[[], Any]) -> Any:
    """What `load` imports; whatever goes wrong is told as one sentence."""
    try:
        return load()
    except EnvironmentFault:
        raise
    except SystemExit as error:
        how = f"it called sys.exit({error.code!r})"
    except Exception as error:
        how = f"{type(error).__name__}: {error}"
        here = [one.name for one in iter_modules([os.getcwd()])]
        if isinstance(error, ModuleNotFoundError) and (near := difflib.get_close_matches(error.name or "", here)):
            how += f"; nearest in this folder: {', '.join(near)}"
    raise EnvironmentFault(f"environment package {name} cannot be imported: {how}")


def resolve(path: str) -> Any:
    """The object at a dotted path."""
    module, _, attribute = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")):
        raise EnvironmentFault(f"{path!r} is not an import path, e.g. my_module.MyEnvironment")
    found = import_module(module)
    if hasattr(found, attribute):
        return getattr(found, attribute)
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
    names = tuple(name for name in vars(found) if not name.startswith("_"))
    raise EnvironmentFault(f"module {module} has no {attribute}; {nearest(attribute, names)}")


def described(name: str, found: Any) -> Package:
    """A module or class as a package, see the top of this file."""
    words = getattr(found, "lexicon", None)
    if not isinstance(found, type):
        lacking = [one for one in ("make", "known") if not callable(getattr(found, one, None))]
        if lacking:
            raise EnvironmentFault(
                f"environment package {name} is neither a class nor a module with make(task) and known(): "
                f"it lacks {' and '.join(lacking)}"
            )
        return Package(name, found.make, found.known, words, getattr(found, "accept", None))
    tasks = getattr(found, "tasks", None)
    if isinstance(tasks, str):
        raise EnvironmentFault(f"{name}.tasks is the text {tasks!r}, expected a tuple of task names")
    if tasks is not None and (not tasks or not all(isinstance(one, str) and one for one in tasks)):
        raise EnvironmentFault(f"{name}.tasks is {tasks!r:.80}, expected at least one task name")
    build: Callable[..., Any] = found if tasks is not None else lambda task: found()
    if not hasattr(found, "step"):
        from retroformer.environments.tools import ToolEnvironment

        build = partial(ToolEnvironment, found)
    return Package(name, build, lambda: (ONLY,) if tasks is None else tuple(tasks), words)


def nearest(word: str, among: tuple[str, ...]) -> str:
    """The end of an error message that helps with a misspelt name."""
    near = difflib.get_close_matches(word, among, n=3, cutoff=0.4)
    if near:
        return f"nearest: {', '.join(near)}"
    return f"known: {', '.join(sorted(among)[:20])}{', ...' if len(among) > 20 else ''}"
