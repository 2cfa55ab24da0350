"""docs/benchmarks/: a page and a figure of each benchmark, and the table of all, from the JSON that lies there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.breakdown import WORK
from retroformer.files import read_json, write_text

DOCS = Path("docs/benchmarks")
TARGETS: dict[str, tuple[float, float]] = {
    "chosen_vs_trl": (2.2, 3.5),
    "tree_vs_trl": (1.3, 2.2),
    "tree_vs_lamorel_8_5": (11, 18),
    "tree_vs_lamorel_12_10": (33, 60),
    "tree_vs_lamorel_20_20": (60, 120),
    "tree_overhead_12_10": (1.5, 1.15),
    "tree_overhead_20_5": (1.85, 1.15),
    "act_vs_lamorel_cached_500_6": (5, 10),
    "act_vs_naive_500_20": (50, 110),
    "gemm_share_128": (0.48, 0.70),
    "gemm_share_256": (0.58, 0.80),
    "selected_logits_152k": (4, 6),
    "orchestration_share": (0.35, 0.10),
    "import_short_results": (0.3, 0.5),
    "import_long_results": (0.3, 0.5),
}
"""What each ratio is to reach at least, and aims at; where the aim is the smaller of the two, lower is better."""
ORDER = ("case", "variant", "seconds")
"""Columns that come first in the table of cases."""


def write_page(name: str, source: Path) -> None:
    """NAME.md and NAME.png beside the others, from what was measured; and the table of all benchmarks."""
    report = read_json(source)
    DOCS.mkdir(parents=True, exist_ok=True)
    draw(report, DOCS / f"{name}.png")
    write_text(DOCS / f"{name}.md", page(report, source))
    reports = [read_json(path) for path in sorted(DOCS.glob("*.json"))]
    if reports:
        write_text(DOCS / "README.md", index(reports))


def page(report: Mapping[str, Any], source: Path) -> str:
    """The page of one benchmark."""
    name = report["name"]
    command = f"python -m benchmarks {name}"
    measured = f"{command}{' --quick' if report['quick'] else ''} --json {source.as_posix()}"
    parts = [
        f"# Benchmark: {name}",
        f"Made by `{measured}` and `{command} --pages`. {conditions(report)}",
        table(["ratio", "measured", "floor", "aim"], ratio_rows(report["ratios"])),
        f"![{name}]({name}.png)",
        "\n".join(f"- {note}" for note in report.get("notes", [])),
    ]
    if report.get("skipped"):
        parts.append("Left out:\n\n" + "\n".join(f"- {line}" for line in report["skipped"]))
    parts += ["## All cases", cases_table(report["cases"]), "## Model", f"`{report['model']}`"]
    return "\n\n".join(parts) + "\n"


def conditions(report: Mapping[str, Any]) -> str:
    """The machine, in a sentence."""
    machine = report["machine"]
    return (
        f"{machine['date']}, {machine['processor']} ({machine['instructions']}), {machine['cores']} cores, "
        f"{machine['threads']} in use, load {machine['load']} at the end, torch {machine['torch']}; "
        f"{'measured once' if report['reps'] == 1 else 'medians of ' + str(report['reps'])}."
    )


def index(reports: Sequence[Mapping[str, Any]]) -> str:
    """The table of all ratios."""
    rows = [
        [f"[{report['name']}]({report['name']}.md)", *row] for report in reports for row in ratio_rows(report["ratios"])
    ]
    when = "\n".join(f"- {report['name']}: {conditions(report)}" for report in reports)
    return (
        "# Benchmarks\n\n`make bench` measures all and writes these pages. Ratios are peer over project or share of a "
        "limit, as each page says; what is unfair to whom stands there too. Where the aim is below the floor, lower is "
        f"better.\n\n{table(['benchmark', 'ratio', 'measured', 'floor', 'aim'], rows)}\n\n{when}\n"
    )


def ratio_rows(ratios: Mapping[str, float]) -> list[list[str]]:
    """A row for each ratio, those with a floor first, what misses it marked."""
    rows = []
    for key in sorted(ratios, key=lambda one: (list(TARGETS).index(one) if one in TARGETS else len(TARGETS), one)):
        measured = cell(ratios[key])
        if key not in TARGETS:
            rows.append([f"`{key}`", measured, "", ""])
            continue
        floor, aim = TARGETS[key]
        missed = ratios[key] > floor if aim < floor else ratios[key] < floor
        rows.append([f"`{key}`", f"**{measured}, below par**" if missed else measured, cell(floor), cell(aim)])
    return rows


def cases_table(cases: Sequence[Mapping[str, Any]]) -> str:
    """Every case; columns that no case has a value for are left out."""
    names = dict.fromkeys(name for case in cases for name, value in case.items() if value is not None)
    columns = [*(name for name in ORDER if name in names), *(name for name in names if name not in ORDER)]
    return table(columns, [[cell(case.get(name)) for name in columns] for case in cases])


def cell(value: Any) -> str:
    """A value as it stands in a table: three digits, and repetitions as median (least to most)."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        if {"median", "least", "most"} <= value.keys():
            return f"{value['median']:.3g} ({value['least']:.3g} to {value['most']:.3g})"
        return ", ".join(f"{name} {cell(one)}" for name, one in value.items())
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Left the ratios with floor and aim, right where the time went; for a round, left how its stages grow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    if report["name"] == "end-to-end":
        draw_growth(report["cases"], left)
        draw_breakdown(report["cases"], right)
    else:
        draw_ratios(report["ratios"], left)
        draw_seconds(report["cases"], right)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_ratios(ratios: Mapping[str, float], axes: Any) -> None:
    """A dot for each ratio, a line from floor to aim."""
    for place, (key, value) in enumerate(ratios.items()):
        axes.plot(value, place, "C0o", zorder=3)
        if key in TARGETS:
            floor, aim = TARGETS[key]
            axes.plot([floor, aim], [place, place], "C7-", lw=6, alpha=0.3, solid_capstyle="butt")
            axes.plot(floor, place, "C3|", ms=14)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ratio; red: floor, grey: from there to the aim")


def draw_seconds(cases: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Bars of each case's variants."""
    timed = [case for case in cases if isinstance(case.get("seconds"), Mapping)]
    variants, names = (list(dict.fromkeys(case.get(key, "") for case in timed)) for key in ("variant", "case"))
    for case in timed:
        place, own = names.index(case["case"]), variants.index(case.get("variant", ""))
        width = 0.8 / len(variants)
        axes.bar(place + width * (own - (len(variants) - 1) / 2), case["seconds"]["median"], width, color=f"C{own}")
    axes.legend([axes.bar(0, 0, color=f"C{own}") for own in range(len(variants))], variants)
    axes.set_xticks(range(len(names)), names)
    if timed:
        axes.set_yscale("log")
    axes.set_ylabel("seconds, median")


def draw_growth(cases: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Seconds and memory of each stage over the number of trajectories."""
    grown = [case for case in cases if case["case"].startswith("growth of")]
    for color, name in enumerate(dict.fromkeys(case["case"] for case in grown)):
        own = [case for case in grown if case["case"] == name]
        sizes = [int(case["variant"].split()[0]) for case in own]
        stage = name.removeprefix("growth of ")
        axes.plot(sizes, [case["seconds"] for case in own], f"C{color}o-", label=f"{stage}, seconds")
        axes.plot(sizes, [case["peak_mb"] for case in own], f"C{color}s--", label=f"{stage}, MB above the start")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("trajectories")
    if grown:
        axes.legend()


def draw_breakdown(cases: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Wall time by stage, what was done in each stacked; work in full colours."""
    from matplotlib import colormaps

    booked = [case for case in cases if case.get("kind") in ("work", "orchestration")]
    names = list(dict.fromkeys(case["case"] for case in booked))
    shades = (("tab20", range(7, 20, 2)), ("tab20b", range(1, 20, 4)), ("tab20c", range(1, 20, 4)))
    pale = cycle([colormaps[name](place) for name, places in shades for place in places])
    base = dict.fromkeys(names, 0.0)
    for doing in dict.fromkeys((*WORK, *(case["variant"] for case in booked))):
        colour = f"C{WORK.index(doing)}" if doing in WORK else next(pale)
        heights = [sum(c["seconds"] for c in booked if (c["case"], c["variant"]) == (name, doing)) for name in names]
        axes.barh(names, heights, left=list(base.values()), color=colour, label=doing)
        base = {name: base[name] + height for name, height in zip(names, heights, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel("wall seconds")
    axes.legend(fontsize=7)
