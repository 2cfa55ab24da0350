"""Synthetic trajectories for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from retroformer.types import Outcome, Step, StopReason, Task, Trajectory, trajectory_id

ACTIONS = ("left", "right", "forward")


def make_task(**overrides: Any) -> Task:
    """One task instance; any field can be given."""
    task = Task(environment="babyai", family="strict", name="P6N3", description="go to x", seed=0, split="history")
    return replace(task, **overrides)


def make_steps(rewards: tuple[float, ...]) -> tuple[Step, ...]:
    """One step for each reward, the action taken going round the admissible ones."""
    return tuple(
        Step(f"o{t}", ACTIONS[t % 3], reward, admissible_actions=ACTIONS, logprob=-1.0)
        for t, reward in enumerate(rewards)
    )


def make_trajectory(rewards: tuple[float, ...] = (0.0, 0.0, 1.0), **overrides: Any) -> Trajectory:
    """A sound trajectory: success where a reward is positive, else failure.

    `overrides` are fields of Trajectory or of Task (``seed=3``, ``name="P5N2"``, ``split="checkpoint"``).
    """
    of_task = {key: overrides.pop(key) for key in list(overrides) if key in Task.__dataclass_fields__}
    task = overrides.pop("task", None) or make_task(**of_task)
    policy = overrides.pop("policy", "scripted:test")
    attempt = overrides.get("attempt", 0)
    trajectory = Trajectory(
        id=trajectory_id(task, policy, attempt),
        task=task,
        steps=make_steps(rewards),
        stop_reason=StopReason.TERMINATED,
        outcome=Outcome.SUCCESS if any(reward > 0 for reward in rewards) else Outcome.FAILURE,
        policy=policy,
        source="rollout",
    )
    return replace(trajectory, **overrides)


def make_error(**overrides: Any) -> Trajectory:
    """An episode that the infrastructure broke, recorded as it should be."""
    broken = {"outcome": Outcome.ERROR, "stop_reason": StopReason.EXCEPTION, "error": "TimeoutError: no answer"}
    return make_trajectory((0.0,), **{**broken, **overrides})
