"""The contract between an agent and anything it acts in: Gymnasium's semantics, over text.

``reset(seed=, options=)`` gives ``(observation, info)``; ``step(action)`` gives ``(observation, reward,
terminated, truncated, info)``. Observations and actions are strings. In ``info``:

- ``task``: what the agent is told to do, set by ``reset``;
- ``admissible_actions``: what may be chosen now, set by ``reset`` and by every step that does not end the episode;
- ``success``: whether the task was solved, set by the step that ends the episode.

The same seed, options and actions give the same episode. ``truncated`` means that the task's own step limit was
reached, which is a failed task. A fresh environment serves one episode at a time.

``options["mission"]`` is the control that shows whether a policy follows its task: ``true`` (default); ``shuffled``:
the agent is told the mission of another episode of the same level, one that differs; ``other``: it is told another
mission that is valid in this very episode. Reward and success always judge the true one.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

Mission = Literal["true", "shuffled", "other"]


@runtime_checkable
class TextEnvironment(Protocol):
    """One running episode at a time."""

    family: str
    """Tasks of a family share mechanics."""

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start the episode that `seed` names."""
        ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do `action`; an action that is not admissible raises EnvironmentFault."""
        ...

    def close(self) -> None:
        """Free what the environment holds."""
        ...
