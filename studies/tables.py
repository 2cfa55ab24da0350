"""How results of arms are summed up: means over seeds with their interval, Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Result = dict[str, Any]


def over_seeds(values: Iterable[float | None], digits: int = 3) -> str:
    """Mean and 95% Student interval over seeds: ``0.720 ± 0.031``; a single seed has no interval."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    return f"{np.mean(known):.{digits}f} ± {half_width(known):.{digits}f}"


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% Student interval of a mean over seeds."""
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def success(result: Result, play: str, of: Callable[[str], bool] = lambda task: True) -> float | None:
    """Mean success over those of the played tasks that are asked for; None where none was played."""
    rates = [solved / n for task, (solved, n) in result.get(play, {}).items() if of(task)]
    return sum(rates) / len(rates) if rates else None


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of each arm, in the order of the seeds."""
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        found.setdefault(result["arm"], []).append(result)
    return found
