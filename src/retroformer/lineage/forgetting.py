"""Take trajectories out of the history for good, and leave a tombstone.

In this order, each step the same when repeated: write the tombstone; rewrite the closed rounds' tables without the
rows and let DVC track them; remove the open round's folders that hold one, which `dvc repro` makes again without;
delete the stored earlier versions; complete the tombstone. From the first step on nothing of it comes in again.
"""

from __future__ import annotations

import csv
import getpass
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from retroformer.errors import DataError
from retroformer.lineage import objects, sources
from retroformer.lineage.telling import places
from retroformer.lineage.versions import ROLES, Version, descendants, links, listed, read_versions
from retroformer.lineage.where import TEXT, Condition, matching
from retroformer.pins import read_pins
from retroformer.rounds import commit, dvc, exclusively, git
from retroformer.storage import PACKED
from retroformer.tombstones import TOMBSTONES, ids_of, read_tombstones, write_tombstones
from retroformer.tracking.record import HISTORY, folder_of

OPEN = ("rollouts", "validated", "batches")
"""Folders of the open round that hold trajectories."""
KEPT_OUT = ("challenger", "training")
"""Folders of a closed round that hold none."""


@dataclass
class Plan:
    """What a forgetting would do."""

    trajectories: dict[str, str]
    """Id -> source."""
    rounds: dict[str, list[int]] = field(default_factory=dict)
    """Id -> the closed rounds that hold it."""
    rewritten: list[int] = field(default_factory=list)
    """Closed rounds that hold one, or list one in their catalogue."""
    open: list[str] = field(default_factory=list)
    """Folders of the open round that hold one."""
    roles: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Role -> id -> the versions that it had the role for."""
    inherited: dict[str, list[str]] = field(default_factory=dict)
    """Version -> those that it comes from which learned from one."""
    refused: list[str] = field(default_factory=list)
    """Places of records that the open import refused and that the conditions describe too."""

    @property
    def touched(self) -> dict[str, dict[str, int]]:
        """Version -> role -> how many."""
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for role, mine in self.roles.items():
            for numbers in mine.values():
                for number in numbers:
                    counts[number][role] = counts[number].get(role, 0) + 1
        return {number: counts[number] for number in sorted(counts, key=int)}


def plan(root: Path, conditions: list[Condition]) -> Plan:
    """What the conditions describe, and what it touches. Changes nothing."""
    pins = read_pins(root / "data/champion.json")
    found: dict[str, str] = {}
    rounds: dict[str, set[int]] = defaultdict(set)
    for number, folder in places(root, pins):
        mine = matching(root / folder, number, conditions)
        found |= {id: source for id, source in mine.items() if source or id not in found}
        if folder.is_relative_to(HISTORY):
            for id in mine:
                rounds[id].add(number)
    planned = Plan(dict(sorted(found.items())), {id: sorted(numbers) for id, numbers in sorted(rounds.items())})
    planned.refused = refused(root, conditions)
    ids = frozenset(found)
    closed = {number for number, folder in places(root, pins) if folder.is_relative_to(HISTORY)}
    planned.rewritten = [number for number in sorted(closed) if ids and holds(root / folder_of(number), ids)]
    planned.open = [name for name in OPEN if holds(root / "data" / name, ids)]
    if planned.refused and "rollouts" not in planned.open:
        planned.open.insert(0, "rollouts")
    trace(root, planned, read_versions(root))
    return planned


def trace(root: Path, planned: Plan, versions: list[Version]) -> None:
    """Fill in which versions learned from what is to be forgotten."""
    roles: dict[str, dict[str, list[str]]] = {role: defaultdict(list) for role in ROLES[:3]}
    for version in versions:
        for line in listed(root, version):
            if line.id in planned.trajectories and line.role in roles:
                roles[line.role][line.id].append(version.number)
    planned.roles = {role: dict(mine) for role, mine in roles.items()}
    learned = {number for role in ("trained", "checkpoint") for mine in roles[role].values() for number in mine}
    came = descendants(learned, links(root, versions))
    planned.inherited = {number: sorted({link.parent for link in how}, key=int) for number, how in came.items()}


def refused(root: Path, conditions: list[Condition]) -> list[str]:
    """Places of the open import's refused records that conditions on `text` and `source` describe."""
    path = root / "data/rollouts/quarantine/records.jsonl"
    if not path.is_file() or not all(one.column in (TEXT, "source") for one in conditions):
        return []
    with path.open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [
        one["source"]
        for one in records
        if all(each.holds(one["record" if each.column == TEXT else "source"]) for each in conditions)
    ]


def holds(folder: Path, ids: frozenset[str]) -> bool:
    """Whether a table anywhere below has one of the ids."""
    return any(objects.holds(path, ids) for path in tables(folder))


def tables(folder: Path) -> Iterator[Path]:
    """Parquet and CSV files of a folder that may hold trajectories."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".parquet", ".csv") and path.relative_to(folder).parts[0] not in KEPT_OUT:
            yield path


def forget(
    root: Path,
    conditions: list[Condition],
    reason: str,
    *,
    by: str = "",
    logs: bool = False,
    commit_it: bool = False,
) -> dict[str, Any]:
    """Do it. Returns the tombstone with `purged`, see `objects.Purged`, which its file does not have.

    `logs`: also empty the lines of data/logs that the trajectories were read from. A forgetting that was interrupted
    is finished first, so repeated it ends in the same state. Raises DataError where nothing is described, where a
    closing or DVC is running, or where DVC's stores cannot be searched.
    """
    with alone(root):
        written = read_tombstones(root / TOMBSTONES)
        finished = [finish(root, one, commit_it) for one in written if not complete(one)]
        planned = plan(root, conditions)
        if not planned.trajectories and not planned.refused:
            if finished:
                return finished[-1]
            if written and commit_it:
                record(root, written[-1])  # what was killed between the last two steps
            raise DataError("these conditions describe no trajectory here; nothing was changed")
        new = tombstone(root, planned, conditions, reason, by or author(root), logs)
        write_tombstones(root / TOMBSTONES, [*read_tombstones(root / TOMBSTONES), new])
        return finish(root, new, commit_it)


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """No closing and no stage beside it. Raises DataError where one is under way."""
    with exclusively(root):
        if running := stages_running(root):
            raise DataError(f"DVC is running here (process {running}); wait until it is done, then forget")
        yield


def stages_running(root: Path) -> int | None:
    """A process that DVC's own lock file says is reading or writing here, if it is still alive."""
    try:
        locks = json.loads((root / ".dvc/tmp/rwlock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    readers = [one for mine in locks.get("read", {}).values() for one in mine]
    alive = [one["pid"] for one in (*readers, *locks.get("write", {}).values()) if psutil.pid_exists(one["pid"])]
    return next(iter(alive), None)


def author(root: Path) -> str:
    """Who forgets, as git or else the machine knows them."""
    try:
        return git(root, "config", "user.name").strip() or getpass.getuser()
    except DataError:
        return getpass.getuser()


def tombstone(
    root: Path, planned: Plan, conditions: list[Condition], reason: str, by: str, logs: bool
) -> dict[str, Any]:
    """The line, as it is before anything was removed."""
    groups: dict[tuple[Any, ...], dict[str, str]] = defaultdict(dict)
    for id, source in planned.trajectories.items():
        fate = tuple(tuple(planned.roles[role].get(id, ())) for role in ROLES[:3])
        groups[(tuple(planned.rounds.get(id, ())), *fate)][id] = source
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": by,
        "reason": reason,
        "where": [one.kept() for one in conditions],
        "trajectories": [
            {"ids": ids, "rounds": list(rounds), **{role: list(mine) for role, mine in zip(ROLES, fate, strict=False)}}
            for (rounds, *fate), ids in sorted(groups.items())
        ],
        "touched": planned.touched,
        "inherited": planned.inherited,
        "open": planned.open,
        "logs": logs,
        "rounds": {str(number): {"before": md5_of(root, number)} for number in planned.rewritten},
    }


def complete(one: dict[str, Any]) -> bool:
    """Whether everything that a tombstone stands for was done."""
    return one.get("complete", False)


def finish(root: Path, one: dict[str, Any], commit_it: bool) -> dict[str, Any]:
    """Remove what a tombstone names, wherever it lies, and complete the tombstone."""
    ids = frozenset(ids_of(one))
    stored = blank(root, lines_left(root, ids_of(one))) if one["logs"] else set[str]()
    folders = [folder_of(int(number)) for number in one["rounds"]]
    for folder in folders:
        for path in tables(root / folder):
            if objects.holds(path, ids):
                rewrite(path, ids)
    if folders:
        dvc(root, "add", "--quiet", *map(str, folders))
    empty_open_round(root, ids, one["open"])
    before = [old for each in one["rounds"].values() if (old := each["before"])]
    if objects.on_remote(root, before):
        # Who pulls must find the new version where the old one was, before that one is gone.
        dvc(root, "push", "--quiet", *map(str, folders))
    purged = objects.purge(root, ids, pointers_in(root), also=stored)
    rounds = {number: {**each, "after": md5_of(root, int(number))} for number, each in one["rounds"].items()}
    done = {**one, "rounds": rounds, "complete": True}
    written = read_tombstones(root / TOMBSTONES)
    write_tombstones(root / TOMBSTONES, [done if each == one else each for each in written])
    if commit_it:
        record(root, done)
    return {**done, "purged": vars(purged)}


def record(root: Path, done: dict[str, Any]) -> None:
    """Commit the tombstone and the pointers of the rounds that it rewrote."""
    count = len(ids_of(done))
    paths = [str(TOMBSTONES), *(f"{folder_of(int(number))}.dvc" for number in done["rounds"])]
    commit(root, f"Forget {count} {'trajectory' if count == 1 else 'trajectories'}: {done['reason']}", paths)


def empty_open_round(root: Path, ids: frozenset[str], named: list[str]) -> None:
    """Remove the folders that hold a trajectory, and what a killed write left of them; `dvc repro` makes them anew."""
    gone = [name for name in OPEN if name in named or holds(root / "data" / name, ids)]
    for name in gone:
        shutil.rmtree(root / "data" / name, ignore_errors=True)
    left = [path for name in OPEN for path in (root / "data").glob(f".{name}.*/")]
    left += (root / HISTORY).glob(".round-*/")
    if "batches" in gone:
        left += (root / ".resume").glob("train-*/")
    for path in left:
        shutil.rmtree(path)


def rewrite(path: Path, ids: frozenset[str]) -> None:
    """Write a table anew without the rows of the ids, whole or not at all; the rest stays as it is."""
    half = path.with_name(f".{path.name}.half")
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file, half.open("w", newline="", encoding="utf-8") as new:
                writer = csv.writer(new, lineterminator="\n")
                writer.writerows(row for row in csv.reader(file) if not row or row[0] not in ids)
        else:
            with pq.ParquetFile(path) as file, pq.ParquetWriter(half, file.schema_arrow, **PACKED) as new:
                for number in range(file.num_row_groups):
                    rows = file.read_row_group(number)
                    kept = [id not in ids for id in rows["trajectory_id"].to_pylist()]
                    new.write_table(rows.filter(pa.array(kept, pa.bool_())))
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def lines_left(root: Path, wanted: dict[str, str]) -> dict[str, list[int]]:
    """File -> lines that still are one of the trajectories (id -> source), of plain files with a record a line."""
    today = sources.still_there(root, wanted, sources.reading(sources.read_yaml(root / "params.yaml")))
    places = {sources.place_of(wanted[id]) for id, state in today.items() if state == "same"}
    found: dict[str, list[int]] = defaultdict(list)
    for place in sorted(one for one in places if one):
        if not place.item and place.file.endswith((".jsonl", ".ndjson")):
            found[place.file].append(place.line)
    return dict(found)


def blank(root: Path, lines: dict[str, list[int]]) -> set[str]:
    """Empty lines of logs, so that the numbers of the others stay; the hashes under which DVC stored them before."""
    stored: set[str] = set()
    for name, numbers in lines.items():
        path, pointer, doomed = root / name, root / f"{name}.dvc", set(numbers)
        half = path.with_name(f".{path.name}.half")
        try:
            with path.open("rb") as file, half.open("wb") as new:
                new.writelines(b"\n" if n in doomed else line for n, line in enumerate(file, 1))
            os.replace(half, path)
        finally:
            half.unlink(missing_ok=True)
        if pointer.is_file():
            stored |= set(pointers_of(pointer))
            dvc(root, "add", "--quiet", name)
    return stored


def empty_logs(root: Path, *, yes: bool) -> dict[str, list[int]]:
    """Empty the lines that all that was ever forgotten was read from; without `yes` only say which."""
    lines = lines_left(
        root, {id: source for one in read_tombstones(root / TOMBSTONES) for id, source in ids_of(one).items()}
    )
    if yes and lines:
        with alone(root):
            stored = blank(root, lines)
            objects.purge(root, frozenset(), pointers_in(root), also=stored)
    return lines


def md5_of(root: Path, number: int) -> str | None:
    """DVC's hash of a closed round's folder; None where it is not tracked yet."""
    return next(iter(pointers_of(root / f"{folder_of(number)}.dvc")), None)


def pointers_of(path: Path) -> list[str]:
    """The hashes that a ``.dvc`` file names."""
    return [one["md5"] for one in (sources.read_yaml(path) or {}).get("outs", ()) if "md5" in one]


def pointers_in(root: Path) -> set[str]:
    """The hashes that the project's ``.dvc`` files name."""
    return {md5 for path in (root / "data").rglob("*.dvc") for md5 in pointers_of(path)}
