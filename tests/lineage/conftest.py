"""Two closed rounds: the first read from logs, the second played by what the first promoted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders import make_trajectory
from project import make_project, make_round, record_round, run
from retroformer import rounds
from retroformer.config import CollectConfig, load_config
from retroformer.files import read_json, write_json, write_text
from retroformer.pins import read_pins
from retroformer.stages.collect import import_into
from retroformer.stages.curate import curate
from retroformer.storage import read_trajectories, write_trajectories
from retroformer.tracking import aliases, mlflow_view
from retroformer.types import Trajectory
from tiny_logs import REFUND, write_lines

LOG = "data/logs/desk.jsonl"
ACME = (3, 7)
"""Lines of the log where a customer of this name speaks."""


def records() -> list[dict[str, Any]]:
    """Twelve runs, each of a task instance of its own, every third a failure; ACME speaks in two of them."""
    found = []
    for line in range(1, 13):
        customer = "ACME" if line in ACME else f"customer {line}"
        said = [*REFUND["messages"]]
        said[1] = {"role": "user", "content": f"Refund order {line} of {customer}."}
        found.append(
            {**REFUND, "id": f"r{line}", "reward": float(line % 3 > 0), "messages": said, "task_id": f"i{line}"}
        )
    return found


def make_data(root: Path, number: int, trajectories: list[Trajectory], quarantined: list[Trajectory]) -> None:
    """The folders of a round up to its batches, these by curate itself."""
    data = root / "data"
    for folder, own in (("validated", trajectories), ("validated/quarantine", quarantined)):
        write_trajectories(data / folder, own)
    reasons = "".join(f"{one.id},too_long,more than 64 steps\n" for one in quarantined)
    write_text(data / "validated/quarantine/reasons.csv", "trajectory_id,reason,detail\n" + reasons)
    paths = {"champion": data / "champion.json", "validated": data / "validated", "history": data / "history"}
    curate(load_config(root / "params.yaml").curate, **paths, out=data / "batches")


def import_config(root: Path) -> CollectConfig:
    return load_config(root / "params.yaml", {"collect.source": "import"}).collect


@pytest.fixture(scope="session")
def told_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; copy it. The registry is left out: versions get the numbers of their rounds."""
    root = make_project(tmp_path_factory.mktemp("told"))
    with (root / ".git/info/exclude").open("a") as file:
        file.write("__pycache__/\n")
    text = (root / "params.yaml").read_text()
    write_text(root / "params.yaml", text.replace("source: play", "source: import", 1))
    write_lines(root / LOG, records())
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_view, "publish", lambda root, facts, about=None: str(facts["round"]))
        patch.setattr(aliases, "reconcile", lambda *arguments: {})

        make_round(root / "data", 1)
        patch.chdir(root)
        import_into(root / "data/rollouts", Path("data/logs"), import_config(root), 1, frozenset())
        logged = read_trajectories(root / "data/rollouts")
        make_data(root, 1, logged, [replace(logged[0], id="quarantined-one")])
        record_round(root)
        rounds.close(root, commit=True)

        make_round(root / "data", 2, verdict="not_enough_evidence", weights="v")
        player = read_pins(root / "data/champion.json").champion.version
        played = [make_trajectory((0.0, float(seed % 2)), seed=seed, split="train", policy=player) for seed in range(6)]
        write_trajectories(root / "data/rollouts", played)
        make_data(root, 2, played, [])
        report = {**read_json(root / "data/training/train.json"), "start": "data/history/round-0001/challenger"}
        write_json(root / "data/training/train.json", report)
        record_round(root)
        patch.setattr(rounds, "check", lambda *arguments: None)  # DVC would find what the line before told it
        rounds.close(root)
    return root


@pytest.fixture
def told(told_rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `told_rounds`, and the working folder."""
    root = Path(shutil.copytree(told_rounds, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    return root
