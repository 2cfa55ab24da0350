"""A small project on disk: git, DVC, this repository's own dvc.yaml and params.yaml, and a round made by hand."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from retroformer.files import write_json, write_text
from retroformer.storage import write_trajectories
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory, trajectory_id

HERE = Path(__file__).resolve().parents[1]
OUTS = ("rollouts", "validated", "batches", "challenger", "training", "evaluation", "decision")
TASKS = ("A", "B")
FIRST_PINS = {
    "closed_rounds": 0,
    "champion": {
        "policy": "scripted:babyai-bot?noise=0.7",
        "hash": "f0992e50646880dd18552e3ce6f3d72d0dfc77878517367f760c963132d2c1a3",
        "uri": "",
    },
    "train_from": None,
}
"""The lockfile before the first round."""


def hear_interrupts() -> None:
    """First in a new process: what was started in the background would ignore them, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(root: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def dvc(root: Path, *words: str) -> str:
    return run(root, sys.executable, "-m", "dvc", *words)


def make_project(root: Path) -> Path:
    """Git and DVC as in this repository, the files that stages depend on, no rounds."""
    shutil.copytree(HERE / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for stage in ("collect", "validate", "curate", "train", "evaluate", "decide"):
        (root / f"src/retroformer/stages/{stage}.py").touch()
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(HERE / name, root / name)
    (root / "data/history").mkdir(parents=True)
    for name in ("README.md", "tombstones.jsonl"):
        shutil.copy(HERE / "data/history" / name, root / "data/history")
    shutil.copytree(HERE / "data/logs", root / "data/logs")
    write_json(root / "data/champion.json", FIRST_PINS)
    run(root, "git", "init", "--quiet", "--initial-branch=main")
    run(root, "git", "config", "user.name", "a test")
    run(root, "git", "config", "user.email", "test@example.org")
    return root


def trajectory(task: str, seed: int, outcome: Outcome, split: str = "train") -> Trajectory:
    where = Task("babyai", "strict", task, "go to the ball", seed, split)
    reward = float(outcome is Outcome.SUCCESS)
    steps = (Step("a wall", "left", 0.0, ("left", "right")), Step("a ball", "right", reward, ("left", "right")))
    return Trajectory(trajectory_id(where, "p"), where, steps, StopReason.TERMINATED, outcome, "p", source="rollout")


def episodes() -> list[Trajectory]:
    """Task A: 3 of 4 succeed, B: 1 of 4; one truncated, which says nothing. Tasks weighted equally: 0.5."""
    outcomes = {"A": "ssss"[:3] + "f", "B": "sfff" + "t"}
    kinds = {"s": Outcome.SUCCESS, "f": Outcome.FAILURE, "t": Outcome.TRUNCATED}
    return [trajectory(task, seed, kinds[kind]) for task in TASKS for seed, kind in enumerate(outcomes[task])]


def line(policy: str, mission: str, success: float, task: str | None) -> dict[str, Any]:
    family = None if task is None else "strict"
    figures = {"n": 200, "success": success, "lower": success - 0.05, "upper": success + 0.05}
    way = {"policy": policy, "range": "gate", "mission": mission, "decoding": "sampled"}
    return way | {"family": family, "task": task} | figures


def make_round(data: Path, number: int, *, verdict: str = "promote", worse: bool = False, weights: str = "w") -> None:
    """What the six stages of a round leave behind."""
    for name in OUTS:
        shutil.rmtree(data / name, ignore_errors=True)
        (data / name).mkdir()
    for name in ("rollouts", "validated", "batches"):
        write_trajectories(data / name, episodes())
    write_json(data / "rollouts/collect.json", {"round": number, "episodes": 9, "success": 0.5})
    write_json(data / "validated/validate.json", {"read": 9, "accepted": 9, "quarantined": 0})
    write_text(data / "validated/quarantine/reasons.csv", "trajectory_id,reason,detail\n")
    write_text(data / "validated/docs/index.html", "<html></html>")
    write_text(data / "batches/catalogue.csv", "trajectory_id,quality,probability\nx,1,1\n")
    write_json(data / "batches/curate.json", {"read": 9, "sampled": 8})
    write_text(data / "challenger/model.txt", f"{weights} of round {number}\n")
    write_json(data / "training/train.json", {"updates": 2, "loss": 0.25})
    write_text(data / "training/curve.csv", "update,loss,note\n1,0.5,a\n2,0.25,\n")
    write_text(data / "training/schedule.csv", "update,tier\n1,1\n2,1\n")
    true = (("champion", "true", 0.5), ("challenger", "true", 0.8))
    shuffled = (("champion", "shuffled", 0.4), ("challenger", "shuffled", 0.2))
    summary = [line(*figures, task) for figures in true + shuffled for task in (None, *TASKS)]
    report = {"round": number, "confidence": 0.95, "champion": "p", "challenger": "q", "looks": [], "errors": 0}
    write_json(data / "evaluation/evaluation.json", report | {"summary": summary})
    write_text(data / "evaluation/episodes.csv", "policy,range\nchampion,gate\n")
    judged = {"round": number, "verdict": verdict, "reason": f"because {number}", "judged_worse": worse}
    difference = {"difference": 0.3, "lower": 0.2, "upper": 0.4, "n": 400, "per_task": []}
    behind = {"baseline": "imitation_of_successes", "difference": -0.1, "lower": -0.15, "upper": -0.05, "n": 800}
    write_json(data / "decision/verdict.json", judged | difference | {"behind": [behind]})
    write_text(data / "decision/report.html", "<html>report</html>")


def record_round(root: Path) -> None:
    """Tell DVC that what lies in data/ is what its stages made, without running them."""
    dvc(root, "commit", "--force", "--quiet")


STAND_IN = f"""
import json, os, shutil, signal, sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(HERE / "tests")!r})
from project import make_round
from retroformer.stages import STAGES
from retroformer.journal import record_failure, record_seconds

name = sys.argv[1]
trouble = Path("trouble-" + name)
if trouble.exists():
    kind = trouble.read_text()
    trouble.unlink()
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    record_failure(name, 2, kind)
    sys.exit(2)
if Path("endless").exists():
    Path("endless").write_text(str(os.getpid()))
    signal.pause()
number = json.loads(Path("data/champion.json").read_text())["closed_rounds"] + 1
made = Path(tempfile.mkdtemp())
make_round(made, number, verdict="promote" if number == 1 else "not_enough_evidence")
trained = ["challenger", "training"]
outs = dict(zip(STAGES, (["rollouts"], ["validated"], ["batches"], trained, ["evaluation"], ["decision"])))
for out in outs[name]:
    shutil.rmtree("data/" + out, ignore_errors=True)
    shutil.copytree(made / out, "data/" + out)
record_seconds(name, 1.5)
"""
"""A stage that copies what a round made by hand would have left, or fails as a file tells it to."""


def replace_stages(root: Path) -> None:
    """Let every stage of the project run the stand-in; dvc.yaml stays as it is otherwise."""
    write_text(root / "stand_in.py", STAND_IN)
    text = (root / "dvc.yaml").read_text()
    write_text(root / "dvc.yaml", text.replace("cmd: retroformer ", f"cmd: {sys.executable} stand_in.py "))
