"""The versions of the registered model, in the words of the files: one for each closed round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from retroformer.errors import DataError
from retroformer.evaluation.comparison import paired_difference
from retroformer.evaluation.episodes import Scores, by_task, read_episodes
from retroformer.files import read_json
from retroformer.pins import Pin, Pins
from retroformer.tracking import promotions
from retroformer.tracking.mlflow_view import uri
from retroformer.tracking.record import FIGURES, folder_of

NEVER_CHOSEN_ON = ("final", "transfer")
"""Ranges whose seeds are the same every round and which no gate looks at."""


@dataclass(frozen=True, slots=True)
class Version:
    """A policy that a closed round made."""

    number: str
    """Of the registered model."""
    record: dict[str, Any]
    """round.json"""

    @property
    def folder(self) -> Path:
        """Of its round, relative to the project's root."""
        return folder_of(self.record["round"])

    @property
    def pin(self) -> Pin:
        """As data/champion.json pins it."""
        return Pin((self.folder / "challenger").as_posix(), self.record["challenger_hash"], uri(self.number))


def versions_of(records: Iterable[dict[str, Any]]) -> list[Version]:
    """The versions that closed rounds made, in their order."""
    return [Version(record["model_version"], record) for record in records]


def version_of(pin: Pin | None, versions: Sequence[Version]) -> Version | None:
    """The version that a pin is; None for a policy that no round made."""
    return next((one for one in reversed(versions) if pin and promotions.same(one.pin, pin)), None)


def named(pin: Pin | None, versions: Sequence[Version]) -> str:
    """A pinned policy as a person calls it."""
    if pin is None:
        return "a fresh model"
    version = version_of(pin, versions)
    return pin.policy if version is None else f"version {version.number}"


def find(name: str, versions: Sequence[Version], pins: Pins) -> Version:
    """The version of that number, or that is `champion` or `challenger`. Raises DataError that names the known."""
    if not versions:
        raise DataError("no round is closed yet, so there is no version; `dvc repro`, then `retroformer close`")
    if name == "challenger":
        return versions[-1]
    known = ", ".join(["champion", "challenger", *(one.number for one in versions)])
    if name == "champion":
        champion = version_of(pins.champion, versions)
        if champion is None:
            raise DataError(f"the champion is {pins.champion.policy}, which is no version; known: {known}")
        return champion
    for one in versions:
        if one.number == name:
            return one
    raise DataError(f"{name!r} is not a version; known: {known}")


def aliases_of(version: Version, versions: Sequence[Version], pins: Pins) -> list[str]:
    """What a version is at present: champion, challenger (the newest), train_from."""
    held = {"champion": version_of(pins.champion, versions), "challenger": versions[-1]}
    held["train_from"] = version_of(pins.train_from, versions)
    return [alias for alias, holder in held.items() if holder == version]


def row(version: Version, versions: Sequence[Version], pins: Pins) -> dict[str, Any]:
    """A version in a table."""
    record = version.record
    shown = {key: record[key] for key in ("round", "verdict", "reason", *FIGURES)}
    against = Pin(**record["champion"])
    rival = version_of(against, versions)
    return {
        "version": version.number,
        "aliases": aliases_of(version, versions, pins),
        **shown,
        "levels": [{"task": one["task"], **(one["challenger"] or {})} for one in record["levels"]],
        "against": {"policy": against.policy, "version": None if rival is None else rival.number},
        "policy": version.pin.policy,
        "hash": version.pin.hash,
        "uri": version.pin.uri,
        "dataset_hash": record["dataset_hash"],
    }


def describe(root: Path, version: Version, versions: Sequence[Version], pins: Pins) -> dict[str, Any]:
    """Everything that is known of one version. Raises DataError where its round has not been brought here."""
    moves = [one for one in promotions.read(root) if promotions.same(one.after, version.pin)]
    return {
        **row(version, versions, pins),
        "training": read_json(root / version.folder / "training/train.json"),
        "params": params_of(root, version),
        "seconds": version.record["seconds"],
        "report": (version.folder / "decision/report.html").as_posix(),
        "promotions": [asdict(one) for one in moves],
    }


def params_of(root: Path, version: Version) -> dict[str, Any] | None:
    """The parameters that a version's round was run with, under dotted names; None where it did not keep them."""
    path = root / version.folder / "params.yaml"
    if not path.is_file():
        return None

    def flat(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {key: one for name, inner in value.items() for key, one in flat(f"{prefix}.{name}", inner).items()}

    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key.removeprefix("."): value for key, value in flat("", values).items()}


def compare(root: Path, one: Version, other: Version, versions: Sequence[Version], pins: Pins) -> dict[str, Any]:
    """Two versions side by side, and the difference, `other` minus `one`, on the seeds that both have played.

    Those are seeds that no gate looks at; their number was fixed before they were played, so the interval is that of a
    single look. It is of one comparison: the best of many is better than it is by luck, too.
    """
    first, second = params_of(root, one), params_of(root, other)
    differing = None
    if first is not None and second is not None:
        names = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
        differing = {key: [first.get(key), second.get(key)] for key in names}
    played = [played_by(root, version, versions) for version in (one, other)]
    confidence = max(
        read_json(root / version.folder / "evaluation/evaluation.json")["confidence"] for version in (one, other)
    )
    paired = [difference(range_, played, confidence) for range_ in NEVER_CHOSEN_ON]
    return {
        "versions": [row(version, versions, pins) for version in (one, other)],
        "same_data": one.record["dataset_hash"] == other.record["dataset_hash"],
        "params": differing,
        "paired": [found for found in paired if found is not None],
    }


def played_by(root: Path, version: Version, versions: Sequence[Version]) -> dict[str, Scores]:
    """Range -> what a version scored there, sampled and told the true mission, in its own and in later rounds."""
    found: dict[str, Scores] = {}
    for other in versions:
        names = {"challenger"} if other == version else set[str]()
        if promotions.same(Pin(**other.record["champion"]), version.pin):
            names.add("champion")
        if not names:
            continue
        for episode in read_episodes(root / other.folder / "evaluation/episodes.csv"):
            if episode.policy in names and (episode.mission, episode.decoding) == ("true", "sampled"):
                found.setdefault(episode.range, {}).setdefault((episode.task, episode.seed), episode.score)
    return found


def difference(range_: str, played: Sequence[dict[str, Scores]], confidence: float) -> dict[str, Any] | None:
    """The second's success minus the first's on the seeds of one range that both played; None without any."""
    first, second = (scores.get(range_, {}) for scores in played)
    both = first.keys() & second.keys()
    if not both:
        return None
    found = paired_difference(
        by_task({key: first[key] for key in both}), by_task({key: second[key] for key in both}), confidence, looks=1
    )
    keys = ("mean", "lower", "upper", "n")
    return {
        "range": range_,
        "confidence": confidence,
        **{key: getattr(found, key) for key in keys},
        "per_task": [{"task": one.task, **{key: getattr(one, key) for key in keys}} for one in found.per_task],
    }
