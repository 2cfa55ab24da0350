"""Does a closed round come out again? From git and the DVC remote alone, in a clone, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from retroformer.errors import DataError
from retroformer.files import read_json
from retroformer.rounds import dvc, git
from retroformer.stages import STAGES

TRAINED = Path("data/training/train.json")


def reproduce(
    number: int, root: Path = Path("."), clone: Path | None = None, tell: Callable[[str], None] = print
) -> None:
    """Run a closed round again in a fresh clone at its tag, with nothing but git and the DVC remote, and compare.

    Every stage runs, the clone has no cache of runs. `clone` is kept; without it a temporary folder is used, which
    stays only where something differs. What differs is named: outputs, and the type of machine and the versions that
    the round was made with.

    Raises DataError where something differs.
    """
    root = Path(root).resolve()
    tag = f"round/{number}"
    if not git(root, "tag", "--list", tag).strip():
        raise DataError(
            f"there is no tag {tag}: round {number} was not closed with --commit, nothing holds it as it ran"
        )
    temporary = clone is None
    where = Path(tempfile.mkdtemp(prefix=f"round-{number}-")) / "clone" if clone is None else clone.resolve()
    if where.exists():
        raise DataError(f"{where} exists; name a folder that is to be made")
    git(root, "clone", "--quiet", "--branch", tag, str(root), str(where))
    share_remote(root, where)
    try:
        dvc(where, "pull")
    except DataError as error:
        if temporary:
            shutil.rmtree(where.parent, ignore_errors=True)
        address = next(iter(dvc(root, "remote", "list").split()[1:]), "none")
        raise DataError(
            f"the data of round {number} cannot be had from the DVC remote ({address}), see `dvc remote list`; "
            f"`dvc push --all-tags` where it still is brings it there: {error}"
        ) from None
    before, made_on = outputs(where), read_json(where / TRAINED).get("machine", {})
    tell(f"{where}: round {number} as it was; running all of its stages again")
    run_again(where)
    after, made_here = outputs(where), read_json(where / TRAINED).get("machine", {})
    different = [path for path in before if after.get(path) != before[path]]
    if not different:
        challenger = before["data/challenger"]
        tell(f"round {number} is the same, bit for bit: {len(before)} outputs, data/challenger {challenger}")
        if temporary:
            shutil.rmtree(where.parent, ignore_errors=True)
        return
    raise DataError(
        f"round {number}: {', '.join(different)} differ; {because(made_on, made_here)}; both are in {where}"
    )


def share_remote(root: Path, clone: Path) -> None:
    """Let the clone find the remotes of today: a path is meant from where the project lies, settings may be local, and
    those of the tag's commit may be of an earlier remote (an address on S3 is nothing without its endpoint)."""
    settings = [line.partition("=")[::2] for line in dvc(root, "config", "--list").splitlines()]
    for name, value in settings:
        section, _, rest = name.partition(".")
        remote, _, option = rest.rpartition(".")
        if section == "remote" and option == "url":
            relative = "://" not in value and not Path(value).is_absolute()
            path = str((root / ".dvc" / value).resolve()) if relative else value
            dvc(clone, "remote", "add", "--local", "--force", "--quiet", remote, path)
    for name, value in settings:
        if name == "core.remote" or (name.startswith("remote.") and not name.endswith(".url")):
            dvc(clone, "config", "--local", "--quiet", name, value)


def outputs(root: Path) -> dict[str, str]:
    """Path -> hash of every output that dvc.lock records, in the order of the stages."""
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    return {out["path"]: out["md5"] for name in STAGES for out in lock["stages"][name].get("outs", ())}


def run_again(root: Path) -> None:
    """`dvc repro --force` in the clone, by its own code. Raises DataError where a stage fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = os.pathsep.join([str(root / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": code, "DVC_NO_ANALYTICS": "1"}
    words = [sys.executable, "-m", "dvc", "repro", "--force", "--quiet"]
    if code := subprocess.run(words, cwd=root, env=environment, check=False).returncode:
        raise DataError(f"`dvc repro --force` failed in {root} with exit code {code}; what it said is above")


def because(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What of the machine is not as it was."""
    changed = [
        f"{name} {then.get(name, 'unknown')} then, {now.get(name, 'unknown')} here"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if changed:
        return "it was made with " + ", ".join(changed)
    return (
        "type of machine and versions are the same: look at limits of time (collect.max_seconds), at memory "
        "(batch_bytes of train.json) and at what is not in git"
    )
