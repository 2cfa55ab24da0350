"""An import: every record read ends as a trajectory or in quarantine with its reason, and is counted.

Only what an agent recorded and nobody has said the outcome of is neither: it is counted as open, and imported once that
is known.

The folder is that of `collect`: episodes.parquet, steps.parquet, collect.json, and ``quarantine/records.jsonl``. An
import into the folder of an earlier one adds to it; what is there already is not added twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain, compress, groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from retroformer.errors import ConfigError, ContractBroken, DataError
from retroformer.files import check_replaceable, read_json, replacing, write_json
from retroformer.importers.atif_export import content_of, document
from retroformer.importers.attempts import link_attempts
from retroformer.importers.conversation import Rules, found_of, name_in_log
from retroformer.importers.converting import Chunk, Converted, Job, Summary, chunks_of, convert_all, hash_of, summary_of
from retroformer.importers.formats import format_named
from retroformer.importers.outcomes import Looked
from retroformer.importers.records import Record, Rejected, files_of
from retroformer.progress import Progress, progress
from retroformer.storage import TrajectoryWriter, stream_trajectories
from retroformer.types import LEARNABLE, Outcome

LEDGER = "ledger.npy"
"""Beside the tables: what the log calls each trajectory and a hash of its content, so that a re-import can tell."""
QUARANTINE = "quarantine/records.jsonl"
SMALL = 64 * 2**20
"""Bytes up to which starting workers would take longer than it saves."""


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
    workers: int = 0,
    forgotten: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Import files into a folder. Returns the report, which is collect.json; `extra` is added to it.

    An earlier import in the folder is added to, or replaced where `afresh` says so. `workers` are processes, 0 means
    one a core where there is much to read; their number does not change what is written. Trajectories whose ids are
    `forgotten` are left out, also of what an earlier import wrote.

    Raises ConfigError for an unknown format, DataError where there is nothing to read, ContractBroken where more than
    `max_quarantined` of the records had to go to quarantine; then nothing is written.
    """
    chosen = format_named(format)
    check_replaceable(out)
    rule = rules.outcome
    if format == "parquet" and (rule.reward or rule.success or rule.assessment):
        raise ConfigError(f"{rule} is no column of the project's tables, which have an outcome: judge with a function")
    files = files_of(paths, chosen.suffixes)
    size = sum(file.stat().st_size for file in files)
    if not workers:
        workers = len(os.sched_getaffinity(0)) if size > SMALL else 1
    with progress("import", size, "bytes") as shown:
        importing = Importing(Job(format, rules, tuple(redact)), workers, forgotten, shown)
        facts = {"format": format, "files": len(files), **(extra or {})}
        return importing.into(out, chosen.read(files, importing.fetched), max_quarantined, facts, afresh)


def import_records(
    records: Iterable[tuple[str, Any]],
    format: str,
    out: Path,
    rules: Rules,
    *,
    redact: Iterable[str] = (),
    max_quarantined: float = 0.4,
    forgotten: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Import what comes from elsewhere than files, each value with its place; otherwise like `import_logs`."""
    format_named(format)
    importing = Importing(Job(format, rules, tuple(redact)), workers=1, forgotten=forgotten)
    read = (Record(source, value) for source, value in records)
    return importing.into(out, read, max_quarantined, {"format": format})


def export_atif(directory: Path, out: Path) -> int:
    """Write a folder's trajectories as ATIF, one document a line. Returns how many.

    Raises DataError where that cannot be written.
    """
    count = 0
    lines = (json.dumps(document(one), ensure_ascii=False) for one in stream_trajectories(directory))
    if out.is_dir():
        raise DataError(f"{out} is a folder; name the file that is to be written")
    half = out.with_name(f".{out.name}.half")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with half.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
        half.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            half.unlink()
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

    def add(self, summaries: Sequence[Summary]) -> None:
        """Count some."""
        self.episodes += len(summaries)
        self.steps += sum(one.steps for one in summaries)
        self.logprobs += sum(one.logprobs for one in summaries)
        self.splits.update(one.split for one in summaries)
        judged = [one.reward for one in summaries if one.outcome in LEARNABLE]
        self.lowest, self.highest = min([self.lowest, *judged]), max([self.highest, *judged])
        kinds = Counter((one.task, one.family, one.outcome) for one in summaries)
        for (task, family, outcome), count in kinds.items():
            self.outcomes[outcome] += count
            row = self.tasks.setdefault(task, [family, 0, 0, 0])
            row[1] += count
            row[2] += count * (outcome == Outcome.SUCCESS)
            row[3] += count * (outcome in LEARNABLE)

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


def told_of_outcomes(job: Job) -> dict[str, str]:
    """Where outcomes and rewards come from, for the report."""
    rule = str(job.rules.outcome)
    if job.format == "parquet" and not rule:
        return {"outcome": "the tables' own", "rewards": "the tables' own"}
    return {
        "outcome": rule or "fields reward and success",
        "rewards": "at the last step, not discounted, clipped or normalised; rewards of steps as logged",
    }


class Importing:
    """One run of an import."""

    def __init__(self, job: Job, workers: int, forgotten: frozenset[str] = frozenset(), shown: Progress | None = None):
        self.job, self.workers = job, workers
        self.forgotten_ids = forgotten
        self.forgotten_hashes = {hash_of(id) for id in forgotten}
        self.read = self.accepted = self.repeated = self.open = self.forgotten = 0
        self.reasons: Counter[str] = Counter()
        self.redacted: Counter[str] = Counter()
        self.looked = Looked()
        self.example = ""
        self.shown = shown
        self.bytes = 0
        """Of the files that have been read; what is shown is how many of them are written."""
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
        if not 0 <= max_quarantined <= 1:
            raise ConfigError(f"max_quarantined is {max_quarantined:g}, expected a share, 0 to 1")
        with replacing(out) as folder, ExitStack() as stack:
            (folder / "quarantine").mkdir()
            quarantine = stack.enter_context((folder / QUARANTINE).open("w", encoding="utf-8"))
            with TrajectoryWriter(folder) as writer:
                if not afresh:
                    self._keep(out, writer, quarantine)
                ahead: deque[int] = deque()
                chunks = self._counted(chunks_of(records), ahead)
                for chunk, converted in convert_all(self.job, chunks, self.workers, folder):
                    self._take(chunk, converted, writer, quarantine)
                    self._show(ahead.popleft())
            self._show(self.bytes)
            quarantined = sum(self.reasons.values())
            if not self.read:
                raise DataError("nothing was imported: the files hold no record")
            if quarantined > max_quarantined * self.read:
                top = ", ".join(f"{name} {count}" for name, count in self.reasons.most_common(3))
                raise ContractBroken(
                    f"{quarantined} of {self.read} records could not be imported, more than the share "
                    f"{max_quarantined:g} allowed ({top}; for example {self.example}); nothing was written"
                )
            if self.attempts:
                link_attempts(folder / "episodes.parquet")
            ledger = np.fromiter(chain.from_iterable(self.names.items()), np.uint64, 2 * len(self.names))
            np.save(folder / LEDGER, ledger.reshape(-1, 2))
            missing = self.looked.missing()
            report = {
                "source": "import",
                "policy": "log",
                **facts,
                "read": self.read,
                "accepted": self.accepted,
                "repeated": self.repeated,
                "open": self.open,
                "quarantined": quarantined,
                **({"forgotten": self.forgotten} if self.forgotten else {}),
                "reasons": dict(sorted(self.reasons.items())),
                "redacted": dict(sorted(self.redacted.items())),
                **({"missing": missing} if missing else {}),
                **told_of_outcomes(self.job),
                **self.tally.report(),
            }
            write_json(folder / "collect.json", report)
        for sentence in missing:
            print(f"import: {sentence}", file=sys.stderr)
        return report

    def fetched(self, count: int) -> None:
        """`count` more bytes of the files have been read."""
        self.bytes += count

    def _counted(self, chunks: Iterable[Chunk], ahead: deque[int]) -> Iterator[Chunk]:
        for chunk in chunks:
            ahead.append(self.bytes)
            yield chunk

    def _show(self, written: int) -> None:
        """Up to which byte the files are written; the rest is still to be converted."""
        if self.shown and written > self.shown.done:
            self.shown.advance(written - self.shown.done, f"{self.read} records")

    def _keep(self, out: Path, writer: TrajectoryWriter, quarantine: IO[str]) -> None:
        """Copy what an earlier import left in the folder. Raises DataError where something else did."""
        if not (out / "collect.json").exists():
            return
        if read_json(out / "collect.json").get("source") != "import":
            raise DataError(f"{out} holds episodes that were played, not imported; import into a folder of its own")
        if (out / LEDGER).exists():
            try:
                self.names = dict(np.load(out / LEDGER, allow_pickle=False).tolist())
            except (ValueError, EOFError, TypeError):
                raise DataError(f"{out / LEDGER} is not the ledger of an import: two numbers a row") from None
        for trajectory in stream_trajectories(out):
            if trajectory.id in self.forgotten_ids:
                continue
            name, content = "", ""
            if self.job.format == "atif":  # an export calls a trajectory by its id
                name, content = name_in_log(trajectory.id, trajectory.attempt), content_of(trajectory)
            summary = summary_of(found_of(name, content, trajectory), 0)
            if summary.name:
                self.names[summary.name] = summary.content
            self.ids.add(summary.id)
            self._count([summary])
            writer.add(trajectory)
        if (out / QUARANTINE).exists():
            with (out / QUARANTINE).open(encoding="utf-8") as lines:
                for line in lines:
                    quarantine.write(line)
                    self.refused.add(_short_hash(line))

    def _take(
        self, chunk: list[Record | Rejected], converted: Converted, writer: TrajectoryWriter, quarantine: IO[str]
    ) -> None:
        """Write what is new of a chunk; in quarantine what was refused, and what contradicts an earlier record."""
        self.read += len(chunk)
        self.open += converted.open
        self.looked.add(converted.looked)
        self.redacted += converted.redacted
        refused = dict(converted.refused)
        kept = [False] * len(converted.summaries)
        for record, pairs in groupby(enumerate(converted.summaries), key=lambda pair: pair[1].record):
            found = [pair for pair in pairs if pair[1].id not in self.forgotten_hashes]
            if not found:
                self.forgotten += 1
                continue
            if any(one.name and self.names.get(one.name, one.content) != one.content for _, one in found):
                why = Rejected("conflicting_id", "the log has this id before, with other content")
                refused[record] = self.job.refusal(why, chunk[record])
                continue
            fresh = False
            for place, one in found:
                if one.name:
                    self.names[one.name] = one.content
                if one.id not in self.ids:
                    self.ids.add(one.id)
                    kept[place] = fresh = True
            self.accepted += 1
            self.repeated += not fresh
        self._count(list(compress(converted.summaries, kept)))
        episodes, steps = converted.episodes, converted.steps
        if not all(kept):
            episodes = episodes.filter(pa.array(kept, pa.bool_()))
            lengths = [one.steps for one in converted.summaries]
            steps = steps.filter(pa.array(np.repeat(np.array(kept, dtype=bool), lengths)))
        writer.write(episodes, steps)
        for _, refusal in sorted(refused.items()):
            self.reasons[refusal.reason] += 1
            self.example = self.example or f"{refusal.source}: {refusal.detail}"
            line = json.dumps(refusal._asdict()) + "\n"
            if _short_hash(line) not in self.refused:
                quarantine.write(line)

    def _count(self, summaries: Sequence[Summary]) -> None:
        self.tally.add(summaries)
        self.attempts |= any(one.unlinked for one in summaries)


def _short_hash(line: str) -> bytes:
    return hashlib.sha256(line.encode()).digest()[:8]
