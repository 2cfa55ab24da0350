"""`retroformer off-policy`: ask a folder of logs about a checkpoint, and say what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retroformer.errors import ConfigError, DataError
from retroformer.evaluation.off_policy.assessment import evaluate_on_logs
from retroformer.evaluation.off_policy.table import tables
from retroformer.storage import read_trajectories
from retroformer.types import Trajectory


def ask(
    logs: Path,
    policy: str,
    *,
    behaviour: str | None = None,
    champion: str | None = None,
    temperature: float = 1.0,
    confidence: float = 0.95,
    unseen: bool = False,
) -> dict[str, Any]:
    """The off-policy report of the checkpoint `policy` on the trajectories of `logs`; see `evaluate_on_logs`.

    Only those of split evaluation, or all where the user says that training saw none (`unseen`). Raises DataError where
    there is none, PolicyError where a checkpoint cannot be loaded.
    """
    if not 0.5 < confidence < 1:
        raise ConfigError(f"--confidence is {confidence:g}, allowed: between 0.5 and 1")
    if not 0 < temperature <= 10:
        raise ConfigError(f"--temperature is {temperature:g}, allowed: above 0, at most 10")
    chosen = apart(logs, unseen)
    from retroformer.policies.checkpoints import load

    return evaluate_on_logs(
        chosen,
        load(policy),
        temperature=temperature,
        confidence=confidence,
        behaviour=None if behaviour is None else load(behaviour),
        champion=None if champion is None else load(champion),
    )


def apart(logs: Path, unseen: bool) -> list[Trajectory]:
    """What training and checkpoint choice cannot have seen."""
    trajectories = read_trajectories(logs)
    chosen = [one for one in trajectories if unseen or one.task.split == "evaluation"]
    if not chosen:
        raise DataError(
            f"{logs} has {len(trajectories)} trajectories, none of split evaluation: the policy may have been trained "
            "on them; give logs that `retroformer import` split, or say --unseen if training saw none of these"
        )
    return chosen


def show(report: dict[str, Any]) -> None:
    """Print the tables and the answer in a sentence."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=120)
    for one in tables(report):
        shown = Table(title=one["title"], title_justify="left", show_header=any(one["head"]))
        for place, name in enumerate(one["head"]):
            shown.add_column(name, justify="left" if place == 0 or not name else "right")
        for row in one["rows"]:
            shown.add_row(*row)
        console.print(shown)
    console.print(sentence(report), highlight=False, markup=False)


def sentence(report: dict[str, Any]) -> str:
    """The answer in words."""
    if report["refused"]:
        return f"Not enough evidence: {report['refused']}."
    found, against = report["difference"], report["compared_with"]
    level = f"{100 * report['confidence']:.4g}% interval"
    interval = f"{found['mean']:+.3f}, {level} {found['lower']:+.3f} to {found['upper']:+.3f}"
    if found["lower"] > 0:
        return f"The policy is better than the {against}: {interval}."
    if found["upper"] < 0:
        return f"The policy is worse than the {against}: {interval}."
    return f"These logs do not show whether the policy is better than the {against}: {interval}."
