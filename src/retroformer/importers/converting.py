"""From records to rows, chunk by chunk: in this process, or in workers that take a chunk each, in the same order."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa

from retroformer.errors import DataError
from retroformer.importers.conversation import Found, Rules
from retroformer.importers.formats import FORMATS
from retroformer.importers.outcomes import Looked
from retroformer.importers.records import BUFFER, EXACT, UNREAD, Inexact, Open, Record, Rejected, parsed
from retroformer.importers.redaction import Redactor
from retroformer.recovery import leave_with
from retroformer.storage import tables_of_rows

CHUNK_BYTES, CHUNK_RECORDS = 4 * 2**20, 2000
"""A chunk ends where it has this much text or this many records; it becomes a row group."""

Chunk = list[Record | Rejected]


class Refusal(NamedTuple):
    """A line of quarantine."""

    source: str
    reason: str
    detail: str
    record: str
    """The record's text, redacted like all that is written."""


class Summary(NamedTuple):
    """What counting and comparing needs of a trajectory."""

    record: int
    """Place of its record in the chunk."""
    name: int
    """Hash of what the log calls it; 0 where it has no name."""
    content: int
    id: int
    """Both hashed."""
    family: str
    task: str
    split: str
    outcome: str
    steps: int
    reward: float
    logprobs: bool
    """Whether every step has one."""
    unlinked: bool
    """A later attempt that does not name the one before."""


@dataclass(slots=True)
class Converted:
    """What a chunk holds."""

    summaries: list[Summary]
    episodes: Any
    steps: Any
    """Arrow tables as `storage.tables_of_rows` makes them; None where a worker has left them in files."""
    refused: list[tuple[int, Refusal]]
    """By place of the record in the chunk."""
    open: int
    """Records whose outcome is not known yet."""
    redacted: Counter[str]
    looked: Looked
    """Where outcomes were looked for."""


@dataclass(frozen=True, slots=True)
class Job:
    """How an import converts, wherever it runs."""

    format: str
    rules: Rules
    redact: tuple[str, ...]

    def convert(self, chunk: Chunk) -> Converted:
        """Every record of a chunk as rows, or as a refusal."""
        redactor = Redactor(self.redact)
        found: list[Found] = []
        summaries: list[Summary] = []
        refused = []
        waiting = 0
        for place, record in enumerate(chunk):
            try:
                if isinstance(record, Rejected):
                    raise record
                mine = self._trajectories(record, redactor)
            except Rejected as why:
                refused.append((place, self.refusal(why, record, redactor)))
                continue
            except Open:
                waiting += 1
                continue
            found += mine
            summaries += [summary_of(one, place) for one in mine]
        episodes, steps = tables_of_rows([one.episode for one in found], [one.steps for one in found])
        looked = self.rules.outcome.looked.taken(redactor.hidden if redactor.names else str)
        return Converted(summaries, episodes, steps, refused, waiting, redactor.found, looked)

    def _trajectories(self, record: Record, redactor: Redactor) -> list[Found]:
        read = FORMATS[self.format].trajectories
        counted = redactor.found.copy() if redactor.names else redactor.found
        try:
            try:
                return read(parsed(record), self.rules, redactor)
            except Inexact:
                redactor.found = counted
                exact = EXACT.set(True)
                try:
                    return read(parsed(record, exact=True), self.rules, redactor)
                finally:
                    EXACT.reset(exact)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            # No record, however odd, ends an import; the fuzzer holds that this net stays empty.
            raise Rejected("not_understood", f"{type(error).__name__}: {error}") from None

    def refusal(self, why: Rejected, record: Record | Rejected, redactor: Redactor | None = None) -> Refusal:
        """The line of quarantine that says why, with the record's text."""
        redactor = redactor or Redactor(self.redact)
        if raw := why.raw or record.raw:
            text = raw.decode("utf-8", "backslashreplace").rstrip("\n")
        else:
            text = "" if isinstance(record, Rejected) else json.dumps(record.value, ensure_ascii=False, default=str)
        if redactor.names:
            text = redactor.hidden(text)
        return Refusal(why.source or record.source, why.reason, redactor.text(why.detail), text)


def summary_of(found: Found, record: int) -> Summary:
    """The summary of a trajectory of the record at that place."""
    name, content, row, steps = found
    id = hash_of(row.trajectory_id)
    return Summary(
        record,
        hash_of(name) if name else 0,
        id if content == row.trajectory_id else hash_of(content),
        id,
        row.family,
        row.task,
        row.split,
        row.outcome,
        row.steps,
        row.total_reward,
        None not in [step[5] for step in steps],
        row.attempt > 0 and not row.previous_id,
    )


def hash_of(text: str) -> int:
    """How ids, names and contents are compared and kept in the ledger: 64 bits."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def chunks_of(records: Iterable[Record | Rejected]) -> Iterator[Chunk]:
    """The records in chunks, which depend on them alone."""
    chunk: Chunk = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.raw)
        if size >= CHUNK_BYTES or len(chunk) >= CHUNK_RECORDS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def convert_all(job: Job, chunks: Iterable[Chunk], workers: int, within: Path) -> Iterator[tuple[Chunk, Converted]]:
    """Every chunk with what it holds, in order; some chunks a worker are under way at any time.

    `within` is the folder in which workers may leave what they made until it is fetched.
    """
    if workers == 1:
        yield from ((chunk, job.convert(chunk)) for chunk in chunks)
        return
    ahead: deque[tuple[Chunk, Path, Future[Converted]]] = deque()
    with (
        tempfile.TemporaryDirectory(prefix=".workers-", dir=within) as folder,
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)) as pool,
    ):

        def first() -> tuple[Chunk, Converted]:
            chunk, place, future = ahead.popleft()
            converted = future.result()
            converted.episodes, converted.steps = (_fetched(place / name) for name in TABLES)
            return chunk, converted

        for number, chunk in enumerate(chunks):
            place = Path(folder) / str(number)
            place.mkdir()
            ahead.append((chunk, place, pool.submit(_convert_in_worker, job, _sent(chunk), place)))
            if len(ahead) > workers + 1:
                yield first()
        while ahead:
            yield first()


def _begin(parent: int) -> None:
    """First in a worker: it ends with its parent, and looks for no cycles, a fifth of its time: conversion has none."""
    gc.disable()
    leave_with(parent)


TABLES = ("episodes.arrow", "steps.arrow")
Sent = Chunk | list[tuple[str, int, int]]
"""A chunk as a worker is told of it: itself, or of each record its source, and where its text lies in that file."""


def _sent(chunk: Chunk) -> Sent:
    """Text is read again by the worker: megabytes in a pipe would keep busy who reads and writes for all."""
    if not all(isinstance(record, Record) and record.start >= 0 for record in chunk):
        return chunk
    return [(record.source, record.start, len(record.raw)) for record in cast(list[Record], chunk)]


def _received(sent: list[tuple[str, int, int]]) -> Iterator[Record]:
    for path, own in groupby(sent, key=lambda record: record[0].rpartition(":")[0]):
        with open(path, "rb", buffering=BUFFER) as file:
            for source, start, size in own:
                file.seek(start)
                raw = file.read(size)
                if len(raw) != size:
                    raise DataError(f"{path} was cut while it was read")
                yield Record(source, UNREAD, raw, start)


def _convert_in_worker(job: Job, sent: Sent, place: Path) -> Converted:
    """What a worker does with a chunk; the tables are left in files."""
    chunk: Chunk = [*_received(cast(Any, sent))] if isinstance(sent[0], tuple) else cast(Chunk, sent)
    converted = job.convert(chunk)
    for name, table in zip(TABLES, (converted.episodes, converted.steps), strict=True):
        with pa.OSFile(str(place / name), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    converted.episodes = converted.steps = None
    return converted


def _fetched(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    path.unlink()
    return table
