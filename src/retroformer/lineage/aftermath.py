"""After a forgetting: what still holds something of it, and what to run again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retroformer.errors import DataError
from retroformer.lineage import objects, sources
from retroformer.lineage.versions import read_versions
from retroformer.lineage.where import TEXT, Condition
from retroformer.pins import Pins, read_pins
from retroformer.rounds import git
from retroformer.storage import EPISODES, stream_table
from retroformer.tombstones import ids_of
from retroformer.tracking import promotions
from retroformer.tracking.record import folder_of

SEARCHED = ("data", "mlruns/artifacts", "imported", ".resume")
TEXTS = {".json", ".jsonl", ".ndjson", ".csv", ".html", ".txt", ".md", ".yaml", ".yml", ".log"}
MOST = 256 * 2**20
"""Bytes of a text file that is searched."""


def remaining(root: Path, tombstone: dict[str, Any], conditions: list[Condition]) -> list[str]:
    """Sentences: where the same can still be found on this machine, looked for now, and what cannot be looked into."""
    ids = ids_of(tombstone)
    told = []
    params = sources.read_yaml(root / "params.yaml")
    same = {id for id, state in sources.still_there(root, ids, sources.reading(params)).items() if state == "same"}
    for file, found in sources.by_file(ids[id] for id in same).items():
        kept = ", and git's history of it" if in_git(root, file) else ""
        told.append(
            f"{file}, line {sources.ranges(found['lines'])}: the log itself{kept}. An import leaves it out, by the "
            "rules in params.yaml of today; `retroformer forget --logs --yes` empties the lines and moves no other"
        )
    folders = [path.parent for name in SEARCHED[:3] for path in (root / name).rglob("episodes.parquet")]
    told += [
        f"{folder.relative_to(root)}: trajectories that were imported there; import again, or remove the folder"
        for folder in sorted(set(folders))
        if objects.holds(folder / "episodes.parquet", frozenset(ids))
    ]
    patterns = [re.compile(one.value.encode()) for one in conditions if one.column == TEXT]
    texts = [path.relative_to(root) for path in text_files(root) if patterns and speaks(path, patterns)]
    told += [f"{path}: the text stands there too" for path in sorted(texts)]
    touched = sorted({*tombstone["touched"], *tombstone["inherited"]}, key=int)
    if touched:
        told.append(
            f"the weights of version {', '.join(touched)} (and the vocabulary of a model built from scratch), in "
            "data/history, the registry and DVC: they keep what they learned"
        )
    told += [
        f"git's commits {commits} name {each['before'][:12]}, the round {number} of before, which is gone: there, "
        "`dvc checkout` reports it missing, and `dvc repro` starts from the logs again"
        for number, each in tombstone["rounds"].items()
        if each["before"]
        and each["before"] != each.get("after")
        and (commits := commits_with(root, number, each["before"]))
    ]
    told.append("other clones, other remotes, backups, and what an MLflow store elsewhere was given")
    return told


def text_files(root: Path) -> Iterator[Path]:
    """Files of the project that people can read, of a size that can be searched."""
    for name in SEARCHED:
        for path in (root / name).rglob("*"):
            if path.suffix in TEXTS and path.is_file() and path.stat().st_size <= MOST:
                yield path


def speaks(path: Path, patterns: list[re.Pattern[bytes]]) -> bool:
    """Whether all patterns are found in a file."""
    text = path.read_bytes()
    return all(pattern.search(text) for pattern in patterns)


def in_git(root: Path, name: str) -> bool:
    """Whether a commit has had the file."""
    try:
        return bool(git(root, "log", "--all", "-1", "--format=%h", "--", name).strip())
    except DataError:
        return False


def commits_with(root: Path, number: str, md5: str) -> str:
    """The commits, shortened, whose pointer of a round names that hash; empty where there is none."""
    try:
        path = f"{folder_of(int(number))}.dvc"
        found = git(root, "log", "--all", "--format=%h", "--", path).split()
        return ", ".join(one for one in reversed(found) if md5 in git(root, "show", f"{one}:{path}"))
    except DataError:
        return ""


def commands(root: Path, tombstone: dict[str, Any]) -> list[str]:
    """What to run, in order, so that nothing that is in use has learned from what was forgotten."""
    pins = read_pins(root / "data/champion.json")
    versions = read_versions(root)
    touched = {*tombstone["touched"], *tombstone["inherited"]}
    learned = {number for number, roles in tombstone["touched"].items() if roles.keys() - {"judged"}}
    learned |= set(tombstone["inherited"])
    hashes = {one.hash for one in versions if one.number in learned}
    told = repinning(root, pins, hashes)
    if touched or tombstone["open"]:
        told.append("dvc exp run -S curate.window=1" if replays(root, pins, hashes) else "dvc repro")
        told.append("retroformer close")
    return told


def repinning(root: Path, pins: Pins, hashes: set[str]) -> list[str]:
    """Commands that put back the newest champion that did not learn from it, where training goes on from that too.

    Rollbacks, as far as the record of promotions leads; by hand where it does not, or only `train_from` is touched.
    """
    goes_on = pins.train_from
    if pins.champion.hash in hashes:
        earlier = promotions.champions(promotions.read(root), pins.champion)
        steps = next((n for n, one in enumerate(reversed(earlier)) if one.hash not in hashes), 0)
        if steps:
            return ["retroformer models rollback --reason 'it learned from what was forgotten'"] * steps
        return ["pin an untouched policy in data/champion.json by hand: no promotion leads back to one"]
    if goes_on is None or goes_on.hash not in hashes:
        return []
    values = ", ".join(repr(value) for value in asdict(pins.champion).values())
    return [
        "python -c \"from retroformer.pins import *; write_pins(Path('data/champion.json'), "
        f'Pins({pins.closed_rounds}, Pin({values}), None))"'
    ]


def replays(root: Path, pins: Pins, hashes: set[str]) -> bool:
    """Whether the open round would replay history that a policy played which learned from what was forgotten."""
    window = (sources.read_yaml(root / "params.yaml") or {}).get("curate", {}).get("window", 1)
    played = {hash[:16] for hash in hashes}
    for number in range(pins.closed_rounds, max(0, pins.round - window), -1):
        path = root / folder_of(number) / "validated/episodes.parquet"
        if any(not played.isdisjoint(batch["policy"].to_pylist()) for batch in stream_table(path, EPISODES)):
            return True
    return False
