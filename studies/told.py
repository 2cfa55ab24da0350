"""Tasks that tell every seed the same, told what another task of their package tells: their control.

``studies.told:toy_text:Lake4/Taxi`` plays Lake4 and says what Taxi says. What happens and what is rewarded is Lake4's.
"""

from __future__ import annotations

from typing import Any

from retroformer.environments import make as make_true


def named(name: str, other: str) -> str:
    """The name under which `name`, ``package:task``, is told what task `other` of its package is told."""
    return f"{__name__}:{name}/{other}"


def true_name(task: str) -> str:
    """The name of the task that is played, without the package, of what `named` makes without this one."""
    return task.partition("/")[0].rpartition(":")[2]


def make(task: str, text: str, actions: str) -> Told:
    """The environment."""
    return Told(task, {"text": text, "actions": actions})


def known() -> tuple[str, ...]:
    """None by itself: any two tasks of a package make one."""
    return ()


def accept(task: str) -> None:
    """Whatever `make` can make."""


class Told:
    """The environment of one task, with the description of another."""

    def __init__(self, task: str, telling: dict[str, str]):
        name, _, other = task.partition("/")
        package = name.partition(":")[0]
        self.inner, self.other = (make_true(one, **telling) for one in (name, f"{package}:{other}"))
        self.family = self.inner.family

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start the true task's episode."""
        observation, info = self.inner.reset(seed=seed)
        _, told = self.other.reset(seed=seed)
        return observation.replace(info["task"], told["task"]), {**info, "task": told["task"]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Go on with the true task's."""
        return self.inner.step(action)

    def close(self) -> None:
        """Close both."""
        self.inner.close()
        self.other.close()
