"""The gate: promote, keep, or not enough evidence. A pure function of what was measured.

In this order, the first that holds decides:

1. too many episodes or the whole control were lost      not enough evidence
2. the challenger is proven to ignore its mission,       keep, judged worse
   over the tasks that have more than one
3. the difference is proven negative                     keep, judged worse
4. one task is proven to have fallen too far             keep, judged worse
5. the difference is proven above the asked improvement  promote; not enough evidence while it is open
                                                         whether the challenger follows its mission
6. the difference is proven not above it                 keep
7. otherwise                                             not enough evidence

On logs alone (`judge_on_logs`) the same, without 2, whose control cannot be played; and first of all
not enough evidence where the logs cannot tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from retroformer.config import DecideConfig
from retroformer.errors import DataError
from retroformer.evaluation.comparison import MIN_PAIRS, Difference, TaskDifference, pairs_needed
from retroformer.evaluation.intervals import Estimate

BOUNDS = ("mean", "lower", "upper")
POWER = 0.84
"""Normal quantile of four in five."""
MAX_LOST = 0.1
"""Share of the pairs that may be lost. What breaks is seldom a random tenth: beyond it the rest is a selection."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to happen to the challenger, and why."""

    verdict: Literal["promote", "keep", "not_enough_evidence"]
    reason: str
    judged_worse: bool
    """Whether training must not go on from this challenger."""
    difference: float | None
    """None, like its interval, where logs cannot tell: a figure that is not to be trusted is not given."""
    lower: float | None
    upper: float | None
    n: int
    """Pairs of episodes, or trajectories of the logs."""
    per_task: tuple[TaskDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """As ``verdict.json`` holds it, the round apart."""
        per_task = [
            {"task": one.task, "difference": one.mean, "lower": one.lower, "upper": one.upper, "n": one.n}
            for one in self.per_task
        ]
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "judged_worse": self.judged_worse,
            "difference": self.difference,
            "lower": self.lower,
            "upper": self.upper,
            "n": self.n,
            "per_task": per_task,
        }


def judge(
    difference: Difference,
    true_success: Estimate | None,
    swapped_success: Estimate | None,
    config: DecideConfig,
    *,
    controlled: bool = True,
) -> Verdict:
    """The verdict on a challenger.

    `difference`: challenger minus champion on the same seeds. `true_success` and `swapped_success`: the challenger's
    mean success over tasks (0..1) told the true mission, and told another one, with their intervals; None where every
    episode was lost. `controlled`: false where no task has another mission to be told.
    """

    def verdict(kind: Literal["promote", "keep", "not_enough_evidence"], reason: str, worse: bool = False) -> Verdict:
        mean, lower, upper = difference.mean, difference.lower, difference.upper
        return Verdict(kind, reason, worse, mean, lower, upper, difference.n, difference.per_task)

    measured = (
        f"{difference.mean:+.3f} (interval {difference.lower:+.3f} to {difference.upper:+.3f}, {difference.n} pairs)"
    )
    played = difference.n + difference.lost
    if difference.lost > MAX_LOST * played:
        return verdict(
            "not_enough_evidence",
            f"{difference.lost} of {played} pairs were lost to errors and limits, more than {MAX_LOST:.0%}: "
            "mend what breaks before judging the rest.",
        )
    thin = [task for task in difference.per_task if task.n < MIN_PAIRS]
    if thin:
        return verdict(
            "not_enough_evidence", f"{thin[0].task} has {thin[0].n} valid pairs, at least {MIN_PAIRS} are needed."
        )
    follows, told = True, ""
    if controlled:
        if true_success is None or swapped_success is None:
            reason = "Every episode with a swapped mission was lost: the control is missing."
            return verdict("not_enough_evidence", reason)
        told = (
            f"told the wrong one it succeeds at {swapped_success.mean:.3f} (interval {swapped_success.lower:.3f} to "
            f"{swapped_success.upper:.3f}), told the true one at {true_success.mean:.3f}; at most "
            f"{config.max_swapped:g} of that is allowed"
        )
        if swapped_success.lower > config.max_swapped * true_success.upper:
            return verdict("keep", f"The challenger ignores its mission: {told}.", worse=True)
        follows = swapped_success.upper <= config.max_swapped * true_success.lower
    if difference.upper < 0:
        return verdict("keep", f"The challenger is worse than the champion by {measured}.", worse=True)
    fallen = min(difference.per_task, key=lambda task: task.upper)
    if fallen.upper < -config.max_regression:
        return verdict(
            "keep",
            f"On {fallen.task} the challenger fell by {fallen.mean:+.3f} (interval {fallen.lower:+.3f} to "
            f"{fallen.upper:+.3f}, {fallen.n} pairs), beyond the allowed {config.max_regression:g}.",
            worse=True,
        )
    if difference.lower > config.min_improvement:
        if not follows:
            return verdict(
                "not_enough_evidence",
                f"The challenger is better by {measured}, but it is not proven that it follows its mission: {told}.",
            )
        alone = "" if controlled else " Its tasks have one mission each, so none was swapped."
        proven = f"proven above {config.min_improvement:g}"
        return verdict("promote", f"The challenger is better by {measured}, {proven}.{alone}")
    if difference.upper <= config.min_improvement:
        return verdict("keep", f"The difference is {measured}, proven not above {config.min_improvement:g}.")
    needed = pairs_needed(difference, config.min_improvement)
    if needed is None:
        return verdict(
            "not_enough_evidence",
            f"The difference is {measured}: not above {config.min_improvement:g}, and not proven to be below.",
        )
    return verdict(
        "not_enough_evidence",
        f"The difference is {measured}: not proven above {config.min_improvement:g}; "
        f"were it the true one, about {needed - difference.n} more pairs would show it four times in five.",
    )


def judge_on_logs(report: dict[str, Any], config: DecideConfig) -> Verdict:
    """The verdict on a challenger that cannot be played, from the off-policy report of `evaluate_on_logs`.

    Promotes only where the lower end of the improvement's interval is above ``decide.min_improvement``. Raises
    DataError where the report is not one.
    """
    try:
        n, refused, assumptions = int(report["trajectories"]), report["refused"], list(report["assumptions"])
        per_task = []
        for one in report.get("per_task", ()):
            if one["difference"] is not None:
                mean, lower, upper = (float(one["difference"][key]) for key in BOUNDS)
                per_task.append(TaskDifference(one["task"], mean, lower, upper, int(one["n"])))
        figures = None if refused else [float(report["difference"][key]) for key in (*BOUNDS, "standard_error")]
        known = figures is None or all(map(math.isfinite, figures))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the off-policy report lacks a part of its answer: {error}") from None
    if not known:
        raise DataError(f"the off-policy report has a difference that is not finite: {figures}")
    if figures is None:
        reason = f"On logs alone: {refused}."
        return Verdict("not_enough_evidence", reason, False, None, None, None, n, ())
    mean, lower, upper, error = figures
    measured = (
        f"{mean:+.3f} (interval {lower:+.3f} to {upper:+.3f}), estimated from {n:,} logged trajectories"
        f"{''.join(f'; assumed: {one}' for one in assumptions)}"
    )

    def verdict(kind: Literal["promote", "keep", "not_enough_evidence"], reason: str, worse: bool = False) -> Verdict:
        return Verdict(kind, reason, worse, mean, lower, upper, n, tuple(per_task))

    if upper < 0:
        return verdict("keep", f"The challenger is worse than the {report['compared_with']} by {measured}.", worse=True)
    fallen = min(per_task, key=lambda task: task.upper, default=None)
    if fallen is not None and fallen.upper < -config.max_regression:
        return verdict(
            "keep",
            f"On {fallen.task} the challenger fell by {fallen.mean:+.3f} (interval {fallen.lower:+.3f} to "
            f"{fallen.upper:+.3f}, {fallen.n} logged trajectories), beyond the allowed {config.max_regression:g}.",
            worse=True,
        )
    if lower > config.min_improvement:
        better = f"The challenger is better than the {report['compared_with']} by {measured}"
        return verdict("promote", f"{better}; proven above {config.min_improvement:g}.")
    if upper <= config.min_improvement:
        return verdict("keep", f"The difference is {measured}; proven not above {config.min_improvement:g}.")
    effect = mean - config.min_improvement
    if effect <= 0:
        return verdict(
            "not_enough_evidence",
            f"The difference is {measured}; not above {config.min_improvement:g}, and not proven to be below.",
        )
    # The interval's own reach, plus a normal quantile of one error for a chance of four in five.
    needed = math.ceil(n * ((mean - lower + POWER * error) / effect) ** 2)
    return verdict(
        "not_enough_evidence",
        f"The difference is {measured}; not proven above {config.min_improvement:g}. Were it the true one, about "
        f"{needed - n:,} more such trajectories would show it four times in five.",
    )
