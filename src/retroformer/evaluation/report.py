"""The report of a round: one self-contained HTML page, without scripts and without anything from elsewhere.

What environments, logs and policies say is hostile until shown otherwise: the template escapes all of it
(``report.html``, autoescape on), drawings are made by `figures.element`, which escapes too, and the page's own
content security policy forbids scripts and loading. The same inputs give the same bytes.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from retroformer.errors import DataError
from retroformer.evaluation import figures
from retroformer.evaluation.baselines import advice, baseline_bars, baseline_lines
from retroformer.evaluation.episodes import read_episodes
from retroformer.evaluation.figures import Point, Row, Series
from retroformer.evaluation.intervals import Estimate
from retroformer.evaluation.off_policy.table import tables as tables_on_logs
from retroformer.evaluation.success import POLICIES, behaviour_of, cell, success_tables
from retroformer.files import read_json, write_text

MAX_TEXT = 2_000
"""Characters of one text that are shown."""
MAX_TRAJECTORIES, MAX_STEPS = 12, 100
QUALITY_BINS = 20


def write_report(
    path: Path,
    *,
    verdict: dict[str, Any],
    evaluation: Path,
    training: Path,
    batches: Path,
    validated: Path,
    rollouts: Path,
    history: Path,
) -> None:
    """Write the page of a round.

    `verdict` is what verdict.json holds; the folders are the outputs of the stages before and the closed rounds.
    Success and its intervals are computed from episodes.csv, tasks weighted equally, at evaluation.json's confidence.
    A round in the history that is not before this one is left out: it is what an interrupted closing left.

    Raises DataError where evaluation.json or episodes.csv is missing, or any file is damaged. Whatever else is missing
    is named on the page.
    """
    played = evaluation / "episodes.csv", evaluation / "evaluation.json"
    episodes, report = read_episodes(played[0]), read_json(played[1])
    if not isinstance(report, dict) or not 0 < (real(report.get("confidence")) or 0) < 1:
        raise DataError(f"{played[1]} lacks its confidence, a number between 0 and 1")
    confidence = report["confidence"]
    catalogue = optional_catalogue(batches / "catalogue.csv")
    behaviour, made_by = behaviour_of(catalogue)
    tables = success_tables(episodes, behaviour, confidence)
    trained = optional(training / "train.json")
    rounds, absent = closed_rounds(history, verdict["round"])
    rounds.append(this_round(verdict, tables))
    lines = baseline_lines(episodes, history, verdict["round"], cell(tables, "behaviour", "true"), confidence)
    page = {
        "verdict": verdict,
        "difference": figures.forest("Challenger minus champion", difference_rows(verdict)),
        "confidence": f"{confidence:.3g}".removeprefix("0."),
        "level": f"{100 * confidence:.4g}%",
        "made_by": made_by,
        "who": {name: worded(report.get(name)) for name in ("champion", "challenger")},
        "errors": worded(report.get("errors")),
        "tables": tables,
        "rounds": rounds,
        "absent": absent,
        "curve": learning_curve(rounds),
        "levels": level_bars(tables),
        "baselines": lines,
        "baseline_bars": baseline_bars(lines),
        "advice": [advice(one) for one in verdict.get("behind", ())],
        "looks": looks(report),
        "on_logs": tables_on_logs(report["off_policy"]) if report.get("off_policy") else [],
        "training": training_figures(training / "curve.csv", trained),
        "train": facts(trained),
        "curriculum": curriculum_figures(training / "schedule.csv", catalogue),
        "validate": facts(optional(validated / "validate.json")),
        "collect": facts(optional(rollouts / "collect.json")),
        "trajectories": trajectories(optional(evaluation / "samples" / "trajectories.json")),
        "folders": {"training": training, "batches": batches, "validated": validated, "rollouts": rollouts},
    }
    write_text(path, render(page))


def render(page: dict[str, Any]) -> str:
    """Fill in the template. What UTF-8 cannot hold (a lone surrogate in a log) becomes a question mark."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"rate": figures.rate, "clip": clip, "signed": signed}
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(page).encode("utf-8", "replace").decode("utf-8") + "\n"


# Reading what may be missing


def optional(path: Path) -> Any:
    """A JSON file's content, None where there is no such file."""
    return read_json(path) if path.is_file() else None


def optional_catalogue(path: Path) -> Any:
    """The catalogue as a data frame, None where there is no such file."""
    if not path.is_file():
        return None
    from retroformer.curriculum.catalogue import read_catalogue

    return read_catalogue(path)


def columns_of(path: Path) -> dict[str, list[float]]:
    """A CSV file of numbers by column, what is empty or not a number as nan; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file: {error}") from None
    names = [name for name in (rows[0] if rows else ()) if name]
    return {name: [as_float(row.get(name)) for row in rows] for name in names}


def as_float(cell: str | None) -> float:
    """The number in a cell, nan where there is none."""
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def real(value: Any) -> float | None:
    """A finite number as it is, anything else as None."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if sound else None


def closed_rounds(history: Path, before: int) -> tuple[list[dict[str, Any]], list[str]]:
    """What the closed rounds before this one say of themselves, and the folders that have no round.json here."""
    found, absent = [], []
    for folder in sorted(history.glob("round-*")) if history.is_dir() else ():
        if not re.fullmatch(r"round-\d+", folder.name) or int(folder.name[6:]) >= before:
            continue
        record = optional(folder / "round.json")
        if not isinstance(record, dict):
            absent.append(folder.name)
            continue
        reigning = "challenger" if record.get("verdict") == "promote" else "champion"
        whole = next((one for one in record.get("levels", ()) if one.get("task") is None), {})
        figures_of = {name: interval(whole.get(name), record.get(f"{name}_success")) for name in POLICIES}
        summary = (optional(folder / "evaluation" / "evaluation.json") or {}).get("summary", ())
        wanted = {"policy": reigning, "range": "gate", "mission": "shuffled", "decoding": "sampled", "task": None}
        line = next((one for one in summary if one.get("family") is None and wanted.items() <= one.items()), None)
        figures_of["swapped"] = interval(line, record.get("swapped_success"))
        found.append({"round": int(folder.name[6:]), "record": record, **figures_of})
    return found, absent


def interval(value: Any, success: Any) -> Estimate | None:
    """A figure of the history; without its interval where only the `success` is known."""
    if isinstance(value, dict) and all(real(value.get(key)) is not None for key in ("success", "lower", "upper")):
        return Estimate(value["success"], value["lower"], value["upper"], int(real(value.get("n")) or 0))
    known = real(success)
    return None if known is None else Estimate(known, math.nan, math.nan, 0)


def this_round(verdict: dict[str, Any], tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round at hand in the form of `closed_rounds`."""
    own = {name: cell(tables, name, "true") for name in POLICIES}
    reigning = "challenger" if verdict["verdict"] == "promote" else "champion"
    own["swapped"] = cell(tables, reigning, "shuffled") or cell(tables, "challenger", "shuffled")
    return {"round": verdict["round"], "record": verdict, **own}


# Figures


def learning_curve(rounds: Sequence[dict[str, Any]]) -> Any:
    """Success over rounds."""
    names = {
        "behaviour": "made the data",
        "champion": "champion before the round",
        "challenger": "challenger",
        "swapped": "left in production, told another mission",
    }
    series = []
    for kind, name in names.items():
        known = [(one["round"], one[kind]) for one in rounds if one[kind] is not None]
        ends = [(None, None) if math.isnan(own.lower) else (own.lower, own.upper) for _, own in known]
        points = [Point(number, own.mean, *end) for (number, own), end in zip(known, ends, strict=True)]
        series.append(Series(name, kind, points, "points", dashed=kind == "swapped"))
    title = "Success over rounds"
    return figures.chart(title, series, x_label="round", y_range=(0, 1), whole_x=True)


def level_bars(tables: Sequence[dict[str, Any]]) -> list[Any]:
    """Bars by level, sampled, true mission: in each range one figure of means, and one for each family."""
    drawn = []
    for table in tables:
        shown = [
            (k, one) for k, one in enumerate(table["columns"]) if one[1:] == ("true", "sampled") and one[0] in POLICIES
        ]
        means: list[Any] = []
        parts: list[tuple[str, list[Any]]] = [(f"{table['name']}, mean over tasks", means)]
        for row in table["rows"]:
            cells = [(one.policy, row["cells"][k]) for k, one in shown]
            rows = [Row(policy, policy, *own[:3]) for policy, own in cells if own is not None]
            if row["kind"] == "family":
                parts.append((f"{table['name']}, {row['name']}", []))
            (parts[-1][1] if row["kind"] == "task" else means).append((row["name"], rows))
        legend = [(one.policy, one.policy) for _, one in shown]
        drawn += [figures.bars(title, groups, legend) for title, groups in parts if groups]
    return drawn


def difference_rows(verdict: dict[str, Any]) -> list[Row]:
    """The difference over all tasks and in each."""
    lines = [("all tasks", "challenger", verdict)] if verdict["difference"] is not None else []
    lines += [(one["task"], "neutral", one) for one in verdict["per_task"]]
    return [Row(name, kind, one["difference"], one["lower"], one["upper"]) for name, kind, one in lines]


def looks(report: dict[str, Any]) -> Any:
    """Difference and interval at each look."""
    rows = []
    for k, look in enumerate(report.get("looks") or (), start=1):
        values = [value for key in ("difference", "lower", "upper") if (value := real(look.get(key))) is not None]
        if len(values) == 3:
            rows.append(Row(f"look {k}: n {look.get('n')}", "challenger", *values))
    return figures.forest("Difference at each look", rows)


def training_figures(path: Path, trained: Any) -> list[Any]:
    """Curves over updates, the chosen checkpoint marked."""
    columns = columns_of(path)
    updates = columns.get("update", [])
    chosen = real((trained or {}).get("chosen_update"))

    def panel(title: str, names: Sequence[str], y_range: tuple[float, float] | None = None, style: str = "line") -> Any:
        series = [
            Series(name.replace("_", " "), f"line{k}", points(updates, columns.get(name, ())), style)
            for k, name in enumerate(names)
        ]
        return figures.chart(title, series, x_label="update", y_range=y_range, mark=chosen, mark_label="chosen")

    panels = [
        panel("Score of the checkpoints", ["score"], style="points"),
        panel("Loss", ["loss", "policy_loss", "value_loss"]),
        panel("Loss of predicted observations, nats a token", ["observation_loss"]),
        panel("Entropy, nats", ["entropy"]),
        panel("KL, behaviour to policy, nats a step", ["kl"]),
        panel("Effective sample size, clipped weights", ["ess", "clipped"], (0, 1)),
        panel("Gradient norm before clipping", ["grad_norm"]),
    ]
    return [one for one in panels if one is not None]


def points(xs: Iterable[float], ys: Iterable[float]) -> list[Point]:
    """Points of a curve; what is missing is left out when it is drawn."""
    return [Point(x, y) for x, y in zip(xs, ys, strict=False)]


def curriculum_figures(schedule: Path, catalogue: Any) -> list[Any]:
    """The schedule that training followed, and what the tiers hold."""
    columns = columns_of(schedule)
    updates = columns.get("update", [])
    admitted = Series("tiers", "line0", points(updates, columns.get("tiers_admitted", ())), "steps")
    signal = Series("signal", "line1", points(updates, columns.get("signal", ())))
    drawn = [
        figures.chart("Tiers admitted", [admitted], x_label="update"),
        figures.chart("Signal that admits the next tier", [signal], x_label="update"),
    ]
    if catalogue is not None and not catalogue.empty:
        rows = catalogue[(catalogue["split"] == "train") & catalogue["outcome"].isin(["success", "failure"])]
        tiers = sorted(set(rows["tier"]))
        rows = rows.assign(bin=(rows["quality"] * QUALITY_BINS).clip(0, QUALITY_BINS - 1).astype(int))
        by_quality = [(kind, counted(rows, "bin", kind, range(QUALITY_BINS))) for kind in ("success", "failure")]
        by_tier = [(kind, counted(rows, "tier", kind, tiers)) for kind in ("success", "failure")]
        edges = [figures.rate(k / QUALITY_BINS) for k in range(QUALITY_BINS)]
        drawn.append(figures.stacked("Trajectories by quality", edges, by_quality, "quality, 0 to 1"))
        drawn.append(figures.stacked("Trajectories by tier", [f"tier {k}" for k in tiers], by_tier, "1 is best"))
    return [one for one in drawn if one is not None]


def counted(rows: Any, column: str, outcome: str, values: Iterable[int]) -> list[float]:
    """How many rows of an outcome have each of the values."""
    counts = rows.loc[rows["outcome"] == outcome, column].value_counts()
    return [float(counts.get(value, 0)) for value in values]


# Words


def worded(value: Any) -> str:
    """Any JSON value in a few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        if all(real(value.get(key)) is not None for key in ("success", "lower", "upper")):
            return f"{value['success']:.3f} [{value['lower']:.3f}, {value['upper']:.3f}] n {worded(value.get('n'))}"
        return ", ".join(f"{key} {worded(own)}" for key, own in value.items())
    return ", ".join(map(worded, value)) if isinstance(value, list) else str(value)


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def clip(words: Any, most: int = MAX_TEXT) -> str:
    """The beginning of a long text, and how much is missing."""
    words = str(words)
    return words if len(words) <= most else f"{words[:most]} … ({len(words) - most:,} characters more)"


def facts(report: Any) -> dict[str, Any] | None:
    """A small report in pieces: `plain` name -> words, `tables` name -> table; None where there is no report."""
    if not isinstance(report, dict):
        return None
    own = {key.replace("_", " "): value for key, value in report.items()}
    nested = {key: value for key, value in own.items() if isinstance(value, dict | list) and value}
    plain = {key: worded(value) for key, value in own.items() if key not in nested}
    return {"plain": plain, "tables": {key: grid(value) for key, value in nested.items()}}


def grid(value: Any) -> dict[str, Any] | None:
    """A mapping or a list as a table: `head` and `rows` of words. None where it is neither, or empty."""
    if isinstance(value, dict):
        named = [own if isinstance(own, dict) else {"": own} for own in value.values()]
        value = [{"\x00": key, **own} for key, own in zip(value, named, strict=True)]
    if not isinstance(value, list) or not value:
        return None
    rows = [row if isinstance(row, dict) else {"\x00": row} for row in value]
    head = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[worded(row.get(key)) for key in head] for row in rows]
    return {"head": [key.strip("\x00").replace("_", " ") for key in head], "rows": cells}


def trajectories(found: Any) -> list[dict[str, Any]]:
    """The first sample trajectories in the form that the template shows: probabilities as checked numbers."""
    shown = []
    for one in found[:MAX_TRAJECTORIES] if isinstance(found, list) else ():
        steps = one.get("steps") or []
        told = [
            {
                "observation": clip(step.get("observation", "")),
                "action": clip(step.get("action", ""), 200),
                "reward": worded(real(step.get("reward"))),
                "probabilities": [
                    (clip(action, 200), min(1.0, max(0.0, real(p) or 0.0)), action == step.get("action"))
                    for action, p in (step.get("probabilities") or {}).items()
                ],
            }
            for step in steps[:MAX_STEPS]
        ]
        names = ("policy", "task", "seed", "mission", "description", "outcome")
        shown.append({**{name: clip(one.get(name, "")) for name in names}, "steps": told, "length": len(steps)})
    return shown
