"""DVC's cache and remotes: the stored versions of files that hold what was forgotten.

DVC stores a file under its content's hash, and a folder as a list (``*.dir``) of names and hashes. Rewriting a folder
leaves its earlier version stored; here that is deleted: each stored file that has a row of a forgotten trajectory,
and what else stood in a folder with such a file and in no other one (Data Docs, quarantine).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retroformer.errors import DataError

PARQUET = b"PAR1"
CSV = b"trajectory_id,"
OF_THE_POLICY = ("challenger/", "training/")
"""Weights and curves hold no trajectory."""


@dataclass
class Purged:
    """What was deleted, and where it could not be looked for."""

    files: int = 0
    bytes: int = 0
    stores: list[str] = field(default_factory=list)
    unsearched: list[str] = field(default_factory=list)
    """Remotes on which only what the cache had too was deleted."""


@contextmanager
def stores(root: Path) -> Iterator[list[Any]]:
    """DVC's cache and, where one is set, the default remote. Raises DataError where DVC cannot reach one."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            found: list[Any] = [repo.cache.local]
            if repo.config["core"].get("remote"):
                found.append(repo.cloud.get_remote_odb(command="forget"))
            yield found
    except DvcException as error:
        raise DataError(f"DVC's stores could not be opened: {error}") from None


def on_remote(root: Path, oids: Iterable[str]) -> bool:
    """Whether the default remote has one of the objects."""
    with stores(root) as found:
        return any(remote.exists(oid) for remote in found[1:] for oid in oids)


def purge(root: Path, ids: frozenset[str], pointers: set[str], also: set[str]) -> Purged:
    """Delete what holds one of the ids, and `also` these objects, from the cache and the default remote.

    `pointers` are the hashes that the project's ``.dvc`` files name now; what they need stays.
    """
    done = Purged()
    doomed: set[str] = set()
    with stores(root) as found:
        for store in found:
            if store.fs.protocol == "local":
                doomed |= holding(Path(store.path), ids, pointers) | (also - pointers)
            else:
                done.unsearched.append(store.path)
            done.stores.append(store.path)
            for oid in sorted(doomed):
                if store.exists(oid):
                    path = store.oid_to_path(oid)
                    done.bytes += int(store.fs.info(path)["size"])
                    store.fs.remove(path)
                    done.files += 1
    return done


def holding(store: Path, ids: frozenset[str], pointers: set[str]) -> set[str]:
    """The objects of a store on this machine that are to go."""
    if not store.is_dir():
        return set()
    objects = {path.parent.name + path.name: path for path in store.glob("[0-9a-f][0-9a-f]/*") if path.is_file()}
    folders = {oid: list(entries(path)) for oid, path in objects.items() if oid.endswith(".dir")}
    needed = pointers | {md5 for oid in pointers for _, md5 in folders.get(oid, ())}
    doomed = {oid for oid, path in objects.items() if oid not in folders and holds(path, ids)} - needed
    affected = {oid for oid, mine in folders.items() if oid not in needed and any(md5 in doomed for _, md5 in mine)}
    elsewhere = {md5 for oid, mine in folders.items() if oid not in affected for _, md5 in mine} | needed
    beside = {md5 for oid in affected for name, md5 in folders[oid] if not name.startswith(OF_THE_POLICY)} - elsewhere
    return doomed | affected | (beside & objects.keys())


def entries(path: Path) -> Iterator[tuple[str, str]]:
    """Name and hash of each file of a stored folder; none of one that is damaged."""
    try:
        yield from [(one["relpath"], one["md5"]) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return


def holds(path: Path, ids: frozenset[str]) -> bool:
    """Whether a file is a table, Parquet or CSV, with a row of one of the ids."""
    with path.open("rb") as file:
        head = file.read(len(CSV))
        if head.startswith(PARQUET):
            return parquet_holds(path, ids)
        if head != CSV:
            return False
        return any(line.partition(b",")[0].decode("utf-8", "replace") in ids for line in file)


def parquet_holds(path: Path, ids: frozenset[str]) -> bool:
    """Whether a table has a row of one of the ids; a damaged one, or one of other columns, has not."""
    try:
        with pq.ParquetFile(path) as table:
            if "trajectory_id" not in table.schema_arrow.names:
                return False
            batches = table.iter_batches(1 << 16, columns=["trajectory_id"])
            return any(not ids.isdisjoint(batch[0].to_pylist()) for batch in batches)
    except (pa.ArrowException, OSError):
        return False
