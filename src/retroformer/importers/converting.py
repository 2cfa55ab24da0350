"""From records to rows, chunk by chunk: in this process, or in workers that take a chunk each, in the same order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NamedTuple

import pyarrow as pa

from retroformer.importers.conversation import Found, Rules
from retroformer.importers.formats import FORMATS
from retroformer.importers.records import Record, Rejected, parsed
from retroformer.importers.redaction import Redactor
from retroformer.storage import tables_of

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
    episodes: pa.Table
    steps: pa.Table
    refused: list[tuple[int, Refusal]]
    """By place of the record in the chunk."""
    redacted: Counter[str]


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
        for place, record in enumerate(chunk):
            try:
                if isinstance(record, Rejected):
                    raise record
                mine = self._trajectories(record, redactor)
            except Rejected as why:
                refused.append((place, self.refusal(why, record, redactor)))
                continue
            found += mine
            summaries += [summary_of(one, place) for one in mine]
        return Converted(summaries, *tables_of([one.trajectory for one in found]), refused, redactor.found)

    def _trajectories(self, record: Record, redactor: Redactor) -> list[Found]:
        try:
            record = parsed(record)
            if redactor.names:
                record = Record(record.source, redactor.value(record.value))
            return FORMATS[self.format].trajectories(record, self.rules)
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
    one = found.trajectory
    id = _hash(one.id)
    return Summary(
        record,
        _hash(found.name) if found.name else 0,
        id if found.content == one.id else _hash(found.content),
        id,
        one.task.family,
        one.task.name,
        one.task.split,
        one.outcome.value,
        len(one.steps),
        one.total_reward,
        None not in [step.logprob for step in one.steps],
        one.attempt > 0 and not one.previous_id,
    )


def _hash(text: str) -> int:
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


def convert_all(job: Job, chunks: Iterable[Chunk], workers: int) -> Iterator[tuple[Chunk, Converted]]:
    """Every chunk with what it holds, in order; some chunks a worker are under way at any time."""
    if workers == 1:
        yield from ((chunk, job.convert(chunk)) for chunk in chunks)
        return
    ahead: deque[tuple[Chunk, Future[Converted]]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for chunk in chunks:
            ahead.append((chunk, pool.submit(job.convert, chunk)))
            if len(ahead) > workers + 1:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
