"""A real round through Prefect, DVC and MLflow: what its wall time is spent on, and how two stages grow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from studies.start import first_pins

from benchmarks.breakdown import BIN, WORK, breakdown, orchestration, read_samples
from benchmarks.measure import Report
from retroformer.files import read_json, write_json, write_text

HERE = Path(__file__).resolve().parents[1]
COPIED = ("src", "flows", "data", ".dvc", "mlruns", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore")
ROUNDS = 3
"""Of the default main job, `make run`."""
MICRO = {
    "tasks": {"train": ["babyai:P5N2", "babyai:GoToLocalS5N2"], "held_out": ["babyai:P6N3"]},
    "policy": {"width": 16, "layers": 1, "heads": 2},
    "collect": {"episodes": 48, "checkpoint_share": 0.25, "environments": 8, "workers": 1},
    "train": {"updates": 12, "batch": 4, "warmup": 2, "checkpoints": 2, "baselines": []},
    "evaluate": {"first_look": 4, "looks": 2, "final": 4, "transfer": 2},
}
"""Parameters of `--quick`."""
SIZES, UPDATES = (1_000, 10_000, 100_000), 100
NOTES = [
    "The round: `python flows/improve.py` in a fresh copy of the project with a git repository, DVC cache, MLflow "
    "store and Prefect home of its own, so the first round pays for making them, as a user's does. Once: it takes "
    "minutes, so there are no repetitions. Wall time.",
    "Every Python process of it carries a thread that looks at its main thread's stack 100 times a second and books "
    "the wall time since the last look. model: inside torch, transformers, the objectives and the language model. "
    "environments: inside the environments, minigrid and the scripted agents. data: what is left of the stages' "
    "functions, reading, checking, rating, laying out, sampling and reporting. While a stage waits for its worker "
    "processes, its time is split as theirs was.",
    "orchestration_share: all that is not model, environments or data, over the command's wall time: imports, "
    "Prefect, DVC, Great Expectations (contract), MLflow (tracking), closing, the command line, workers that start or "
    "have nothing to do, interpreters that start and end.",
    "Growth: curate and train, the latter a few updates of the default model, on synthetic trajectories of 4 to 16 "
    "steps in Parquet, each in a process of its own in which the model has run once; memory is the peak resident size "
    "above what the process held then, in MB (10^6 bytes).",
]


def copy_project(root: Path, params: dict[str, Any] | None = None) -> None:
    """This working tree without its rounds as a repository of its own; `params` replace those of params.yaml."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *COPIED]
    listed = subprocess.run(words, cwd=HERE, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
    for name in map(Path, listed):
        if (HERE / name).is_file() and name.suffix != ".dvc" and name.name not in ("rounds.csv", "promotions.jsonl"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / name, root / name)
    write_json(root / "data/champion.json", first_pins())
    if params is not None:
        values = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
        for section, changed in params.items():
            values[section] |= changed
        write_text(root / "params.yaml", yaml.safe_dump(values, sort_keys=False))
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    for words in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "start"]):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


def run_rounds(root: Path, samples: Path, rounds: int) -> tuple[float, float]:
    """The main job with the sampler in its processes; when it started and ended, in seconds since the epoch."""
    samples.mkdir()
    path = os.pathsep.join([str(HERE / "benchmarks/sampler"), str(root / "src")])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "RETROFORMER_SAMPLES": str(samples),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    started = time.time()
    words = [sys.executable, "flows/improve.py", "--rounds", str(rounds)]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the measured round failed:\n{done.stdout}{done.stderr}")
    return started, time.time()


def grow(folder: Path, sizes: Sequence[int], updates: int) -> list[dict[str, Any]]:
    """Time and memory of curate and train at each size."""
    cases = []
    for size in sizes:
        for step in ("write", "curate", "train"):
            own = [step, str(folder / str(size)), str(size), str(updates)]
            words = [sys.executable, "-m", "benchmarks.growth", *own]
            done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
            if step != "write":
                case = {"case": f"growth of {step}", "variant": f"{size} trajectories"}
                cases.append(case | json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(folder / str(size))
    return cases


def measure(quick: bool) -> Report:
    """The default job, then growth; with `quick` one round of a micro configuration alone."""
    report = Report("end-to-end", reps=1, notes=list(NOTES))
    rounds = 1 if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        root, samples = Path(name) / "project", Path(name) / "samples"
        copy_project(root, MICRO if quick else None)
        started, ended = run_rounds(root, samples, rounds)
        seconds = breakdown(read_samples(samples), started, ended)
        for (stage, doing), spent in sorted(seconds.items()):
            kind = "work" if doing in WORK else "orchestration"
            report.cases.append(
                {"case": stage or "around the stages", "variant": doing, "seconds": spent, "kind": kind}
            )
        for stage, own in journal(root).items():
            report.cases.append({"case": stage, "variant": "the journal's seconds", "seconds": own, "kind": "check"})
        config = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
        report.model = {**config["policy"], "rounds": rounds, "wall_seconds": ended - started, "bin": BIN}
        # A round of seconds is nearly all start-up: its share must not pass for the default job's.
        report.ratios["orchestration_share" + ("_micro" if quick else "")] = orchestration(seconds)
        if not quick:
            report.cases += grow(Path(name), SIZES, UPDATES)
    if quick:
        report.skipped.append("the default job: --quick plays one round of a micro configuration, nearly all start-up")
        report.skipped.append("growth: left out by --quick")
    return report


def journal(root: Path) -> dict[str, float]:
    """The stages' own seconds as they wrote them down, added over the closed rounds."""
    total: dict[str, float] = {}
    for path in sorted((root / "data/history").glob("round-*/round.json")):
        for stage, seconds in read_json(path)["seconds"].items():
            if isinstance(seconds, int | float) and re.fullmatch(r"[a-z]+", stage):
                total[stage] = total.get(stage, 0.0) + seconds
    return total
