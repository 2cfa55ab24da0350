"""What makes a trajectory unfit to be believed: pure predicates, each with a name that stands in ``reasons.csv``.

A predicate returns what it saw (the detail of the reason), or None where nothing is wrong. Failures of the
infrastructure that say so are sound records: they are accepted, and never trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from retroformer.types import Outcome, StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class Limits:
    """What is believed of a step and of a trajectory."""

    min_reward: float
    max_reward: float
    """Range of one step's reward, ends included."""
    max_steps: int


class Reason(NamedTuple):
    """Why a trajectory is in quarantine."""

    name: str
    detail: str


Predicate = Callable[[Trajectory, Limits], str | None]

STOPS_OF_OUTCOME = {
    Outcome.SUCCESS: {StopReason.TERMINATED, StopReason.LOG_END},
    Outcome.FAILURE: {StopReason.TERMINATED, StopReason.STEP_LIMIT, StopReason.LOG_END},
    Outcome.TRUNCATED: {StopReason.TIME_LIMIT, StopReason.TOKEN_LIMIT, StopReason.LOG_END},
    Outcome.ERROR: {StopReason.EXCEPTION, StopReason.LOG_END},
    Outcome.UNKNOWN: set(StopReason) - {StopReason.EXCEPTION},
}
"""How an episode of each outcome may have stopped, by the definitions in types.py."""


def no_steps(trajectory: Trajectory, limits: Limits) -> str | None:
    """Nothing was done. An error before the first action is exempt: it is what happened."""
    if trajectory.steps or trajectory.outcome is Outcome.ERROR:
        return None
    return f"{trajectory.outcome.value} without a step"


def too_many_steps(trajectory: Trajectory, limits: Limits) -> str | None:
    """More steps than any task allows."""
    count = len(trajectory.steps)
    return f"{count} steps, at most {limits.max_steps} allowed" if count > limits.max_steps else None


def reward_not_finite(trajectory: Trajectory, limits: Limits) -> str | None:
    """A reward is NaN, infinite or missing."""
    for t, reward in enumerate(trajectory.rewards):
        if not math.isfinite(reward):
            return f"reward {reward} at step {t}"
    return None


def reward_out_of_range(trajectory: Trajectory, limits: Limits) -> str | None:
    """A finite reward lies outside the stated range."""
    for t, reward in enumerate(trajectory.rewards):
        if math.isfinite(reward) and not limits.min_reward <= reward <= limits.max_reward:
            return f"reward {reward:g} at step {t}, expected {limits.min_reward:g} to {limits.max_reward:g}"
    return None


def invalid_logprob(trajectory: Trajectory, limits: Limits) -> str | None:
    """A log-probability is positive, NaN or infinite; an action that was taken had a probability in (0, 1]."""
    for t, step in enumerate(trajectory.steps):
        if step.logprob is not None and not (math.isfinite(step.logprob) and step.logprob <= 0):
            return f"log-probability {step.logprob:g} at step {t}"
    return None


def inadmissible_action(trajectory: Trajectory, limits: Limits) -> str | None:
    """An action is not among those that the record says were admissible."""
    for t, step in enumerate(trajectory.steps):
        if step.admissible_actions is not None and not step.admissible_actions:
            return (
                f"no action is admissible at step {t}: record null where the action was written, or leave the step out"
            )
        if step.admissible_actions is not None and step.action not in step.admissible_actions:
            return f"action {step.action!r} at step {t} is none of the {len(step.admissible_actions)} admissible ones"
    return None


def malformed_tokens(trajectory: Trajectory, limits: Limits) -> str | None:
    """The tokens of a generated action are recorded as none at all, or as something that is no token."""
    for t, step in enumerate(trajectory.steps):
        ids: Any = step.token_ids
        if ids is not None and (not ids or any(id is None or id < 0 for id in ids)):
            return f"token_ids {list(ids)[:8]} at step {t}"
    return None


def malformed_choice(trajectory: Trajectory, limits: Limits) -> str | None:
    """An admissible action is null, empty or there twice."""
    for t, step in enumerate(trajectory.steps):
        actions = step.admissible_actions or ()
        if not all(action and action.strip() for action in actions):
            return f"an admissible action at step {t} is null or empty: give it a text, or leave it out"
        if repeated := [action for action in actions if actions.count(action) > 1]:
            times = actions.count(repeated[0])
            return f"admissible action {repeated[0]!r} is there {times} times at step {t}: list it once"
    return None


def empty_text(trajectory: Trajectory, limits: Limits) -> str | None:
    """An observation or an action is empty."""
    for t, step in enumerate(trajectory.steps):
        if not step.observation.strip():
            return f"empty observation at step {t}"
        if not step.action.strip():
            return f"empty action at step {t}"
    return None


def contradicted_outcome(trajectory: Trajectory, limits: Limits) -> str | None:
    """The outcome does not go with the stop reason, the error message or the rewards."""
    outcome = trajectory.outcome
    if trajectory.stop_reason not in STOPS_OF_OUTCOME[outcome]:
        return f"{outcome.value} cannot stop by {trajectory.stop_reason.value}"
    if (outcome is Outcome.ERROR) != bool(trajectory.error):
        return f"{outcome.value} {'with' if trajectory.error else 'without'} an error message"
    if outcome is Outcome.SUCCESS and trajectory.steps and not any(trajectory.rewards):
        return "success, yet every reward is 0"
    return None


def invalid_attempt(trajectory: Trajectory, limits: Limits) -> str | None:
    """A later attempt does not name the one before it, or a first attempt names one."""
    attempt, previous = trajectory.attempt, trajectory.previous_id
    if attempt < 0:
        return f"attempt {attempt}"
    if attempt > 0 and not previous:
        return f"attempt {attempt} names no previous trajectory"
    if attempt == 0 and previous:
        return f"attempt 0 names {previous} as the one before it"
    return "it is its own previous attempt" if previous == trajectory.id else None


PREDICATES: dict[str, Predicate] = {
    predicate.__name__: predicate
    for predicate in (
        no_steps,
        too_many_steps,
        reward_not_finite,
        reward_out_of_range,
        invalid_logprob,
        inadmissible_action,
        malformed_tokens,
        malformed_choice,
        empty_text,
        contradicted_outcome,
        invalid_attempt,
    )
}


def judge(trajectory: Trajectory, limits: Limits) -> list[Reason]:
    """Every reason to keep this trajectory out; empty if there is none."""
    found = ((name, predicate(trajectory, limits)) for name, predicate in PREDICATES.items())
    return [Reason(name, detail) for name, detail in found if detail is not None]


def judge_together(trajectories: Sequence[Trajectory]) -> list[list[Reason]]:
    """What only shows among all: ids that repeat, and attempts whose previous one is of another task.

    The first of an id is kept. A previous attempt that is not here may lie in an earlier round, and is believed.
    Returns one list a trajectory, in the same order.
    """
    first: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        first.setdefault(trajectory.id, trajectory)
    reasons: list[list[Reason]] = []
    for trajectory in trajectories:
        mine = []
        original = first[trajectory.id]
        if original is not trajectory:
            if original == trajectory:
                mine.append(Reason("duplicate_id", "the same content as the first of this id, which is kept"))
            else:
                mine.append(Reason("conflicting_id", "other content than the first of this id, which is kept"))
        previous = first.get(trajectory.previous_id or "")
        if previous is not None and (previous.task.id, previous.attempt + 1) != (
            trajectory.task.id,
            trajectory.attempt,
        ):
            said = f"{previous.id}, attempt {previous.attempt} at {previous.task.id}"
            mine.append(Reason("invalid_attempt", f"attempt {trajectory.attempt} names as the one before it {said}"))
        reasons.append(mine)
    return reasons
