"""Back from a trajectory to the line of a log that it was read from, and whether the line still says the same."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from retroformer.environments.splits import of_instance
from retroformer.errors import DataError

PLACE = re.compile(r"(?P<file>.+?):(?P<line>\d+)(?P<item>\[\d+\])?(?:#\d+)?(?= |$)")
"""``data/logs/a.jsonl:17``, ``a.json:1[3]``, a part of a run ``a.jsonl:17#3``; what follows is an older place."""


class Place(NamedTuple):
    """Where a record lies in a log."""

    file: str
    line: int
    item: str = ""
    """``[3]`` in a document that is a list."""


class Reading(NamedTuple):
    """How a round read its logs: values of section collect."""

    format: str
    outcome: str
    redact: tuple[str, ...]


def place_of(source: str) -> Place | None:
    """The file and line that a trajectory's source names; None for what was played, or read from a store."""
    found = PLACE.match(source)
    if found is None or "://" in found["file"]:
        return None
    return Place(found["file"], int(found["line"]), found["item"] or "")


def by_file(sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """For each file, and each source that is none: how many trajectories, and the lines in order."""
    counted: dict[str, int] = defaultdict(int)
    lines: dict[str, set[int]] = defaultdict(set)
    for source in sources:
        place = place_of(source)
        name = place.file if place else source
        counted[name] += 1
        if place:
            lines[name].add(place.line)
    return {name: {"trajectories": counted[name], "lines": sorted(lines[name])} for name in sorted(counted)}


def ranges(lines: list[int]) -> str:
    """``1-17, 20``"""
    parts: list[list[int]] = []
    for line in lines:
        if parts and line == parts[-1][1] + 1:
            parts[-1][1] = line
        else:
            parts.append([line, line])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def still_there(root: Path, wanted: dict[str, str], how: Reading | None) -> dict[str, str]:
    """For each id of `wanted` (id -> source): what its line in the log is today.

    `same`: the line is there and is that trajectory; `other`: it is there and is not, or not by the rules (format,
    outcome, redaction) that are in params.yaml; `gone`: the file or the line is no more. Left out is what no line of
    one file stands for by itself: what was played, a store, traces whose spans are spread over lines.
    """
    from retroformer.importers.conversation import Rules
    from retroformer.importers.converting import Job
    from retroformer.importers.formats import format_named
    from retroformer.importers.outcomes import parse_rule
    from retroformer.importers.records import Record

    if how is None or how.format == "otlp":
        return {}
    places = {id: place for id, source in wanted.items() if (place := place_of(source))}
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for id, place in places.items():
        owners[place.file, f":{place.line}{place.item}"].append(id)
    told = dict.fromkeys(places, "gone")
    job = Job(how.format, Rules(parse_rule(how.outcome), of_instance), how.redact)
    for file in sorted({place.file for place in places.values()}):
        path = root / file
        if not path.is_file():
            continue
        for one in format_named(how.format).read([path], lambda count: None):
            ids = owners.get((file, one.source.removeprefix(str(path)))) if isinstance(one, Record) else None
            if ids:
                held = set(job.convert([one]).episodes["trajectory_id"].to_pylist())
                told |= {id: "same" if id in held else "other" for id in ids}
    return told


def reading(params: dict[str, Any] | None) -> Reading | None:
    """How the round of these parameters read its logs; None where it played, or its parameters are not known."""
    section = (params or {}).get("collect", {})
    if section.get("source") != "import":
        return None
    return Reading(section["format"], section.get("outcome", ""), tuple(section.get("redact", ())))


def read_yaml(path: Path) -> Any:
    """A YAML file, None where it is missing. Raises DataError where it is damaged."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {error}") from None
