"""Logs that arrive while rounds are running.

They wait in ``data/inbox/``. A run of rounds takes them to ``data/logs/`` when a round begins and not before: logs that
changed under an open round would make its verdict one on other data, and it could not be closed. What is taken is
versioned by DVC, so that the commit of the round brings it back. A file, or a folder with all that is in it, is taken
whole, so whoever delivers writes under a hidden name and renames at the end. A log that has grown, delivered again
under its name, takes the place of what it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from retroformer.errors import DataError
from retroformer.files import hash_directory, read_json
from retroformer.importers.formats import format_named
from retroformer.importers.records import files_of
from retroformer.pins import read_pins
from retroformer.rounds import LOGS, PINS, changed_stages, dvc, git
from retroformer.tracking.record import HISTORY

INBOX = Path("data/inbox")


def receive(paths: Iterable[Path], format: str, root: Path = Path(".")) -> list[Path]:
    """Copy files and folders of logs to the inbox, each whole or not at all. Returns where they wait.

    Raises DataError where a path does not exist or holds no file of the format; then nothing is copied.
    """
    given = list(paths)
    for path in given:
        files_of([path], format_named(format).suffixes)  # raises
        if not holds_logs(path, format):
            raise DataError(f"{path}: expected a name that ends in {', '.join(format_named(format).suffixes)}")
    return [deliver(path, root / INBOX) for path in given]


def waiting(format: str, root: Path = Path(".")) -> list[Path]:
    """What in the inbox is of the format; hidden names are not finished."""
    return logs_in(root / INBOX, format)


def take_in(format: str, root: Path = Path(".")) -> list[Path]:
    """Move what waits to ``data/logs`` and let DVC track it, and what lies there untracked. Returns what was moved.

    Killed anywhere and repeated, it ends in the same state.
    """
    taken = [deliver(path, root / LOGS, move=True) for path in waiting(format, root)]
    listed = git(root, "ls-files", "-z", "--", str(LOGS)).split("\0")
    in_git = {Path(name).relative_to(LOGS).parts[0] for name in listed if name}
    there = logs_in(root / LOGS, format)
    fresh = [path for path in there if path in taken or not path.with_name(f"{path.name}.dvc").exists()]
    untracked = [path for path in fresh if path.name not in in_git]
    if untracked:
        dvc(root, "add", "--quiet", *(str(path.relative_to(root)) for path in untracked))
    return taken


def begun(root: Path = Path(".")) -> bool:
    """Whether the open round has collected."""
    try:
        return read_json(root / "data/rollouts/collect.json").get("round") == read_pins(root / PINS).round
    except DataError:
        return False


def nothing_new(root: Path = Path(".")) -> bool:
    """Whether a round on imported logs would have the logs, parameters and code of the last closed one.

    It would judge a candidate by the same evidence again, and spend a part of the confidence on it.
    """
    closed = read_pins(root / PINS).closed_rounds > 0
    return closed and not begun(root) and not changed_stages(root, {PINS, HISTORY})


def logs_in(folder: Path, format: str) -> list[Path]:
    """The files and folders in a folder that are logs of the format, hidden ones left out, by name."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if not path.name.startswith(".") and holds_logs(path, format)]


def holds_logs(path: Path, format: str) -> bool:
    """Whether it is a file of the format, or a folder with one."""
    suffixes = format_named(format).suffixes
    try:
        return all(file.name.endswith(suffixes) for file in files_of([path], suffixes))
    except DataError:
        return False


def deliver(path: Path, folder: Path, *, move: bool = False) -> Path:
    """Copy or move a file or folder into `folder` so that nobody sees a part of a file. Returns where it is.

    What it is a later state of is replaced; where anything else has its name, a part of its hash goes into the name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    if target.exists() and not extends(path, target):
        name, dot, suffixes = path.name.partition(".")
        target = folder / f"{name}-{content(path)[:12]}{dot}{suffixes}"
    if move and not target.exists():
        try:
            os.rename(path, target)
            return target
        except OSError as error:
            if error.errno != errno.EXDEV:  # the inbox may be a mount
                raise
    half = Path(tempfile.mkdtemp(prefix=f".{path.name}.writing-", dir=folder))
    try:
        copied = half / path.name
        if path.is_file():
            shutil.copyfile(path, copied)
            os.replace(copied, target)
        else:
            shutil.copytree(path, copied)
            for file in files(copied) if target.exists() else ():
                (target / file.relative_to(copied)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target / file.relative_to(copied))
            if not target.exists():
                os.rename(copied, target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    if move:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return target


def extends(new: Path, old: Path) -> bool:
    """Whether a file begins with all of another, or every file of a folder does with the one of its name there."""
    if new.is_dir() != old.is_dir():
        return False
    if new.is_dir():
        both = ((file, old / file.relative_to(new)) for file in files(new))
        return all(extends(one, other) for one, other in both if other.exists())
    with new.open("rb") as mine, old.open("rb") as theirs:
        while block := theirs.read(1 << 20):
            if mine.read(len(block)) != block:
                return False
    return True


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def content(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder and their names."""
    if path.is_dir():
        return hash_directory(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
