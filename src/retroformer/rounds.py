"""Close a round: what `dvc repro` cannot do, because its result is the next round's input.

In this order, each step the same when repeated: check that the verdict is the open round's and current; register
the challenger; append the round to the history; write data/rounds.csv; move the registry's aliases; record a promotion
in data/promotions.jsonl; and, last, the pins. Until the pins have moved the round is open, and closing it again does
every step again. A promotion or rollback by hand (`promotion`) ends in the same three steps, under the same lock.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from retroformer.errors import DataError
from retroformer.files import hash_directory, read_json, replacing, write_json, write_text
from retroformer.pins import Pin, Pins, policy_hash, read_pins, verify, write_pins
from retroformer.recovery import mend_dvc, mend_git
from retroformer.stages import STAGES
from retroformer.tombstones import TOMBSTONES
from retroformer.tracking import aliases, mlflow_view, promotions, record
from retroformer.tracking.promotions import Promotion

PINS = Path("data/champion.json")
ROUNDS = Path("data/rounds.csv")
MOVED = (PINS, ROUNDS, promotions.JOURNAL, TOMBSTONES)
"""What changes in git when the pins move."""
LOGS = Path("data/logs")
CHALLENGER = Path("data/challenger")
COPIED = (
    "champion.json",
    "validated/episodes.parquet",
    "validated/steps.parquet",
    "validated/validate.json",
    "validated/quarantine",
    "rollouts/collect.json",
    "batches/catalogue.csv",
    "batches/curate.json",
    "challenger",
    "training",
    "evaluation",
    "decision",
)
"""Of data/, the pins as the round started from them. Data Docs are left out: they are the same facts again, and
data/validated of the commit has them."""
RAN = {"dvc.lock": "lock.yaml", "params.yaml": "params.yaml"}
"""What else of the project a round keeps, and its name there: every hash and value that the round was run with."""


def close(root: Path = Path("."), *, commit: bool = False) -> dict[str, Any]:
    """Close the round that `dvc repro` finished, and open the next one.

    Registers the challenger with its figures, appends the round to the history, moves the alias `champion` if it was
    promoted, and moves the pins, those last: killed anywhere and repeated, it ends in the same state. Training goes on
    from the challenger unless it was judged worse. Closing a closed round again changes nothing.

    Returns round.json. Raises DataError where the verdict is another round's, or is not that of what lies in data/.
    """
    root = Path(root)
    with exclusively(root):
        closed = closing(root)
        if commit:
            commit_round(root, closed["round"])
        return closed


@contextmanager
def exclusively(root: Path) -> Iterator[None]:
    """Alone in moving the pins of this project. Raises DataError where another command is about to."""
    (root / ".resume").mkdir(exist_ok=True)
    try:
        with filelock.FileLock(root / ".resume" / "close.lock", timeout=0):
            tell(mend_dvc(root))
            yield
    except filelock.Timeout:
        raise DataError("another closing, promotion or rollback is under way here; wait until it is done") from None


def tell(mended: list[str]) -> None:
    """Say what a kill had left."""
    for one in mended:
        print(f"retroformer: {one}", file=sys.stderr, flush=True)


def closing(root: Path) -> dict[str, Any]:
    """Everything but the commit."""
    pins = read_pins(root / PINS)
    verdict = read_json(root / "data/decision/verdict.json")
    if verdict.get("round") == pins.closed_rounds > 0:
        records = record.read_records(root, pins.closed_rounds)
        if mlflow_view.is_there(root):
            aliases.reconcile(root, pins, records)
        return records[-1]
    earlier = record.read_records(root, pins.closed_rounds)
    check(root, pins, verdict)

    challenger_hash = policy_hash(str(CHALLENGER), root)
    dataset_hash = hash_directory(root / "data/batches")
    facts = record.build(root, pins, challenger_hash=challenger_hash, dataset_hash=dataset_hash, model_version="")
    aliases.reconcile(root, pins, earlier)  # in a clone the earlier versions are made again, with their numbers
    with aliases.reachable():
        version = mlflow_view.publish(root, facts, head(root))
    closed = {**facts, "model_version": version}
    append(root, closed)
    records = [*earlier, closed]
    record.write_rounds(root / ROUNDS, records)
    after = next_pins(pins, verdict, challenger_hash, version)
    decided = None
    if verdict["verdict"] == "promote":
        evidence = promotions.evidence_of(closed)
        decided = promotions.decision("promote", pins, after, promotions.GATE, verdict["reason"], evidence)
    move(root, after, records, decided)
    return closed


def move(root: Path, after: Pins, records: Sequence[dict[str, Any]], decided: Promotion | None = None) -> None:
    """Set the registry's aliases to what the pins are to say, record who decided it, and move the pins.

    The pins last: they alone say what is in production. Killed before, the command that was killed is as if it had not
    been, but for aliases that `retroformer models list` tells of and that whatever moves the pins next sets right.
    """
    aliases.reconcile(root, after, records, decided)
    if decided is not None:
        promotions.append(root, decided)
    write_pins(root / PINS, after)


def check(root: Path, pins: Pins, verdict: dict[str, Any]) -> None:
    """Raise DataError unless the verdict is the open round's and was reached from what lies in data/ now."""
    if verdict.get("round") != pins.round:
        raise DataError(
            f"data/decision/verdict.json is of round {verdict.get('round')}, the open one is round {pins.round}; "
            "run `dvc repro` first"
        )
    verify(pins.champion, root)
    changed = changed_stages(root, {record.HISTORY})  # a closing that was killed has changed the history
    if changed:
        raise DataError(f"{', '.join(changed)}: something changed since the verdict was reached; run `dvc repro` first")


def changed_stages(root: Path, besides: set[Path]) -> list[str]:
    """The stages of which DVC reports another change than that of the paths `besides`."""
    left_out = {path.as_posix() for path in besides}
    status = json.loads(dvc(root, "status", "--json", *STAGES))
    return [
        stage
        for stage, changes in status.items()
        if any(isinstance(one, str) or any(set(paths) - left_out for paths in one.values()) for one in changes)
    ]


def append(root: Path, closed: dict[str, Any]) -> None:
    """Copy the round to the history and let DVC track it."""
    folder = record.folder_of(closed["round"])
    with replacing(root / folder) as new:
        for name in COPIED:
            source = root / "data" / name
            if not source.exists():
                raise DataError(f"data/{name}, a part of round {closed['round']}, is not here; run `dvc repro`")
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, new / name, ignore=shutil.ignore_patterns(".*"))
            else:
                shutil.copy(source, new / name)
        for name, kept in RAN.items():
            shutil.copy(root / name, new / kept)
        write_json(new / "round.json", closed)
    dvc(root, "add", "--quiet", str(folder))


def next_pins(pins: Pins, verdict: dict[str, Any], challenger_hash: str, version: str) -> Pins:
    """The lockfile of the next round."""
    policy = (record.folder_of(pins.round) / CHALLENGER.name).as_posix()
    challenger = Pin(policy, challenger_hash, mlflow_view.uri(version))
    promoted = verdict["verdict"] == "promote"
    return Pins(
        closed_rounds=pins.round,
        champion=challenger if promoted else pins.champion,
        train_from=pins.train_from if verdict["judged_worse"] and not promoted else challenger,
    )


def commit_round(root: Path, number: int) -> None:
    """Commit the round, tag it `round/N`, commit its closing, and push the data where a DVC remote is set.

    The tag stands on the round as it was run, before the pins moved: `dvc repro` there reproduces the round. Rounds
    that were closed before without a commit are a part of what it started from.
    """
    logs = [path for path in (root / LOGS).rglob("*") if path.suffix == ".dvc" or path.name == ".gitignore"]
    ran = ["dvc.lock", "dvc.yaml", "params.yaml", *(str(path.relative_to(root)) for path in sorted(logs))]
    crossed = [*map(str, MOVED), *(f"{record.folder_of(earlier)}.dvc" for earlier in range(1, number))]
    if not git(root, "tag", "--list", f"round/{number}").strip():
        with as_started(root, number):
            commit(root, f"Round {number}", [*ran, *(path for path in crossed if (root / path).is_file())])
        git(root, "tag", f"round/{number}")
    closed = [*ran, *crossed, f"{record.folder_of(number)}.dvc"]
    commit(root, f"Close round {number}", [path for path in closed if (root / path).is_file()])
    if "core.remote=" in dvc(root, "config", "--list"):
        dvc(root, "push", "--quiet")


@contextmanager
def as_started(root: Path, number: int) -> Iterator[None]:
    """For a moment, the pins and data/rounds.csv as the closed round started from them.

    Killed here, the round is open again, and closing it again ends in the same state.
    """
    moved, table = read_pins(root / PINS), (root / ROUNDS).read_text(encoding="utf-8")
    try:
        write_pins(root / PINS, read_pins(root / record.folder_of(number) / PINS.name))
        if number > 1:
            record.write_rounds(root / ROUNDS, record.read_records(root, number - 1))
        else:
            (root / ROUNDS).unlink()
        yield
    finally:
        write_text(root / ROUNDS, table)
        write_pins(root / PINS, moved)


def commit(root: Path, message: str, paths: list[str]) -> None:
    """Commit these files as they are, and no other that happens to be staged; nothing if they did not change."""
    tell(mend_git(root))
    git(root, "add", "--", *paths)
    if git(root, "status", "--porcelain", "--", *paths).strip():
        git(root, "commit", "--quiet", "--message", message, "--", *paths)


def head(root: Path) -> dict[str, str]:
    """Tags for a version: the commit that its round is closed on, and whether code or values differ from it.

    Not in round.json, which does not depend on when it is written. Empty where there is no commit.
    """
    try:
        commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
        # What a round itself writes and commits.
        written = (":(exclude)data", ":(exclude)dvc.lock")
        changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *written).strip()
    except DataError:
        return {}
    return {"git_commit": commit, "git_dirty": str(bool(changed)).lower()}


def dvc(root: Path, *arguments: str) -> str:
    """What a DVC command prints. Raises DataError with its last words if it fails."""
    return command(root, [sys.executable, "-m", "dvc", *arguments])


def git(root: Path, *arguments: str) -> str:
    """What a git command prints. Raises DataError with its last words if it fails."""
    return command(root, ["git", *arguments])


def command(root: Path, words: list[str]) -> str:
    """Run a command in the project's root."""
    done = subprocess.run(
        words, cwd=root, capture_output=True, text=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, check=False
    )
    if done.returncode:
        told = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        shown = " ".join(words[2:] if words[1:2] == ["-m"] else words)
        raise DataError(f"`{shown}` failed: {told[-1].strip() if told else f'exit code {done.returncode}'}")
    return done.stdout
