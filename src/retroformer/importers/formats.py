"""The formats by name: how files are read, and what a record holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroformer.errors import ConfigError
from retroformer.importers import atif, mlflow_traces, openai_chat, otlp, parquet, recorded
from retroformer.importers.conversation import Found, Rules, Run, found_in
from retroformer.importers.records import SUFFIXES, Advance, Record, Rejected, json_records
from retroformer.importers.redaction import Redactor


@dataclass(frozen=True, slots=True)
class Format:
    """How files of a format are read, and what a record of it holds."""

    read: Callable[[list[Path], Advance], Iterator[Record | Rejected]]
    trajectories: Callable[[Record, Rules, Redactor], list[Found]]
    suffixes: tuple[str, ...] = SUFFIXES
    """What a folder is searched for."""


Trajectories = Callable[[Record, Rules, Redactor], list[Found]]


def of_runs(runs: Callable[[Any], Iterator[Run]], exported: Trajectories | None = None) -> Trajectories:
    """A format's trajectories, from the function that finds the runs in a record's value.

    `exported` finds what was a trajectory of this project's before.
    """

    def trajectories(record: Record, rules: Rules, redactor: Redactor) -> list[Found]:
        if exported and (kept := exported(record, rules, redactor)):
            return kept
        found = []
        for run in runs(record.value):
            source = f"{record.source}#{run.segment}" if run.segment else record.source
            found.append(found_in(redactor.run(run), source, rules))
        return found

    return trajectories


FORMATS: dict[str, Format] = {
    "openai-chat": Format(json_records, of_runs(openai_chat.runs)),
    "atif": Format(json_records, of_runs(atif.runs, atif.exported)),
    "mlflow": Format(json_records, of_runs(mlflow_traces.runs)),
    "otlp": Format(otlp.read, of_runs(otlp.runs)),
    "parquet": Format(parquet.read, parquet.trajectories, parquet.SUFFIXES),
    "recorded": Format(recorded.read, recorded.trajectories, recorded.SUFFIXES),
}


def format_named(name: str) -> Format:
    """The format. Raises ConfigError with those that are known."""
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r} to import; known: {', '.join(FORMATS)}")
    return FORMATS[name]
