"""The whole pipeline on tiny parameters, with this repository's own dvc.yaml and stages, in a clone of its own."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from project import FIRST_PINS, HERE, dvc, run
from retroformer.files import read_json, write_json
from retroformer.pins import policy_hash, read_pins, verify
from retroformer.policies.devices import kind_of_machine

TINY = {
    "episodes": 160,
    "environments": 16,
    "workers": 1,
    "updates": 20,
    "checkpoints": 2,
    "first_look": 32,
    "looks": 1,
    "final": 16,
    "transfer": 16,
}


NAMES = ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_KEY_OF_MINE")
SECRETS = {name: f"marked-{name}-93b1" for name in NAMES}


def copy_of_the_repository(root: Path) -> Path:
    """The tracked files as they are now, under a git of their own."""
    for name in run(HERE, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (HERE / name).is_file() and not name.startswith("data/history/round-") and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / name, root / name)
    write_json(root / "data/champion.json", FIRST_PINS)
    for name in ("rounds.csv", "promotions.jsonl"):
        (root / "data" / name).unlink(missing_ok=True)
    text = (root / "params.yaml").read_text()
    for key, value in TINY.items():
        text, found = re.subn(rf"(?m)^(  {key}:).*", rf"\1 {value}", text)
        assert found, f"params.yaml has no {key}"
    (root / "params.yaml").write_text(text)
    run(root, "git", "init", "--quiet", "--initial-branch=main")
    run(root, "git", "config", "user.name", "a test")
    run(root, "git", "config", "user.email", "test@example.org")
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "start")
    return root


def execute(root: Path, *words: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        **SECRETS,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "PREFECT_HOME": str(root / ".prefect"),
    }
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_two_rounds_then_a_second_clone_that_reproduces_them(tmp_path: Path) -> None:
    root = copy_of_the_repository(tmp_path / "first")
    told = execute(root, sys.executable, "flows/improve.py", "--rounds", "2", "--commit")
    assert "all levels" in told
    assert "Where to look" in told
    with (root / "data/rounds.csv").open(newline="") as file:
        assert [row["round"] for row in csv.DictReader(file)] == ["1", "2"]
    assert run(root, "git", "status", "--porcelain") == ""

    clone = tmp_path / "second"
    run(tmp_path, "git", "clone", "--quiet", str(root), str(clone))
    dvc(clone, "remote", "modify", "--local", "local", "url", str(root / ".dvc-remote"))
    dvc(clone, "pull", "--quiet")
    verify(read_pins(clone / "data/champion.json").champion, clone)

    earlier = tmp_path / "at_the_tag"
    run(tmp_path, "git", "clone", "--quiet", "--branch=round/2", str(root), str(earlier))
    dvc(earlier, "remote", "modify", "--local", "local", "url", str(root / ".dvc-remote"))
    dvc(earlier, "pull", "--quiet")
    assert "Data and pipelines are up to date" in execute(earlier, "dvc", "repro")
    shutil.rmtree(earlier / "data/challenger")
    assert "Stage 'train' is cached - skipping run, checking out outputs" in execute(earlier, "dvc", "repro")
    assert run(earlier, "git", "status", "--porcelain") == ""
    assert "data/decision/verdict.json" in execute(earlier, "dvc", "metrics", "diff", "round/1", "round/2")
    assert "index.html" in execute(earlier, "dvc", "plots", "show")

    # Nothing but git and the remote, no cache of runs: every stage runs again, and each byte is the same.
    for number in (1, 2):
        again, record = tmp_path / f"again-{number}", f"data/history/round-{number:04d}/round.json"
        told = execute(root, "retroformer", "reproduce", str(number), "--clone", str(again))
        assert f"round {number} is the same, bit for bit: 7 outputs" in told
        assert (again / "dvc.lock").read_text() == run(root, "git", "show", f"round/{number}:dvc.lock")
        assert policy_hash("data/challenger", again) == read_json(root / record)["challenger_hash"]
        assert read_json(again / "data/training/train.json")["machine"] == kind_of_machine()

    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in written if re.search(rb"marked-[A-Z]", path.read_bytes())], (
        "a secret of the environment"
    )
