"""An import: every record read ends as a trajectory or in quarantine with its reason, and is counted.

The folder is that of `collect`: episodes.parquet, steps.parquet, collect.json, and ``quarantine/records.jsonl``. An
import into the folder of an earlier one adds to it; what is there already is not added twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from retroformer.errors import ConfigError, ContractBroken, DataError
from retroformer.importers import atif, mlflow_traces, openai_chat, otlp, parquet
from retroformer.importers.attempts import link_attempts
from retroformer.importers.conversation import Found, Rules, Run, trajectory_of
from retroformer.importers.records import Advance, Record, Rejected, files_of, json_records
from retroformer.importers.redaction import Redactor
from retroformer.progress import progress
from retroformer.storage import (
    TrajectoryWriter,
    check_replaceable,
    read_json,
    replacing,
    stream_trajectories,
    write_json,
)
from retroformer.types import Outcome, Trajectory

LEDGER = "ledger.npy"
"""Beside the tables: what the log calls each trajectory and a hash of its content, so that a re-import can tell."""


@dataclass(frozen=True, slots=True)
class Format:
    """How files of a format are read, and what a record of it holds."""

    read: Callable[[list[Path], Advance], Iterator[Record | Rejected]]
    trajectories: Callable[[Record, Rules], list[Found]]


def of_runs(runs: Callable[[Any], Iterator[Run]]) -> Callable[[Record, Rules], list[Found]]:
    """A format's trajectories, from the function that finds the runs in a record's value."""

    def trajectories(record: Record, rules: Rules) -> list[Found]:
        found = []
        for run in runs(record.value):
            source = f"{record.source}#{run.segment}" if run.segment else record.source
            trajectory = trajectory_of(run, source, rules)
            found.append(Found(run.name, trajectory.id, trajectory))
        return found

    return trajectories


FORMATS: dict[str, Format] = {
    "openai-chat": Format(json_records, of_runs(openai_chat.runs)),
    "atif": Format(json_records, of_runs(atif.runs)),
    "mlflow": Format(json_records, of_runs(mlflow_traces.runs)),
    "otlp": Format(otlp.read, of_runs(otlp.runs)),
    "parquet": Format(parquet.read, parquet.trajectories),
}


def import_logs(
    paths: Iterable[Path],
    format: str,
    out: Path,
    rules: Rules,
    *,
    redact: Iterable[str] = (),
    max_quarantined: float = 0.4,
    extra: dict[str, Any] | None = None,
    afresh: bool = False,
) -> dict[str, Any]:
    """Import files into a folder. Returns the report, which is collect.json; `extra` is added to it.

    An earlier import in the folder is added to, or replaced where `afresh` says so.

    Raises ConfigError for an unknown format, DataError where there is nothing to read, ContractBroken where more than
    `max_quarantined` of the records had to go to quarantine; then nothing is written.
    """
    chosen = format_named(format)
    check_replaceable(out)
    files = files_of(paths, *([parquet.SUFFIXES] if format == "parquet" else []))
    with progress("import", sum(file.stat().st_size for file in files), "bytes") as shown:
        importing = Importing(chosen.trajectories, rules, Redactor(redact))

        def advance(count: int) -> None:
            shown.advance(count, f"{importing.read} records")

        facts = {"format": format, "files": len(files), **(extra or {})}
        return importing.into(out, chosen.read(files, advance), max_quarantined, facts, afresh)


def import_records(
    records: Iterable[tuple[str, Any]],
    format: str,
    out: Path,
    rules: Rules,
    *,
    redact: Iterable[str] = (),
    max_quarantined: float = 0.4,
) -> dict[str, Any]:
    """Import what comes from elsewhere than files, each value with its place; otherwise like `import_logs`."""
    importing = Importing(format_named(format).trajectories, rules, Redactor(redact))
    read = (Record(source, value) for source, value in records)
    return importing.into(out, read, max_quarantined, {"format": format})


def format_named(name: str) -> Format:
    """The format. Raises ConfigError with those that are known."""
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r} to import; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def export_atif(directory: Path, out: Path) -> int:
    """Write a folder's trajectories as ATIF, one document a line. Returns how many."""
    count = 0
    lines = (json.dumps(atif.document(one), ensure_ascii=False) for one in stream_trajectories(directory))
    out.parent.mkdir(parents=True, exist_ok=True)
    half = out.with_name(f".{out.name}.half")
    try:
        with half.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
        half.replace(out)
    finally:
        half.unlink(missing_ok=True)
    return count


@dataclass
class Tally:
    """Counts of the trajectories in a folder, for its report."""

    episodes: int = 0
    steps: int = 0
    logprobs: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    outcomes: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    tasks: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, trajectory: Trajectory) -> None:
        """Count one."""
        task = trajectory.task
        self.episodes += 1
        self.steps += len(trajectory.steps)
        self.logprobs += None not in [step.logprob for step in trajectory.steps]
        self.outcomes[trajectory.outcome.value] += 1
        self.splits[task.split] += 1
        row = self.tasks.setdefault(task.name, [task.family, 0, 0, 0])
        row[1] += 1
        if trajectory.learnable:
            total = trajectory.total_reward
            self.lowest, self.highest = min(self.lowest, total), max(self.highest, total)
            row[2] += trajectory.outcome is Outcome.SUCCESS
            row[3] += 1

    def report(self) -> dict[str, Any]:
        """What collect.json says of trajectories that were played, and what else is worth knowing of logged ones."""
        tasks = {
            name: {"episodes": episodes, "family": family, "success": solved / ended if ended else None, "n": ended}
            for name, (family, episodes, solved, ended) in sorted(self.tasks.items())
        }
        rates = [task["success"] for task in tasks.values() if task["success"] is not None]
        return {
            "episodes": self.episodes,
            "steps": self.steps,
            "success": sum(rates) / len(rates) if rates else None,
            "outcomes": dict(sorted(self.outcomes.items())),
            "splits": dict(sorted(self.splits.items())),
            "with_logprobs": self.logprobs,
            "returns": [self.lowest, self.highest] if rates else None,
            "tasks": tasks,
        }


class Importing:
    """One run of an import."""

    def __init__(self, trajectories: Callable[[Record, Rules], list[Found]], rules: Rules, redactor: Redactor):
        self.trajectories, self.rules, self.redactor = trajectories, rules, redactor
        self.read = self.accepted = self.repeated = 0
        self.reasons: Counter[str] = Counter()
        self.example: Rejected | None = None
        self.attempts = False
        self.tally = Tally()
        self.ids: set[int] = set()
        self.names: dict[int, int] = {}
        """Hash of what the log calls a trajectory, and of its content."""
        self.refused: set[bytes] = set()

    def into(
        self,
        out: Path,
        records: Iterable[Record | Rejected],
        max_quarantined: float,
        facts: dict[str, Any],
        afresh: bool = False,
    ) -> dict[str, Any]:
        """Write what the records hold, unless `afresh` after what `out` holds already. Returns the report."""
        with replacing(out) as folder, ExitStack() as stack:
            (folder / "quarantine").mkdir()
            quarantine = stack.enter_context((folder / "quarantine/records.jsonl").open("w", encoding="utf-8"))
            with TrajectoryWriter(folder) as writer:
                if not afresh:
                    self._keep(out, writer, quarantine)
                for record in records:
                    self.read += 1
                    try:
                        if isinstance(record, Rejected):
                            raise record
                        self._take(record, writer)
                    except Rejected as why:
                        self._refuse(why, record, quarantine)
            quarantined = sum(self.reasons.values())
            if not self.read:
                raise DataError("nothing was imported: the files hold no record")
            if quarantined > max_quarantined * self.read:
                assert self.example is not None
                top = ", ".join(f"{name} {count}" for name, count in self.reasons.most_common(3))
                raise ContractBroken(
                    f"{quarantined} of {self.read} records could not be imported, more than the share "
                    f"{max_quarantined:g} allowed ({top}; for example {self.example.source}: {self.example.detail}); "
                    "nothing was written"
                )
            if self.attempts:
                link_attempts(folder / "episodes.parquet")
            ledger = np.fromiter(chain.from_iterable(self.names.items()), np.uint64, 2 * len(self.names))
            np.save(folder / LEDGER, ledger.reshape(-1, 2))
            report = {
                "source": "import",
                "policy": "log",
                **facts,
                "read": self.read,
                "accepted": self.accepted,
                "repeated": self.repeated,
                "quarantined": quarantined,
                "reasons": dict(sorted(self.reasons.items())),
                "redacted": dict(sorted(self.redactor.found.items())),
                "outcome": str(self.rules.outcome) or "fields reward and success",
                "rewards": "at the last step, not discounted, clipped or normalised; rewards of steps as logged",
                **self.tally.report(),
            }
            write_json(folder / "collect.json", report)
        return report

    def _keep(self, out: Path, writer: TrajectoryWriter, quarantine: Any) -> None:
        """Copy what an earlier import left in the folder. Raises DataError where something else did."""
        if not (out / "collect.json").exists():
            return
        if read_json(out / "collect.json").get("source") != "import":
            raise DataError(f"{out} holds episodes that were played, not imported; import into a folder of its own")
        for trajectory in stream_trajectories(out):
            self.ids.add(_hash(trajectory.id))
            self._write(trajectory, writer)
        if (out / LEDGER).exists():
            self.names = dict(np.load(out / LEDGER).tolist())
        if (out / "quarantine/records.jsonl").exists():
            with (out / "quarantine/records.jsonl").open(encoding="utf-8") as lines:
                for line in lines:
                    quarantine.write(line)
                    self.refused.add(hashlib.sha256(line.encode()).digest()[:8])

    def _take(self, record: Record, writer: TrajectoryWriter) -> None:
        """Write a record's trajectories, or raise Rejected."""
        if self.redactor.names:
            record.value = self.redactor.value(record.value)
            record.raw = b""
        try:
            found = self.trajectories(record, self.rules)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            # No record, however odd, ends an import; the fuzzer holds that this net stays empty.
            raise Rejected("not_understood", f"{type(error).__name__}: {error}") from None
        named = [(_hash(one.name), _hash(one.content)) for one in found if one.name]
        for name, content in named:
            if self.names.setdefault(name, content) != content:
                raise Rejected("conflicting_id", "the log has this id before, with other content")
        fresh = False
        for one in found:
            id = _hash(one.trajectory.id)
            if id not in self.ids:
                fresh = True
                self.ids.add(id)
                self._write(one.trajectory, writer)
        self.accepted += 1
        self.repeated += not fresh

    def _write(self, trajectory: Trajectory, writer: TrajectoryWriter) -> None:
        writer.add(trajectory)
        self.tally.add(trajectory)
        self.attempts |= trajectory.attempt > 0 and not trajectory.previous_id

    def _refuse(self, why: Rejected, record: Record | Rejected, quarantine: Any) -> None:
        """Write a record to quarantine with its reason."""
        why.source = why.source or record.source
        self.reasons[why.reason] += 1
        self.example = self.example or why
        raw = why.raw or record.raw
        if raw:
            text = raw.decode("utf-8", "backslashreplace").rstrip("\n")
            text = self.redactor.value(text) if self.redactor.names else text
        else:
            value = None if isinstance(record, Rejected) else record.value
            text = json.dumps(value, ensure_ascii=False, default=str)
        why.detail = self.redactor.text(why.detail)
        entry = {"source": why.source, "reason": why.reason, "detail": why.detail, "record": text}
        line = json.dumps(entry, ensure_ascii=True) + "\n"
        if hashlib.sha256(line.encode()).digest()[:8] not in self.refused:
            quarantine.write(line)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
