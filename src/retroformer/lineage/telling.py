"""The whole answer: everything behind a version, everything that learned from a trajectory."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from retroformer.errors import DataError
from retroformer.files import read_json
from retroformer.lineage import sources
from retroformer.lineage.versions import (
    ROLES,
    Listed,
    Version,
    ancestors,
    descendants,
    find,
    links,
    listed,
    read_versions,
)
from retroformer.pins import Pins, read_pins
from retroformer.rounds import git
from retroformer.storage import EPISODES, read_table, stream_table
from retroformer.tombstones import TOMBSTONES, read_tombstones
from retroformer.tracking import mlflow_view
from retroformer.tracking.aliases import reachable

FACTS = ("task", "outcome", "policy", "source")
"""Of a trajectory, besides its id and round."""
PLACES = {"validated": "accepted", "validated/quarantine": "quarantined"}
"""Folders of a round that hold trajectories, and what they were found to be."""


def version_lineage(root: Path, name: str) -> dict[str, Any]:
    """All that is behind a version. Raises DataError for an unknown one, or where a round is not here.

    Keys: version, round, uri, policy, hash, verdict, reason, in_production, git, params, hashes (path -> DVC's md5, of
    data and code, as the round ran), dataset_hash, history (DVC's hash of the round's folder, now), trained_from,
    trajectories (role -> list), sources, inherited (the versions it comes from, each with its own), forgotten.
    """
    pins = read_pins(root / "data/champion.json")
    versions = read_versions(root)
    version = find(name, versions, pins)
    by_number = {one.number: one for one in versions}
    found = links(root, versions)
    facts: dict[int, dict[str, tuple[Any, ...]]] = {}
    told = {**identity(root, version, pins), **learned(root, version, facts, by_number)}
    told["inherited"] = [
        {
            **identity(root, by_number[parent], pins),
            "through": [{"version": child, "by": by} for child, by in sorted(how)],
            **learned(root, by_number[parent], facts, by_number),
        }
        for parent, how in sorted(ancestors(version.number, found).items(), key=lambda pair: -by_number[pair[0]].round)
    ]
    return told


def identity(root: Path, version: Version, pins: Pins) -> dict[str, Any]:
    """What a version is, and the state of code, values and data that made it."""
    lock = sources.read_yaml(root / version.folder / "lock.yaml") or {"stages": {}}
    pointer = sources.read_yaml(root / f"{version.folder}.dvc") or {"outs": [{}]}
    start = version.start
    entries = [one for stage in lock["stages"].values() for side in ("deps", "outs") for one in stage.get(side, ())]
    return {
        "version": version.number,
        "round": version.round,
        "uri": mlflow_view.uri(version.number),
        "policy": (version.folder / "challenger").as_posix(),
        "hash": version.hash,
        "verdict": version.record["verdict"],
        "reason": version.record["reason"],
        "in_production": version.hash == pins.champion.hash,
        "git": commit_of(root, version),
        "params": sources.read_yaml(root / version.folder / "params.yaml"),
        "hashes": {one["path"]: one["md5"] for one in entries if "md5" in one},
        "dataset_hash": version.record["dataset_hash"],
        "history": {"path": version.folder.as_posix(), "md5": pointer["outs"][0].get("md5")},
        "trained_from": start and {"policy": start.policy, "hash": start.hash},
        "model": read_json(root / version.folder / "training/train.json").get("start"),
    }


def commit_of(root: Path, version: Version) -> dict[str, Any]:
    """Where a version's code is in git: the commit that is tagged with its round, or else the one it was closed on.

    `commit` is None where neither is known, `dirty` says whether code or values differed from it; `in_git_since` is
    the first commit that knows the round's data. Raises DataError where that is the registry's to say and it does not
    answer.
    """
    tag = f"round/{version.round}"
    told: dict[str, Any] = {"commit": None, "tag": None, "dirty": None, "in_git_since": None}
    try:
        if git(root, "tag", "--list", tag).strip():
            told |= {"commit": git(root, "rev-parse", f"{tag}^{{commit}}").strip(), "tag": tag, "dirty": False}
        first = git(root, "log", "--diff-filter=A", "--format=%H", "--", f"{version.folder}.dvc").split()
        told["in_git_since"] = first[-1] if first else None
    except DataError:
        pass  # no git, or no commit yet
    if told["tag"] is None and mlflow_view.is_there(root):
        with reachable():
            registered = mlflow_view.versions(mlflow_view.client(root))
        for one in registered:
            same = (one.tags.get("round"), one.tags.get("challenger_hash")) == (str(version.round), version.hash)
            if same and "git_commit" in one.tags:
                told |= {"commit": one.tags["git_commit"], "dirty": one.tags.get("git_dirty") == "true"}
    return told


def learned(
    root: Path, version: Version, facts: dict[int, dict[str, tuple[Any, ...]]], by_number: dict[str, Version]
) -> dict[str, Any]:
    """The trajectories of a version's round by role, who played them and where they were read; what was forgotten."""
    lines = list(listed(root, version))
    for number in {line.round for line in lines} - facts.keys():
        facts[number] = facts_of(root / f"data/history/round-{number:04d}" / "validated")
    roles: dict[str, list[dict[str, Any]]] = {role: [] for role in ROLES}
    for line in sorted(lines):
        roles[line.role].append(described(line, facts[line.round]))
    made = {one.hash[:16]: one.number for one in by_number.values()}
    players = Counter(one["policy"] for role in ROLES for one in roles[role])
    forgotten = [
        {"at": one["at"], "reason": one["reason"], **{role: sorted(ids) for role, ids in mine.items()}}
        for one in read_tombstones(root / TOMBSTONES)
        if (mine := of_tombstone(one, version.number))
    ]
    return {
        "trajectories": roles,
        "policies": [
            {"policy": policy, "version": made.get(policy), "trajectories": count}
            for policy, count in players.most_common()
        ],
        "sources": sources.by_file(one["source"] for role in ROLES for one in roles[role]),
        "forgotten": forgotten,
    }


def facts_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Id -> the facts of each trajectory of a folder."""
    table = read_table(folder / "episodes.parquet", EPISODES)
    columns = (table[name].to_pylist() for name in ("trajectory_id", *FACTS))
    return {row[0]: row[1:] for row in zip(*columns, strict=True)}


def described(line: Listed, facts: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """One trajectory, as lineage tells of it."""
    mine = facts.get(line.id, (None, None, line.policy, ""))
    return {"id": line.id, "round": line.round, **dict(zip(FACTS, mine, strict=True))}


def of_tombstone(tombstone: dict[str, Any], number: str) -> dict[str, list[str]]:
    """Role -> ids that a version had learned from and a tombstone names."""
    found: dict[str, list[str]] = defaultdict(list)
    for group in tombstone["trajectories"]:
        for role in ROLES[:3]:
            if number in group[role]:
                found[role] += group["ids"]
    return dict(found)


def trajectory_lineage(root: Path, prefix: str) -> dict[str, Any]:
    """Where a trajectory lies, where it was read, and which versions learned from it.

    Keys: id, found (round and folder, accepted or quarantined), task, outcome, policy, source, line (what its line in
    the log is today, see `sources.still_there`), trained, checkpoint, judged, unused (versions), inherited (versions
    that come from the first two), forgotten. Raises DataError where no id, or more than one, begins so.
    """
    pins = read_pins(root / "data/champion.json")
    versions = read_versions(root)
    folders = places(root, pins)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, folder in folders:
        for row in rows_of(root / folder, prefix):
            rows[row["trajectory_id"]].append({**row, "round": number, "folder": folder.as_posix()})
    tombstones = [
        {**group, "id": id, "source": source, "at": one["at"], "by": one["by"], "reason": one["reason"]}
        for one in read_tombstones(root / TOMBSTONES)
        for group in one["trajectories"]
        for id, source in group["ids"].items()
        if id.startswith(prefix)
    ]
    ids = sorted({*rows, *(one["id"] for one in tombstones)})
    if len(ids) != 1:
        where = f"{len(folders)} folders of trajectories, or among what was forgotten"
        shown = f"{', '.join(ids[:4])}{', ...' if len(ids) > 4 else ''}"
        wrong = f"{len(ids)} ids begin with {prefix!r} ({shown}); give more of it" if ids else ""
        raise DataError(wrong or f"no trajectory's id begins with {prefix!r} in {where}")
    id = ids[0]
    grave = next((one for one in tombstones if one["id"] == id), None)
    roles: dict[str, list[str]] = {role: [] for role in ROLES}
    for version in versions:
        for line in listed(root, version):
            if line.id == id:
                roles[line.role].append(version.number)
    if grave:
        roles |= {role: grave[role] for role in ROLES[:3]}
    came = descendants({*roles["trained"], *roles["checkpoint"]}, links(root, versions))
    first = rows[id][0] if rows[id] else {"source": grave["source"] if grave else ""}
    return {
        "id": id,
        "found": [
            {"round": row["round"], "folder": row["folder"], "is": PLACES.get(tail(row["folder"]), "collected")}
            for row in rows[id]
        ],
        **{name: first.get(name) for name in FACTS},
        "line": line_today(root, id, first["source"], [row["round"] for row in rows[id]]),
        **roles,
        "inherited": [
            {"version": number, "through": [{"version": parent, "by": by} for parent, by in sorted(how)]}
            for number, how in came.items()
        ],
        "forgotten": grave and {key: grave[key] for key in ("at", "by", "reason", "rounds")},
    }


def places(root: Path, pins: Pins) -> list[tuple[int, Path]]:
    """Folders that hold whole trajectories, with their round: the closed rounds', then the open one's."""
    found = []
    for folder in sorted((root / "data/history").glob("round-*/")):
        number = int(re.sub(r"\D", "", folder.name))
        found += [(number, folder / name) for name in PLACES]
    found += [(pins.round, root / "data" / name) for name in ("rollouts", *PLACES)]
    return [(number, folder.relative_to(root)) for number, folder in found if (folder / "episodes.parquet").is_file()]


def tail(folder: str) -> str:
    """``validated/quarantine`` of any round's folder."""
    return folder[folder.find("validated") :] if "validated" in folder else folder


def rows_of(folder: Path, prefix: str) -> Iterable[dict[str, Any]]:
    """Rows of ``episodes`` whose id begins so."""
    for batch in stream_table(folder / "episodes.parquet", EPISODES):
        begins = [id is not None and id.startswith(prefix) for id in batch["trajectory_id"].to_pylist()]
        yield from batch.filter(pa.array(begins, pa.bool_())).to_pylist()


def line_today(root: Path, id: str, source: str, rounds: list[int]) -> str | None:
    """What the line that a trajectory was read from is today, by the rules of the newest round that has it."""
    folders = [root / f"data/history/round-{number:04d}" for number in sorted(rounds, reverse=True)]
    params = next((found for one in [*folders, root] if (found := sources.read_yaml(one / "params.yaml"))), None)
    return sources.still_there(root, {id: source}, sources.reading(params)).get(id)
