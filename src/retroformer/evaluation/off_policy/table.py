"""The off-policy report as tables of text, for the terminal and for the page of a round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from retroformer.evaluation.off_policy import evidence
from retroformer.evaluation.off_policy.assessment import MIN_TASK_ESS
from retroformer.evaluation.off_policy.stand_in import MAX_MISFIT


class Table(TypedDict):
    """A title, the names of the columns, the rows."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(report: Mapping[str, Any]) -> list[Table]:
    """What was asked, how much the logs say, what each estimator says, and each task; the latter two if they can tell.

    `report` is that of `evaluate_on_logs`.
    """
    asked = [
        ["trajectories", f"{report['trajectories']:,} of {report['instances']:,} task instances"],
        ["decisions", f"{report['decisions']:,}, {'generated text' if report['mode'] == 'text' else 'choices'}"],
        ["behaviour", ", ".join(report["behaviour"]) or "-"],
        ["left out", ", ".join(f"{name} {n:,}" for name, n in report["left_out"].items()) or "nothing"],
        ["policy's temperature", f"{report['temperature']:g}"],
        ["assumed", "; ".join(report["assumptions"]) or "that the log-probabilities are those of what was sampled"],
    ]
    if report.get("stand_in"):
        fit = report["stand_in"]
        known = f"{fit['gain']:+.2f} ± {fit['gain_error']:.2f} nats a trajectory, not proven above {MAX_MISFIT:g}"
        asked.append(["what counting predicts better than the stand-in", known])
    found: list[Table] = [{"title": "Logs", "head": ["", ""], "rows": asked}]
    if report.get("evidence"):
        found.append(gauges("Evidence", report["evidence"]))
    if report.get("champion_evidence"):
        found.append(gauges("Evidence on the champion", report["champion_evidence"]))
    if report.get("baselines"):
        found.append(beside(report["baselines"]))
    if report["refused"]:
        return found
    reference = "champion" if report["compared_with"] == "champion" else "behaviour, its own returns"
    lines = [(one["method"], one) for one in report["estimates"]]
    lines += [(reference, report["reference"]), ("improvement", report["difference"])]
    level = f"{100 * report['confidence']:.4g}% interval"
    rows = [
        [name, signed(one["mean"], name), f"{one['standard_error']:.3f}", span(one, name == "improvement")]
        for name, one in lines
    ]
    found.append({"title": "Return", "head": ["estimator", "estimate", "standard error", level], "rows": rows})
    per_task = []
    for one in report["per_task"]:
        known = one["difference"]
        words = ["too little evidence", ""] if known is None else [f"{known['mean']:+.3f}", span(known, True)]
        per_task.append([one["task"], f"{one['n']:,}", f"{one['ess']:.0f}", *words])
    head = ["task", "n", f"worth (at least {MIN_TASK_ESS:.0f})", "improvement", "interval, all at once"]
    return [*found, {"title": "Improvement by task", "head": head, "rows": per_task}]


def beside(baselines: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the same logs say of the baselines, each against the behaviour."""
    rows = []
    for name, one in baselines.items():
        known = one["difference"]
        worth = f"{one['evidence']['ess']:.0f}" if one["evidence"] else ""
        words = ["not enough evidence", ""] if known is None else [f"{known['mean']:+.3f}", span(known, True)]
        rows.append([name.replace("_", " "), worth, *words])
    head = ["baseline", "worth", "improvement on the behaviour", "interval"]
    return {"title": "Baselines", "head": head, "rows": rows}


def gauges(title: str, found: Mapping[str, Any]) -> Table:
    """How much the logs say of a policy, beside the thresholds."""
    rows = [
        ["effective sample size", f"{found['ess']:.0f}", f"at least {evidence.MIN_ESS:.0f}"],
        ["overlap, sum of min(policy, behaviour)", f"{found['overlap']:.2f}", ""],
        [
            "policy's decisions outside the behaviour's support",
            # The estimate of a share may come out below 0, the share may not.
            f"{max(found['outside'], 0.0):.1%} ± {found['outside_error']:.1%}",
            f"not proven above {evidence.MAX_OUTSIDE:.0%}",
        ],
        [
            "mean weight, 1 if the ratios are right",
            f"{found['mean_weight']:.2f} ± {found['mean_weight_error']:.2f}",
            f"not proven farther than {evidence.MAX_DRIFT:g}",
        ],
        ["largest weight's share", f"{found['largest_weight']:.1%}", ""],
        ["trajectories of an uncommon return", f"{found['events']:,}", f"at least {evidence.MIN_EVENTS}"],
    ]
    return {"title": title, "head": ["", "", "asked"], "rows": rows}


def signed(value: float, name: str) -> str:
    """An estimate; with its sign where it is a difference."""
    return f"{value:+.3f}" if name == "improvement" else f"{value:.3f}"


def span(one: Mapping[str, float], sign: bool) -> str:
    """An interval."""
    form = "+.3f" if sign else ".3f"
    return f"{one['lower']:{form}} to {one['upper']:{form}}"
