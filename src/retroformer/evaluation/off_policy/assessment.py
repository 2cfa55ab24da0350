"""The off-policy report: is this policy better than what made the logs, by how much, or why the logs cannot tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retroformer.evaluation.off_policy import evidence as gauge
from retroformer.evaluation.off_policy import stand_in
from retroformer.evaluation.off_policy.action_value import Array, fitted_q
from retroformer.evaluation.off_policy.evidence import effective_size
from retroformer.evaluation.off_policy.improvement import (
    ANSWER,
    METHODS,
    Ratios,
    answer,
    improvement,
    interval,
    reference_of,
)
from retroformer.evaluation.off_policy.logs import Logs, Scored, score
from retroformer.types import LEARNABLE, Outcome, Trajectory

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
    agents, stands in where log-probabilities were not recorded, if it fits these. `champion` None compares with the
    behaviour itself. Undiscounted returns, trajectories weighted equally. Where the logs cannot tell, ``refused`` says
    why. Raises PolicyError where a trajectory cannot be laid out.
    """
    usable = [one for one in trajectories if one.learnable and one.steps]
    outcomes = Counter(one.outcome for one in trajectories)
    report: dict[str, Any] = {
        "trajectories": len(usable),
        "instances": len({one.task.id for one in usable}),
        "decisions": sum(len(one.steps) for one in usable),
        "left_out": {str(name): n for name, n in sorted(outcomes.items()) if name not in LEARNABLE},
        "mode": "text" if any(step.admissible_actions is None for one in usable for step in one.steps) else "choice",
        "behaviour": sorted({one.policy for one in usable}),
        "compared_with": "behaviour" if champion is None else "champion",
        "temperature": temperature,
        "confidence": confidence,
        "assumptions": [],
    }
    silent = sum(step.logprob is None for one in usable for step in one.steps)
    refused = unusable(outcomes, len(usable))
    if silent and behaviour is None:
        refused = refused or (
            f"{silent / report['decisions']:.0%} of the decisions were logged without a log-probability; a policy that "
            "was fitted to other logs of the same agents (train.objective: imitation) can stand in for the behaviour"
        )
    if refused is not None:
        return report | {"refused": refused}
    logs = Logs(usable)
    behaviour_s = logs.behaviour_s
    if silent:
        fitted, silent_s = score(behaviour, usable, None), np.isnan(behaviour_s)
        fit = stand_in.fit(logs, fitted, silent_s)
        report["stand_in"] = fit.to_dict()
        refused = stand_in.refusal(fit)
        if refused is not None:
            return report | {"refused": refused}
        behaviour_s = np.where(silent_s, logs.chosen(fitted), behaviour_s)
        report["assumptions"].append(
            f"the behaviour's log-probabilities of {silent / report['decisions']:.0%} of the decisions, estimated by a "
            "policy fitted to other logs, are exact"
        )
    if unknown := outcomes[Outcome.UNKNOWN]:
        report["assumptions"].append(
            f"the {unknown:,} trajectories of unknown outcome would have ended like the others"
        )
    own = view(logs, score(policy, usable, temperature), behaviour_s)
    other = None if champion is None else view(logs, score(champion, usable, temperature), behaviour_s)
    return report | assess(logs, own, other, confidence)


def unusable(outcomes: Counter[Outcome], left: int) -> str | None:
    """Why the trajectories say nothing, whatever the policy; None where they do."""
    if not left:
        return (
            f"none of the {outcomes.total()} trajectories that are kept for evaluation ended in success or failure; "
            "log more task instances, with their outcomes"
        )
    lost = outcomes[Outcome.ERROR] + outcomes[Outcome.TRUNCATED]
    if lost > MAX_LOST * outcomes.total():
        return (
            f"{lost} of {outcomes.total()} trajectories were lost to errors and limits, more than {MAX_LOST:.0%}: "
            "what is left is a selection"
        )
    return None


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
    return View(ratios, gauge.evidence(ratios_nt, logs.rewards_nt, logs.mask_nt))


def assess(logs: Logs, own: View, other: View | None, confidence: float) -> dict[str, Any]:
    """The part of the report that rests on the weights; `other` None compares with the behaviour.

    Where the logs cannot answer for one of the two policies, `refused` says why and there is no interval: what the
    estimators would have said is not worth showing.
    """
    tasks = {task: np.array([name == task for name in logs.tasks]) for task in sorted(set(logs.tasks))}
    found: dict[str, Any] = {"evidence": own.evidence.to_dict()}
    views = {"": own} if other is None else {"": own, "for the champion, ": other}
    for whose, one in views.items():
        sizes = {
            task: (int(mine.sum()), effective_size(one.ratios.ratios_nt[mine], logs.rewards_nt[mine]))
            for task, mine in tasks.items()
        }
        reason = gauge.refusal(one.evidence, sizes)
        if reason is not None:
            return found | {"refused": whose + reason}
    if other is not None:
        found["champion_evidence"] = other.evidence.to_dict()
    methods = {name: of for name, of in METHODS.items() if not (logs.generated and name == "direct method")}
    reference = reference_of([one.ratios for one in views.values()])
    estimates = {name: of(own.ratios) for name, of in methods.items()}
    estimates[ANSWER] = answer(own.ratios, reference)
    ess = min(one.evidence.ess for one in views.values())
    level = 1 - (1 - confidence) / len(tasks)
    per_task = []
    for task, mine in tasks.items():
        here = [one.ratios.of(mine) for one in views.values()]
        size = min(effective_size(one.ratios_nt, one.rewards_nt) for one in here)
        instances = np.unique(logs.instance_n[mine], return_inverse=True)[1]
        known = improvement(here, instances, level, size)._asdict() if size >= MIN_TASK_ESS else None
        per_task.append({"task": task, "n": int(mine.sum()), "ess": size, "difference": known})
    return found | {
        "refused": None,
        "estimates": [
            {"method": name, **interval(estimate, logs.instance_n, confidence, ess)._asdict()}
            for name, estimate in estimates.items()
        ],
        "reference": interval(reference, logs.instance_n, confidence, ess)._asdict(),
        "difference": improvement([one.ratios for one in views.values()], logs.instance_n, confidence, ess)._asdict(),
        "per_task": per_task,
    }
