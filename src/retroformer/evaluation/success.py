"""Success by task, policy, mission and decoding, as the report shows it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from retroformer.evaluation.baselines import IMITATIONS
from retroformer.evaluation.episodes import Played
from retroformer.evaluation.intervals import Estimate, stratified_mean

RANGES = {
    "gate": "The gate: this round's own seeds",
    "transfer": "Transfer: held-out tasks, never trained on",
    "final": "Final range: seeds that no gate ever used",
}
POLICIES = ("behaviour", "random", *IMITATIONS, "champion", "challenger")
MISSIONS = ("true", "shuffled", "other")
DECODINGS = ("sampled", "greedy")


class Column(NamedTuple):
    """What a column of the success tables shows."""

    policy: str
    mission: str
    decoding: str


def behaviour_of(catalogue: Any) -> tuple[dict[tuple[str, str], list[float | None]], list[str]]:
    """(family, task) -> scores of what made this round's data, and which policies those were."""
    scores: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    if catalogue is None or catalogue.empty:
        return scores, []
    mine = catalogue[catalogue["round"] == catalogue["round"].max()]
    known = mine[mine["outcome"].isin(["success", "failure"])]
    for family, task, outcome in zip(known["family"], known["task"], known["outcome"], strict=True):
        scores[family, task].append(float(outcome == "success"))
    return scores, sorted(set(mine["policy"]))


def success_tables(
    episodes: Sequence[Played], behaviour: Mapping[tuple[str, str], list[float | None]], confidence: float
) -> list[dict[str, Any]]:
    """One table a range: rows are all tasks together, families and tasks; columns are policy, mission and decoding."""
    found: dict[str, dict[Column, dict[tuple[str, str], list[float | None]]]] = defaultdict(dict)
    for one in episodes:
        column = found[one.range].setdefault(Column(one.policy, one.mission, one.decoding), {})
        column.setdefault((one.family, one.task), []).append(one.score)
    tables = []
    for name in sorted(found, key=lambda name: rank(name, RANGES)):
        columns = found[name]
        tasks = sorted({key for scores in columns.values() for key in scores})
        if name == "gate" and behaviour:
            columns[Column("behaviour", "true", "sampled")] = {key: behaviour[key] for key in tasks if key in behaviour}
        order = sorted(columns, key=column_rank)
        rows = [
            {
                "name": label,
                "kind": kind,
                "cells": [estimate(columns[one], mine, confidence) for one in order],
            }
            for label, kind, mine in row_keys(tasks)
        ]
        groups = [(policy, list(mine)) for policy, mine in groupby(order, key=lambda one: one.policy)]
        table = {"name": name, "title": RANGES.get(name, name), "columns": order, "groups": groups, "rows": rows}
        tables.append(table)
    return tables


def rank(name: str, order: Iterable[str]) -> tuple[int, str]:
    """Known names in their order, others after them by name."""
    known = list(order)
    return (known.index(name) if name in known else len(known)), name


def column_rank(column: Column) -> tuple[tuple[int, str], ...]:
    """By policy, then sampled before greedy, then the missions side by side."""
    return rank(column.policy, POLICIES), rank(column.decoding, DECODINGS), rank(column.mission, MISSIONS)


def row_keys(tasks: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Label, kind (all, family or task) and tasks of each row; families only where there is more than one."""
    yield "all tasks", "all", list(tasks)
    families = sorted({family for family, _ in tasks})
    for family in families:
        mine = [key for key in tasks if key[0] == family]
        if len(families) > 1:
            yield family, "family", mine
        for key in mine:
            yield key[1], "task", [key]


def estimate(
    scores: Mapping[tuple[str, str], list[float | None]], keys: Sequence[tuple[str, str]], confidence: float
) -> Estimate | None:
    """Success over these tasks, None where no episode says."""
    mine = {"\x1f".join(key): scores[key] for key in keys if key in scores}
    if all(score is None for own in mine.values() for score in own):
        return None
    return stratified_mean(mine, confidence)


def cell(tables: Sequence[dict[str, Any]], policy: str, mission: str, row: int = 0) -> Estimate | None:
    """A figure of the gate's table, sampled; row 0 is all tasks together."""
    column = Column(policy, mission, "sampled")
    gate = next((table for table in tables if table["name"] == "gate"), None)
    return gate["rows"][row]["cells"][gate["columns"].index(column)] if gate and column in gate["columns"] else None
