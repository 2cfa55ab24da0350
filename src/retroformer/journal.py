"""What a run leaves beside the pipeline, in ``.resume/``: the seconds of each stage, why the last command failed, and
who is at work.

A stage has two: its own, the call of its function, and those that passed around it in the flow's task: starting DVC and
the interpreter, hashing inputs, storing outputs. What a round took beyond both is Prefect's start and the closing.

Neither may be an output of a stage: two runs of the same inputs would differ. DVC reports every failed stage with the
same exit code, so the flow reads here whether a retry can help.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from retroformer.errors import Busy, DataError

SECONDS = Path(".resume/seconds.json")
FAILURE = Path(".resume/failure.json")
LOCK = Path(".resume/run.lock")
RUN = Path(".resume/run.json")


def record_seconds(stage: str, seconds: float, root: Path = Path("."), *, around: bool = False) -> None:
    """Remember how long a stage took by itself, or all that passed `around` it; other rounds' are forgotten."""
    from retroformer.files import write_json
    from retroformer.pins import read_pins

    try:
        number = read_pins(root / "data" / "champion.json").round
    except DataError:
        return  # a stage run by hand away from a project: nobody will ask
    found = {"seconds": read_seconds(number, root), "around": read_seconds(number, root, around=True)}
    if around:
        own = found["seconds"].get(stage, 0.0)
        # Longer than what was around it: then it did not run now, DVC found its outputs.
        found["around"][stage] = round(seconds - own if own <= seconds else seconds, 2)
    else:
        found["seconds"][stage] = round(seconds, 2)
    write_json(root / SECONDS, {"round": number, **found})


def read_seconds(number: int, root: Path = Path("."), *, around: bool = False) -> dict[str, float]:
    """Stage -> wall seconds in that round, by itself or `around` it; by itself, what came from the cache is missing."""
    value = read(root / SECONDS)
    return value.get("around" if around else "seconds", {}) if value.get("round") == number else {}


def record_failure(command: str, code: int, message: str, root: Path = Path(".")) -> None:
    """Remember why a command failed. Away from a project, and where nothing can be written, it is left out."""
    from retroformer.files import write_json

    if not (root / "params.yaml").is_file():
        return
    try:
        write_json(root / FAILURE, {"command": command, "code": code, "message": message})
    except OSError:
        return


def take_failure(root: Path = Path(".")) -> dict[str, Any]:
    """The last failure (command, code, message), and forget it; empty if there was none."""
    value = read(root / FAILURE)
    (root / FAILURE).unlink(missing_ok=True)
    return value


def lock_runs(root: Path = Path(".")) -> filelock.BaseFileLock:
    """The lock that one run of rounds at a time holds; the system takes it from a process that is gone.

    Raises Busy, which says who is at work here, where another run is.
    """
    (root / LOCK).parent.mkdir(exist_ok=True)
    lock = filelock.FileLock(root / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        other = read(root / RUN)
        who = ", ".join(f"{key} {other[key]}" for key in ("run", "pid", "since") if key in other) or "just begun"
        raise Busy(f"another run of rounds is under way here ({who}); this one did nothing") from None
    return lock


@contextmanager
def alone(run: str, id: str = "", root: Path = Path(".")) -> Iterator[dict[str, Any]]:
    """Keep every other run of rounds away from this project while the block lasts.

    `run` and `id`, where it has one, say who this is. Yields the same of an earlier run that ended without a word
    (killed, a power cut), empty where none did. Raises Busy where another run is under way.
    """
    from retroformer.files import write_json

    lock = lock_runs(root)
    try:
        left = read(root / RUN)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(root / RUN, {"run": run, "id": id, "pid": os.getpid(), "since": since})
        yield left
    finally:
        (root / RUN).unlink(missing_ok=True)
        lock.release()


def read(path: Path) -> dict[str, Any]:
    """A file that may be missing or half a file: it informs, and must not stop anything."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
