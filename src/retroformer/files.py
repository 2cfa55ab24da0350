"""Files and folders that are there whole or not at all, whatever is killed meanwhile, and what they are known by.

They are written beside their target and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retroformer.errors import DataError

WRITING = ".writing-"
"""In the hidden name of what is being written beside its target."""
REPORTS = {
    "collect.json",
    "validate.json",
    "curate.json",
    "train.json",
    "retroformer.json",
    "evaluation.json",
    "verdict.json",
    "round.json",
}
"""Each output folder holds one of these, and by it is known as one that may be replaced."""


def check_replaceable(directory: Path) -> None:
    """Raise DataError where a folder written at `directory` would remove anything but an earlier output."""
    directory = Path(directory)
    if directory.is_symlink():
        raise DataError(f"{directory} is a link, expected a folder to write")
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory} is a file, expected a folder to write")
    if directory.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise DataError(f"{directory} is the working folder or above it; an output is written to a folder of its own")
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if found and not found & REPORTS:
        raise DataError(
            f"{directory} holds {min(found)} and is no output of a stage (none of {', '.join(sorted(REPORTS))}); "
            "it would be lost: name an empty or new folder"
        )


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `directory` when the block ends well.

    If the block raises, `directory` is as it was and the temporary folder is gone. Raises DataError at the start
    where `directory` is something else than an earlier output, see `check_replaceable`.
    """
    directory = Path(directory)
    settle(directory)
    check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}{WRITING}", dir=directory.parent))
    old = temporary.with_name(temporary.name + ".old")
    handle = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # as long as this process lives, see `settle`
        temporary.chmod(0o755)
        yield temporary
        if directory.exists():
            os.rename(directory, old)
        os.rename(temporary, directory)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not directory.exists():
            os.rename(old, directory)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    settle(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{WRITING}", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def settle(target: Path) -> None:
    """Put right what killed writes of a file or folder left beside it.

    An output that was already moved out of the way comes back, what was half written is removed. What a process that
    lives is writing is locked by it and left alone.
    """
    target = Path(target)
    left = re.compile(rf"\.{re.escape(target.name)}{re.escape(WRITING)}[a-z0-9_]{{8}}")
    found = {path.name: path for path in target.parent.iterdir()} if target.parent.is_dir() else {}
    for name in {name.removesuffix(".old") for name in found if left.fullmatch(name.removesuffix(".old"))}:
        new, old = target.parent / name, found.get(f"{name}.old")
        if _is_being_written(new):
            continue
        if old is not None and not target.exists():
            os.rename(old, target)
        for path in (new, old):
            if path is not None and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path is not None:
                path.unlink(missing_ok=True)


def _is_being_written(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, whole or not at all. Non-finite numbers are refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises DataError that names the file and the place."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None


def resume_folder(stage: str, inputs: Iterable[Path], values: Iterable[Any], root: Path = Path(".")) -> Path:
    """Where a killed stage finds what it had done: ``.resume/STAGE-KEY``, outside of its outputs.

    KEY is a hash of the inputs' contents, the values (parameters, as they print) and this package's source, so that
    nothing is ever resumed that would now come out differently. Raises DataError where an input is missing.
    """
    digest = hashlib.sha256(repr([repr(value) for value in values]).encode())
    for path in (*map(Path, inputs), Path(__file__).parent):
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    digest.update(f"{file.relative_to(path).as_posix()}\x00".encode() + file.read_bytes())
        elif path.is_file():
            digest.update(path.read_bytes())
        else:
            raise DataError(f"{path} does not exist")
    return Path(root) / ".resume" / f"{stage}-{digest.hexdigest()[:16]}"


def hash_directory(directory: Path) -> str:
    """SHA-256 over names and contents of a folder's files (hidden ones left out), 64 hex digits."""
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory} does not exist")
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\x00{path.stat().st_size}\x00".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
