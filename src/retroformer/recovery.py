"""What a kill leaves behind outside of this package's own files, made good before the next command needs it.

What this package writes is whole or not there (`files`). DVC and git clear or keep their own: DVC forgets the locks
of processes that are gone, but writes its small files in place, so a kill can leave half of one, on which every later
command stops; git leaves its lock files, on which it stops as well. And a process whose parent was killed runs on,
beside the one that is started in its place.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retroformer.errors import DataError
from retroformer.preloaded import end

LOOK = 0.25
"""Seconds between two looks at whether the parent is there."""
STALE = 3.0
"""Seconds after which a lock of git that no process of git holds here is taken for left behind."""


def leave_with(parent: int) -> None:
    """End this process and all that it started as soon as process `parent`, which started it, is gone.

    Nobody would record what it makes, and it would write beside the one that comes after it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        end(os.getpid())

    threading.Thread(target=watch, name="leave-with-parent", daemon=True).start()


@contextmanager
def under_dvc(stage: str, root: Path = Path(".")) -> Iterator[None]:
    """Around a stage: where DVC runs it, wait for the one that a killed DVC left, and leave when this DVC is gone."""
    if os.environ.get("DVC_STAGE", "").rpartition(":")[2] != stage:
        yield
        return
    import filelock

    leave_with(os.getppid())
    (root / ".resume").mkdir(exist_ok=True)
    with filelock.FileLock(root / ".resume" / f"{stage}.lock"):
        yield


def mend_dvc(root: Path = Path(".")) -> list[str]:
    """Make good the files that a killed DVC left half written; a sentence for each. Nothing while DVC is at work.

    What git has of a file comes back; else the file goes, and DVC makes it anew: what the stages made is still in its
    cache, by the hashes of what they read.
    """
    import filelock

    folder = root / ".dvc" / "tmp"
    told = []
    if not folder.is_dir():
        return told
    try:
        with filelock.FileLock(folder / "rwlock.lock", timeout=0):
            if _locks_for_nobody(folder / "rwlock"):
                (folder / "rwlock").unlink()
                told.append(".dvc/tmp/rwlock was left by a killed DVC: removed")
        with filelock.FileLock(folder / "lock", timeout=0):
            partitions = sorted((root / "data" / "history").glob("round-*.dvc"))
            for path, key in ((root / "dvc.lock", "stages"), *((one, "outs") for one in partitions)):
                if path.exists() and not _is_whole(path, key):
                    told.append(_bring_back(path, root))
    except filelock.Timeout:
        return told
    return told


def _locks_for_nobody(path: Path) -> bool:
    """Whether DVC's list of who reads and writes what cannot be read, or names a process that is no DVC any more.

    DVC itself forgets those that are gone, but not a number that another process has now.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        holders = [*value.get("write", {}).values(), *(one for some in value.get("read", {}).values() for one in some)]
        numbers = {int(one["pid"]) for one in holders}
    except FileNotFoundError:
        return False
    except (ValueError, AttributeError, TypeError, KeyError):
        return True
    import psutil

    alive = [number for number in numbers if psutil.pid_exists(number)]
    return bool(alive) and not any(_is_dvc(number) for number in alive)


def _is_dvc(number: int) -> bool:
    import psutil

    try:
        process = psutil.Process(number)
        if not process.cmdline():
            time.sleep(0.1)  # one that is just starting has none yet
        return any("dvc" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # somebody else's, who may know


def _is_whole(path: Path, key: str) -> bool:
    """Whether a file of DVC is a mapping with this key, and every file that it lists has all that belongs to it."""
    import yaml

    try:
        value = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    if not isinstance(value, dict) or key not in value:
        return False
    stages: Any = value["stages"] if key == "stages" else {"": value}
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        return False
    files = [one for stage in stages.values() for kind in ("deps", "outs") for one in stage.get(kind) or ()]
    return all(isinstance(one, dict) and "path" in one and None not in one.values() for one in files)


def _bring_back(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    found = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=root, capture_output=True, check=False)
    if found.returncode:
        path.unlink()
        return f"{name} was half written by a killed process: removed, DVC makes it anew"
    from retroformer.files import write_text

    write_text(path, found.stdout.decode())
    return f"{name} was half written by a killed process: it is again as it was committed"


def mend_git(root: Path = Path(".")) -> list[str]:
    """Remove the lock files that a killed git left; a sentence for each. Nothing while a git works in this folder.

    Raises DataError where one belongs to a git that is at work.
    """
    told = []
    for path in _git_locks(root):
        while path.exists() and (young := STALE - (time.time() - path.stat().st_mtime)) > 0:
            time.sleep(min(young, LOOK))
        if not path.exists():
            continue
        if (working := _git_at_work(root)) is not None:
            raise DataError(f"{path} is held by git (process {working}); try again when it is done")
        path.unlink(missing_ok=True)
        told.append(f"{path} was left by a killed git: removed")
    return told


def _git_locks(root: Path) -> list[Path]:
    words = ["git", "rev-parse", "--git-dir", "--git-common-dir"]
    found = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False).stdout.splitlines()
    own, *common = [root / one for one in found] or [root / ".git"]
    shared = common[0] if common else own
    return [*own.glob("*.lock"), *shared.glob("packed-refs.lock"), *shared.glob("refs/**/*.lock")]


def _git_at_work(root: Path) -> int | None:
    import psutil

    here = root.resolve()
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] in ("git", "git.exe") and here in (Path(cwd := process.cwd()), *Path(cwd).parents):
                return process.pid
        except (psutil.Error, OSError):
            continue
    return None
