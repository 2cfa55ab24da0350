"""Which version learned from what: read from the closed rounds' own files, nothing is recorded twice.

A version is the challenger of a closed round. ``catalogue.csv`` of its round lists each trajectory that it could learn
from; ``champion.json``, the pins that the round started from, say whose weights it began with.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from retroformer.errors import DataError
from retroformer.files import read_json
from retroformer.pins import Pin, Pins, read_pins
from retroformer.tracking import mlflow_view, record
from retroformer.tracking import versions as named
from retroformer.types import LEARNABLE

ROLES = ("trained", "checkpoint", "judged", "unused")
"""What a trajectory was to a version: drawn for its training, what chose its checkpoint, what judged it, or none."""


class Listed(NamedTuple):
    """A line of a round's catalogue, as lineage reads it."""

    id: str
    round: int
    """That holds it."""
    policy: str
    """That made it."""
    role: str


class Link(NamedTuple):
    """How one version comes from another: by its `weights`, or by `data` that the other made."""

    parent: str
    how: str


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the registered model."""

    number: str
    record: dict[str, Any]
    """round.json of its round."""
    pins: Pins
    """That its round started from."""

    @property
    def round(self) -> int:
        """That made it."""
        return self.record["round"]

    @property
    def hash(self) -> str:
        """Of the checkpoint's content."""
        return self.record["challenger_hash"]

    @property
    def folder(self) -> Path:
        """Of its round, relative to the project's root."""
        return record.folder_of(self.round)

    @property
    def start(self) -> Pin | None:
        """The checkpoint that training went on from; None where it began afresh."""
        return self.pins.start


def read_versions(root: Path) -> list[Version]:
    """The versions of all closed rounds, the oldest first. Raises DataError where a round is not here."""
    pins = read_pins(root / "data/champion.json")
    return [
        Version(one["model_version"], one, read_pins(root / record.folder_of(one["round"]) / "champion.json"))
        for one in record.read_records(root, pins.closed_rounds)
    ]


def find(name: str, versions: list[Version], pins: Pins) -> Version:
    """The version by its number, its registry URI, `champion` or `challenger`. Raises DataError with the known ones."""
    wanted = name.removeprefix(f"models:/{mlflow_view.NAME}").lstrip("/@")
    found = named.find(wanted, named.versions_of(one.record for one in versions), pins)
    return next(one for one in versions if one.number == found.number)


def listed(root: Path, version: Version) -> Iterator[Listed]:
    """What the version's round had in its catalogue. Raises DataError where that is damaged."""
    path = root / version.folder / "batches/catalogue.csv"
    judged = "judged" if judged_on_logs(root, version) else "unused"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if float(row["probability"]) > 0:
                    role = "trained"
                elif row["split"] == "checkpoint" and row["outcome"] in LEARNABLE:
                    role = "checkpoint"
                else:
                    role = judged if row["split"] == "evaluation" else "unused"
                yield Listed(row["trajectory_id"], int(row["round"]), row["policy"], role)
    except FileNotFoundError:
        raise DataError(f"{path}, a part of a closed round, is not here; try `dvc pull`") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a catalogue: {error}") from None


def judged_on_logs(root: Path, version: Version) -> bool:
    """Whether logs that were kept aside, not episodes that were played, judged the version."""
    return bool(read_json(root / version.folder / "evaluation/evaluation.json").get("off_policy"))


def links(root: Path, versions: list[Version]) -> dict[str, set[Link]]:
    """Version -> the versions that it comes from: that it was trained on from, or that played what it learned from."""
    by_hash = {one.hash: one.number for one in reversed(versions)}
    by_player = {one.hash[:16]: one.number for one in reversed(versions)}
    found: dict[str, set[Link]] = {}
    for version in versions:
        mine = found.setdefault(version.number, set())
        if version.start is not None and version.start.hash in by_hash:
            mine.add(Link(by_hash[version.start.hash], "weights"))
        for policy in {one.policy for one in listed(root, version) if one.role in ("trained", "checkpoint")}:
            if policy in by_player:
                mine.add(Link(by_player[policy], "data"))
        mine -= {link for link in mine if link.parent == version.number}
    return found


def ancestors(number: str, found: dict[str, set[Link]]) -> dict[str, set[Link]]:
    """Each version that a version comes from -> how: the links (child, weights or data) that lead to it."""
    reached: dict[str, set[Link]] = {}
    ahead, seen = [number], {number}
    while ahead:
        child = ahead.pop()
        for parent, how in found[child]:
            reached.setdefault(parent, set()).add(Link(child, how))
            if parent not in seen:
                seen.add(parent)
                ahead.append(parent)
    return reached


def descendants(numbers: Iterable[str], found: dict[str, set[Link]]) -> dict[str, set[Link]]:
    """Each version that comes from one of `numbers`, those themselves left out -> its links among them all."""
    origin = set(numbers)
    touched = set(origin)
    while new := {one for one, mine in found.items() if one not in touched and any(p in touched for p, _ in mine)}:
        touched |= new
    return {one: {link for link in found[one] if link.parent in touched} for one in found if one in touched - origin}
