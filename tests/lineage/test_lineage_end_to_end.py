"""From a log to a registered version and back, and a customer forgotten, by the commands that a user types."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from project import make_project, run
from retroformer.storage import read_trajectories
from retroformer.tombstones import forgotten_ids
from tiny_logs import REFUND, write_lines

VALUES = {
    "collect": {"source": "import", "workers": 1},
    "policy": {"width": 16, "layers": 1, "heads": 2},
    "train": {"objective": "imitation_of_successes", "baselines": [], "updates": 8, "batch": 4, "warmup": 2},
}
CUSTOMER = "zyzzyva"
LOG = "data/logs/desk.jsonl"


def retroformer(root: Path, *words: str) -> str:
    return run(root, sys.executable, "-m", "retroformer", *words)


@pytest.mark.slow
def test_a_customer_is_traced_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_project(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    params = yaml.safe_load((root / "params.yaml").read_text())
    for section, values in VALUES.items():
        params[section] |= values
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    runs = []
    for line in range(1, 61):
        messages = [*REFUND["messages"]]
        who = CUSTOMER if line % 10 == 4 else f"customer {line}"
        messages[1] = {"role": "user", "content": f"Refund order {line} of {who}."}
        runs.append(
            {**REFUND, "id": f"r{line}", "task_id": f"i{line}", "reward": float(line % 3 > 0), "messages": messages}
        )
    write_lines(root / LOG, runs)
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "start")
    run(root, sys.executable, "-m", "dvc", "repro", "--quiet")
    retroformer(root, "close")

    told = json.loads(retroformer(root, "lineage", "1", "--json"))
    assert told["git"] == {
        "commit": run(root, "git", "rev-parse", "HEAD").strip(),
        "tag": None,
        "dirty": False,
        "in_git_since": None,
    }
    lines = (root / LOG).read_text().splitlines()
    held = {one.id: one for one in read_trajectories(root / "data/history/round-0001/validated")}
    listed = [one for role in told["trajectories"].values() for one in role]
    assert {one["id"] for one in listed} == held.keys()
    for one in listed:
        file, _, number = one["source"].rpartition(":")
        assert file == LOG
        said = json.loads(lines[int(number) - 1])["messages"][1]["content"]
        assert held[one["id"]].steps[0].observation == said
    assert len(told["trajectories"]["judged"]) > 0, "of split evaluation, asked by off-policy evaluation"

    words = ("--yes", "--reason", "request 12", "--logs", "--commit", "--json")
    done = json.loads(retroformer(root, "forget", "--where", f"text~{CUSTOMER}", *words))
    assert done["rerun"][1:] == ["dvc repro", "retroformer close"]
    run(root, "sh", "-c", done["rerun"][0])  # training must not go on from what had learned from it
    gone = forgotten_ids(root / "data/history/tombstones.jsonl")
    assert len(gone) == 6
    run(root, sys.executable, "-m", "dvc", "repro", "--quiet")
    for folder in ("data/rollouts", "data/validated", "data/batches", "data/history/round-0001/validated"):
        assert gone.isdisjoint(one.id for one in read_trajectories(root / folder)), folder
    # What is left is told: the vocabulary of the version that had been made from scratch.
    found = subprocess.run(
        ["grep", "-rl", CUSTOMER, "data", "mlruns", ".dvc"], cwd=root, capture_output=True, text=True
    )
    first = r"data/history/round-0001/challenger/|mlruns/artifacts/|\.dvc/cache/"
    assert all(re.match(first, path) for path in found.stdout.split()), found.stdout
    retroformer(root, "close")
    assert "forgotten on" in retroformer(root, "lineage", "1")
    assert "forgotten" not in retroformer(root, "lineage", "2").partition("inherited from")[0]
