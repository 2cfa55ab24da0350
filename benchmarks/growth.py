"""curate and train on a given number of synthetic trajectories: time, and memory above what imports take.

`python -m benchmarks.growth STEP FOLDER N UPDATES` does one of write, curate and train and prints what it took as JSON:
each in a process of its own, or memory that one has freed would serve the next unseen.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from studies.start import first_pins

import retroformer.training.trainer  # noqa: F401 (imported before the clock starts)
from benchmarks.measure import status
from retroformer.config import PolicyConfig, load_config
from retroformer.files import write_json
from retroformer.policies.checkpoints import build
from retroformer.stages.curate import curate
from retroformer.stages.train import train
from retroformer.storage import write_trajectories
from retroformer.types import Outcome, Step, StopReason, Task, Trajectory, trajectory_id

WORDS = tuple(f"w{place}" for place in range(200))
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle")
STEPS = (4, 16)
OBSERVATION = (10, 30)
"""Words of an observation, in the manner of the default tasks."""
CHECKPOINT_SHARE = 0.1


def synthetic(count: int) -> Iterator[Trajectory]:
    """Trajectories in the shapes of the default tasks, of random words."""
    chance = random.Random(0)
    for number in range(count):
        split = "checkpoint" if number < CHECKPOINT_SHARE * count else "history"
        task = Task("synthetic", "synthetic", f"T{number % 8}", "go to " + chance.choice(WORDS), number, split)
        solved = chance.random() < 0.5
        length = chance.randint(*STEPS)
        steps = []
        for t in range(length):
            observation = " ".join(chance.choices(WORDS, k=chance.randint(*OBSERVATION)))
            admissible = tuple(chance.sample(ACTIONS, 3))
            reward = float(solved and t + 1 == length)
            steps.append(Step(observation, chance.choice(admissible), reward, admissible, None, -1.0986))
        outcome = Outcome.SUCCESS if solved else Outcome.FAILURE
        id = trajectory_id(task, "random")
        yield Trajectory(id, task, tuple(steps), StopReason.TERMINATED, outcome, "random", source="rollout")


def watched(run: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds, and the peak resident memory above what the process holds now, in MB."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    before, started, spent = status("VmRSS"), time.monotonic(), time.process_time()
    run()
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - spent,
        "peak_mb": max(0, status("VmHWM") - before) / 1e6,
    }


def warm(policy: PolicyConfig) -> None:
    """Import and touch what training needs, so that neither counts as the history's."""
    model = build(policy, WORDS, seed=0).model
    model(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
    torch.optim.AdamW(model.parameters(), fused=True).step()


def write(folder: Path, count: int) -> None:
    """What the stages will find."""
    for name in ("history", "validated"):
        (folder / name).mkdir(parents=True)
    write_trajectories(folder / "validated", synthetic(count))
    write_json(folder / "champion.json", first_pins())


def rate(folder: Path) -> None:
    """The stage curate."""
    paths = {"champion": folder / "champion.json", "validated": folder / "validated", "history": folder / "history"}
    curate(load_config().curate, **paths, out=folder / "batches")


def learn(folder: Path, updates: int) -> None:
    """The stage train, of the default model, `updates` long."""
    small = {"train.updates": updates, "train.warmup": 1, "train.checkpoints": 1, "train.baselines": []}
    config = load_config(overrides=small)
    paths = {"batches": folder / "batches", "champion": folder / "champion.json"}
    out = {"out": folder / "challenger", "training": folder / "training"}
    train(config.train, config.policy, config.seed, **paths, **out)


def measure(step: str, folder: Path, count: int, updates: int) -> dict[str, float]:
    """One step and what it took."""
    torch.set_num_threads(1)
    warm(load_config().policy)
    steps = {
        "write": lambda: write(folder, count),
        "curate": lambda: rate(folder),
        "train": lambda: learn(folder, updates),
    }
    return watched(steps[step])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
