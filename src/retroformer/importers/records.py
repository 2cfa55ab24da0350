"""Files of logs as records, one after another: JSON lines or whole documents, plain or gzip, in bounded memory.

What cannot be read is an item of the same stream, a `Rejected` with its reason and place: nothing is skipped silently.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson

from retroformer.errors import DataError

MAX_RECORD = 32 * 2**20
"""Bytes that one record may have; more than any model reads, and what bounds the memory of an import."""
BUFFER = 2**20
"""Bytes that are read at a time."""
SHOWN = 1000
"""Bytes of an oversized record that quarantine keeps."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
"""What a folder of logs is searched for."""
GZIP = b"\x1f\x8b"
MARK = b"\xef\xbb\xbf"

UNREAD = object
"""Stands for the value of a record whose text has not been parsed; a class, since it stays itself in a worker."""
Advance = Callable[[int], None]
"""Is told how many more bytes of the files have been read."""


@dataclass(slots=True)
class Record:
    """One record as it was read."""

    source: str
    """``file:line``."""
    value: Any = UNREAD
    raw: bytes = b""
    """Its text where it was read from a file; quarantine keeps it."""
    start: int = -1
    """Where its text begins in that file, in bytes, if the file is not packed."""


class Rejected(Exception):
    """Why a record goes to quarantine: a reason that can be counted, and what was seen."""

    def __init__(self, reason: str, detail: str, source: str = "", raw: bytes = b""):
        super().__init__(reason, detail, source, raw)  # what a worker sends is made anew from these
        self.reason, self.detail, self.source, self.raw = reason, detail, source, raw


class Inexact(Exception):
    """A number of more than 64 bits where each digit counts: orjson has made a float of it, json would not."""


class Open(Exception):
    """How the recorded run ended is not known yet: it is no trajectory, and nothing is wrong with it either."""


def files_of(paths: Iterable[Path], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files that the paths name; a folder stands for those below it with one of `suffixes`, sorted.

    Raises DataError where a path does not exist, or nothing is found.
    """
    found: list[Path] = []
    paths = list(map(Path, paths))
    for path in paths:
        if path.is_dir():
            found += sorted(
                file
                for file in path.rglob("*")
                if file.is_file()
                and file.name.endswith(suffixes)
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist")
    if not found:
        places = ", ".join(map(str, paths)) or "no path"
        raise DataError(f"nothing to import in {places}: no file that ends in {', '.join(suffixes)}")
    return found


def json_records(files: Iterable[Path], advance: Advance) -> Iterator[Record | Rejected]:
    """Every record of JSON files: one a line, or the whole of a ``.json`` whose first line is not one by itself.

    Lines are not parsed yet, see `parsed`.
    """
    for path in files:
        try:
            with path.open("rb", buffering=BUFFER) as raw:
                yield from _of_file(path, raw, advance)
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile):
                yield Rejected("damaged_gzip", str(error), str(path))
            else:
                yield Rejected("unreadable_file", error.strerror or str(error), str(path))


def _of_file(path: Path, raw: IO[bytes], advance: Advance) -> Iterator[Record | Rejected]:
    packed = raw.read(2) == GZIP
    raw.seek(0)
    file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
    told = number = start = 0
    try:
        if path.name.removesuffix(".gz").endswith(".json") and not _first_line_is_a_record(file):
            yield from _document(path, file)
            advance(path.stat().st_size)
            return
        for number, line in enumerate(iter(partial(file.readline, MAX_RECORD + 1), b""), 1):
            end = start + len(line)
            if number == 1:
                line = line.removeprefix(MARK)
            source = f"{path}:{number}"
            if len(line) > MAX_RECORD:
                size, more = len(line), line
                while not more.endswith(b"\n") and (more := file.readline(MAX_RECORD)):
                    size += len(more)
                    end += len(more)
                yield _too_large(source, size, line)
            elif not line.isspace():
                yield Record(source, UNREAD, line, -1 if packed else end - len(line))
            start = end
            if number % 64 == 0:
                place = raw.tell()
                advance(place - told)
                told = place
    except EOFError:
        yield Rejected("truncated_gzip", "the file ends within its compressed data", f"{path}:{number + 1}")
    except zlib.error as error:
        yield Rejected("damaged_gzip", str(error), f"{path}:{number + 1}")
    advance(path.stat().st_size - told)


def _first_line_is_a_record(file: Any) -> bool:
    line = file.readline(MAX_RECORD + 1)
    file.seek(0)
    return isinstance(parse(line.removeprefix(MARK), ""), Record)


def _document(path: Path, file: Any) -> Iterator[Record | Rejected]:
    text = file.read(MAX_RECORD + 1)
    if len(text) > MAX_RECORD:
        yield _too_large(f"{path}:1", path.stat().st_size, text)
        return
    whole = parse(text.removeprefix(MARK), f"{path}:1", exact=True)
    if isinstance(whole, Record) and isinstance(whole.value, list):
        for place, value in enumerate(whole.value):
            yield Record(f"{path}:1[{place}]", value)
    else:
        yield whole


def _too_large(source: str, size: int, text: bytes) -> Rejected:
    return Rejected("too_large", f"{size} bytes, at most {MAX_RECORD} allowed", source, text[:SHOWN])


EXACT: ContextVar[bool] = ContextVar("EXACT", default=False)
"""Whether the record's numbers are those that its text has: then it was parsed for that, a second time."""


def check_exact(value: Any) -> None:
    """Raise Inexact where a number in a value may have been a whole one of more than 64 bits."""
    if isinstance(value, float):
        if abs(value) >= 2**63 and not EXACT.get():
            raise Inexact
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            check_exact(one)


LONG = re.compile("[0-9]{20}")


def decoded(text: str) -> Any:
    """JSON that lies as text within a record. Raises ValueError, or RecursionError."""
    if not LONG.search(text):
        return orjson.loads(text)
    value = json.loads(text, parse_constant=_no_json)
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def encoded(value: Any) -> bytes:
    """JSON of what was read from JSON. Raises Rejected where there is none."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a whole number of more than 64 bits, say
        pass
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Rejected("not_json", f"something that JSON cannot hold: {error}") from None


def parsed(record: Record, exact: bool = False) -> Record:
    """The record with its value. Raises Rejected."""
    if record.value is not UNREAD:
        return record
    found = parse(record.raw, record.source, exact)
    if isinstance(found, Rejected):
        raise found
    return found


def parse(text: bytes, source: str, exact: bool = False) -> Record | Rejected:
    """One record from its text. NaN and infinities, which are no JSON, are read as Python's writer writes them.

    Whole numbers beyond 64 bits become floats, unless they are to be `exact`.
    """
    try:
        if not exact:
            return Record(source, orjson.loads(text), text)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(text.decode("utf-8"))
        # What JSON can escape and UTF-8 cannot hold is half of a surrogate pair.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return Rejected("not_utf8", f"byte {error.start} is not UTF-8", source, text)
    except UnicodeEncodeError:
        return Rejected("not_utf8", "half of a surrogate pair", source, text)
    except (ValueError, RecursionError) as error:
        return Rejected("not_json", str(error), source, text)
    return Record(source, value, text)
