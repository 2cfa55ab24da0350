"""The off-policy report: is this policy better than what made the logs, by how much, or why the logs cannot tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroformer.errors import DataError
from retroformer.evaluation.off_policy import evidence as gauge
from retroformer.evaluation.off_policy.action_value import Array, fitted_q
from retroformer.evaluation.off_policy.estimators import Means, cumulative, on_policy
from retroformer.evaluation.off_policy.improvement import ANSWER, METHODS, Interval, Ratios, answer, interval
from retroformer.evaluation.off_policy.logs import Logs, Scored, score
from retroformer.types import Outcome, Trajectory

MAX_LOST = 0.1
"""Share of the trajectories that errors and limits may have cost: beyond it the rest is a selection."""
MIN_TASK_ESS = 25.0
"""Effective sample size below which a task has no interval of its own."""
MAX_LOG_RATIO = 500.0
"""Nats. Where floats end, far beyond what any threshold lets pass."""


@dataclass(frozen=True, slots=True)
class View:
    """One policy on the logs: what the estimators need."""

    ratios: Ratios
    evidence: gauge.Evidence


def evaluate_on_logs(
    trajectories: Sequence[Trajectory],
    policy: Any,
    *,
    temperature: float,
    confidence: float,
    behaviour: Any = None,
    champion: Any = None,
) -> dict[str, Any]:
    """The off-policy report of a policy on logs that neither its training nor its choice has seen.

    `policy`, `behaviour` and `champion` are language-model policies. `behaviour`, fitted to other logs of the same
    agents, stands in where log-probabilities were not recorded. `champion` None compares with the behaviour itself.
    Undiscounted returns, trajectories weighted equally. Raises DataError where no trajectory has an outcome,
    PolicyError where one cannot be laid out.
    """
    usable = [one for one in trajectories if one.learnable and one.steps]
    outcomes = Counter(one.outcome for one in trajectories)
    if not usable:
        raise DataError(f"no trajectory of the {len(trajectories)} to evaluate on ended in success or failure")
    logs = Logs(usable)
    silent = np.isnan(logs.behaviour_s)
    behaviour_s, assumptions = logs.behaviour_s, []
    refused = lost_too_many(outcomes)
    if silent.any():
        share = float(silent.mean())
        if behaviour is None:
            refused = refused or (
                f"{share:.0%} of the decisions were logged without a log-probability: evaluate with a policy that was "
                "fitted to the logs (train.objective: imitation) as the behaviour"
            )
        else:
            fitted = logs.chosen(score(behaviour, usable, None))
            behaviour_s = np.where(silent, fitted, behaviour_s)
            assumptions.append(
                f"the behaviour's log-probabilities of {share:.0%} of the decisions are estimated by a policy fitted "
                "to other logs of it, and taken as exact"
            )
    if outcomes[Outcome.UNKNOWN]:
        assumptions.append(
            f"the {outcomes[Outcome.UNKNOWN]} trajectories of unknown outcome would have ended like the others"
        )
    report: dict[str, Any] = {
        "trajectories": len(usable),
        "instances": int(logs.instance_n.max()) + 1,
        "decisions": int(logs.mask_nt.sum()),
        "left_out": {str(name): n for name, n in sorted(outcomes.items()) if name not in LEARNABLE},
        "mode": "text" if logs.generated else "choice",
        "behaviour": sorted({one.policy for one in usable}),
        "compared_with": "champion" if champion is not None else "behaviour",
        "temperature": temperature,
        "confidence": confidence,
        "assumptions": assumptions,
        "behaviour_value": on_policy(logs.rewards_nt).value,
    }
    if refused is None:
        own = view(logs, score(policy, usable, temperature), behaviour_s)
        other = None if champion is None else view(logs, score(champion, usable, temperature), behaviour_s)
        report |= assess(logs, own, other, confidence)
    else:
        report["refused"] = refused
    return report


LEARNABLE = (Outcome.SUCCESS, Outcome.FAILURE)


def lost_too_many(outcomes: Counter[Outcome]) -> str | None:
    """Why what is left is a selection, None where it is not."""
    lost = outcomes[Outcome.ERROR] + outcomes[Outcome.TRUNCATED]
    if lost <= MAX_LOST * outcomes.total():
        return None
    return (
        f"{lost} of {outcomes.total()} trajectories were lost to errors and limits, more than {MAX_LOST:.0%}: "
        "what is left is a selection"
    )


def view(logs: Logs, scored: Scored, behaviour_s: Array) -> View:
    """Ratios to the behaviour, the policy's cross-fitted action value, and how much the logs say of it.

    Where actions are generated there are no alternatives to sum over: then Q depends on the history alone, which
    leaves the doubly robust estimates as consistent as they are (any Q does) and takes some of their variance. The
    ratio is that of the whole action, the sum over its tokens.
    """
    log_ratio_s = (logs.chosen(scored) - behaviour_s).clip(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratios_nt = np.exp(logs.padded(log_ratio_s))
    q_s, v_s = fitted_q(logs.decisions(scored), logs.fold_n)
    ratios = Ratios(ratios_nt, logs.rewards_nt, logs.padded(q_s), logs.padded(v_s))
    return View(ratios, gauge.evidence(ratios_nt, logs.mask_nt))


def assess(logs: Logs, own: View, other: View | None, confidence: float) -> dict[str, Any]:
    """The part of the report that rests on the weights; `other` None compares with the behaviour.

    Where the logs cannot answer for one of the two policies, `refused` says why and there is no interval: what the
    estimators would have said is not worth showing.
    """
    tasks = {task: np.array([name == task for name in logs.tasks]) for task in sorted(set(logs.tasks))}
    found: dict[str, Any] = {"evidence": own.evidence.to_dict()}
    views = {"": own} if other is None else {"": own, "of the champion, ": other}
    for whose, one in views.items():
        sizes = {task: (int(mine.sum()), ess_of(one.ratios, mine)) for task, mine in tasks.items()}
        reason = gauge.refusal(one.evidence, sizes)
        if reason is not None:
            return found | {"refused": whose + reason}
    if other is not None:
        found["champion_evidence"] = other.evidence.to_dict()
    methods = {name: of for name, of in METHODS.items() if not (logs.generated and name == "direct method")}
    reference = reference_of(logs, other)
    estimates = {name: of(own.ratios) for name, of in methods.items()}
    estimates[ANSWER] = answer(own.ratios, reference)
    ess = min(one.evidence.ess for one in views.values())
    level = 1 - (1 - confidence) / len(tasks)
    per_task = []
    for task, mine in tasks.items():
        size = min(ess_of(one.ratios, mine) for one in views.values())
        known = improvement(logs, own, other, mine, level, size)._asdict() if size >= MIN_TASK_ESS else None
        per_task.append({"task": task, "n": int(mine.sum()), "ess": size, "difference": known})
    everyone = np.ones(len(logs.tasks), dtype=bool)
    return found | {
        "refused": None,
        "estimates": [
            {"method": name, **interval(estimate, logs.instance_n, confidence, ess)._asdict()}
            for name, estimate in estimates.items()
        ],
        "reference": interval(reference, logs.instance_n, confidence, ess)._asdict(),
        "difference": improvement(logs, own, other, everyone, confidence, ess)._asdict(),
        "per_task": per_task,
    }


def improvement(
    logs: Logs, own: View, other: View | None, mine: NDArray[np.bool_], confidence: float, ess: float
) -> Interval:
    """The policy's value minus that of what it is compared with, on the trajectories of `mine`."""
    reference = reference_of(logs, other, mine)
    estimate = answer(own.ratios.of(mine), reference)
    instances = np.unique(logs.instance_n[mine], return_inverse=True)[1]
    return interval(estimate.plus(reference, -1), instances, confidence, ess)


def reference_of(logs: Logs, other: View | None, mine: NDArray[np.bool_] | None = None) -> Means:
    """The champion's value by the same estimator, or the behaviour's own."""
    chosen = slice(None) if mine is None else mine
    behaviour = on_policy(logs.rewards_nt[chosen])
    return behaviour if other is None else answer(other.ratios.of(chosen), behaviour)


def ess_of(ratios: Ratios, mine: NDArray[np.bool_]) -> float:
    """Effective sample size of some trajectories' weights."""
    weights_n = cumulative(ratios.ratios_nt[mine])[:, -1]
    square = float(weights_n @ weights_n)
    return float(weights_n.sum()) ** 2 / square if square > 0 else 0.0
