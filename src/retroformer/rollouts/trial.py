"""Environments tried before anything is played, in processes of their own: even that may hang or crash."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import retroformer
from retroformer.environments import made, with_missions
from retroformer.rollouts.episodes import Conditions
from retroformer.rollouts.processes import alone

START = 60.0
"""Seconds that importing a package may take, beside what its environments may take."""


def try_all(names: Iterable[str], conditions: Conditions) -> list[Path]:
    """Make each of the tasks' environments once. Returns the files that define them, those of this package left out.

    Raises EnvironmentFault where one is unknown, cannot start, hangs or crashes.
    """
    found = per_package(files, names, conditions)
    own = Path(retroformer.__file__).parent
    return sorted({path for path in found if own not in path.parents})


def swappable(names: Iterable[str], conditions: Conditions) -> tuple[str, ...]:
    """Those of the tasks whose mission can be swapped, see `environments.with_missions`."""
    return tuple(per_package(with_missions, names, conditions))


def played_at_random(names: Iterable[str], conditions: Conditions) -> bool:
    """Whether each has actions to draw from: admissible ones, or in text mode those that the environment names."""
    return all(per_package(drawable, names, conditions))


def per_package(function: Callable[..., Iterable[Any]], names: Iterable[str], conditions: Conditions) -> list[Any]:
    """What `function(names, text=, actions=)` finds, called for each package's tasks in a process of its own."""
    found: list[Any] = []
    for package, group in groupby(names, key=lambda name: name.partition(":")[0]):
        own = tuple(group)
        seconds = START + conditions.max_step_seconds * len(own)
        call = partial(function, own, text=conditions.text, actions=conditions.actions)
        found += alone(call, what=f"environment package {package}", seconds=seconds, names=own)
    return found


def files(names: Sequence[str], *, text: str, actions: str) -> list[Path]:
    """The files of the tasks' environments: of their classes, their packages, and all that is imported and uninstalled.

    What is installed has a version; what is not may be changed while a run is killed.
    """
    found, packages = set(), set()
    for name in names:
        with made(name, text=text, actions=actions) as environment:
            kind = type(getattr(environment, "inner", environment))
            found.add(Path(inspect.getfile(kind)).resolve())
            packages.add(kind.__module__.partition(".")[0])
    library = Path(sysconfig.get_path("stdlib")).resolve()
    for name, module in list(sys.modules.items()):
        if not (file := getattr(module, "__file__", None)) or name in ("__main__", "__mp_main__"):
            continue
        path = Path(file).resolve()
        installed = library in path.parents or {"site-packages", "dist-packages"} & set(path.parts)
        if path.is_file() and (not installed or name.partition(".")[0] in packages):
            found.add(path)
    return sorted(found)


def drawable(names: Sequence[str], *, text: str, actions: str) -> list[bool]:
    """For each task, whether there are actions to draw from."""
    found = []
    for name in names:
        with made(name, text=text, actions=actions) as environment:
            listed = hasattr(environment, "possible_actions")
            found.append(listed or bool(environment.reset(seed=0)[1].get("admissible_actions")))
    return found
