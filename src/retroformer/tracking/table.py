"""The table of closed rounds, and where to look next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retroformer.evaluation.baselines import advice
from retroformer.pins import read_pins
from retroformer.stages import STAGES
from retroformer.tracking import mlflow_view
from retroformer.tracking.record import read_records

POLICIES = ("behaviour", "champion", "challenger")


def show(root: Path = Path("."), console: Console | None = None) -> None:
    """Print the table of closed rounds, the pins, and where to look."""
    console = console or wide_console()
    pins = read_pins(root / "data/champion.json")
    records = read_records(root, pins.closed_rounds)
    if not records:
        console.print("No round is closed yet: `dvc repro`, then `retroformer close`; `make run` does both.")
        return
    console.print(table(records))
    for record in records:
        console.print(f"round {record['round']}  [bold]{record['verdict'].replace('_', ' ')}[/]: ", end="")
        console.print(record["reason"], markup=False, highlight=False)
        for one in record.get("behind", ()):
            console.print(f"         {advice(one)}", markup=False, highlight=False)
        if record["seconds"]:
            seconds = record["seconds"]
            stages = ", ".join(f"{stage} {seconds[stage]:.0f} s" for stage in STAGES if stage in seconds)
            if around := sum(record.get("around", {}).values()):
                stages += f"; {around:.0f} s around them"
            console.print(f"         {sum(seconds.values()):.0f} s: {stages}", style="dim", highlight=False)
    in_production = pins.champion.uri or pins.champion.policy
    console.print(f"\nIn production: {in_production}; newest version: {mlflow_view.uri(records[-1]['model_version'])}")
    console.print("Where to look:", *places(root), sep="\n  ", highlight=False, soft_wrap=True)


def wide_console() -> Console:
    """The terminal; where there is none, lines as wide as the table needs."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def table(records: list[dict[str, Any]]) -> Table:
    """Success of behaviour, champion and challenger on every level of every round."""
    shown = Table(title="Success on the gate's seeds, with its interval and the number of episodes")
    shown.add_column("round", justify="right")
    shown.add_column("level")
    for policy in POLICIES:
        shown.add_column(policy, no_wrap=True)
    for record in records:
        for level in record["levels"]:
            whole = level["task"] is None
            shown.add_row(
                str(record["round"]) if whole else "",
                "all levels" if whole else level["task"],
                *(figure(level[policy]) for policy in POLICIES),
                style="bold" if whole else None,
            )
        shown.add_section()
    return shown


def figure(value: dict[str, Any] | None) -> str:
    """``.62 [.58, .66] n 800``"""
    if value is None:
        return "-"
    success, lower, upper = (f"{value[key]:.2f}" for key in ("success", "lower", "upper"))
    return rf"{success} \[{lower}, {upper}] n {value['n']}"


def places(root: Path) -> list[str]:
    """Reports that are there, and commands that show more."""
    files = {
        "report": "data/decision/report.html",
        "Data Docs": "data/validated/docs/index.html",
        "rounds as a table": "data/rounds.csv",
    }
    found = [f"{name:<18} {path}" for name, path in files.items() if (root / path).is_file()]
    return [
        *found,
        f"{'learning curves':<18} dvc plots show",
        f"{'runs and registry':<18} "
        + (
            mlflow_view.place()
            if mlflow_view.elsewhere()
            else f"mlflow ui --backend-store-uri sqlite:///{mlflow_view.DATABASE}"
        ),
    ]
