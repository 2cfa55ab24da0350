"""The gate between trained policies: no where no is right, on a challenger that learned from wrong rewards or tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from project import FIRST_PINS
from retroformer.config import Config, load_config
from retroformer.files import read_json, write_json
from retroformer.pins import Pin, Pins, policy_hash, write_pins
from retroformer.rollouts.engine import Conditions, Episode
from retroformer.rollouts.workers import Player, play_all
from retroformer.stages.collect import collect
from retroformer.stages.curate import curate
from retroformer.stages.decide import decide
from retroformer.stages.evaluate import evaluate
from retroformer.stages.train import train
from retroformer.storage import read_trajectories, write_trajectories
from retroformer.types import Outcome, Trajectory

pytestmark = pytest.mark.long
SMALL = {
    "tasks.train": ["babyai:P5N2"],
    "tasks.held_out": [],
    "collect.episodes": 2000,
    "collect.workers": 1,
    "train.updates": 700,
    "train.baselines": [],
    "train.checkpoints": 1,
    "evaluate.first_look": 256,
    "evaluate.looks": 1,
    "evaluate.final": 16,
    # The control has tests of its own; here the difference must decide.
    "decide.max_swapped": 1.0,
}


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(overrides=SMALL)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    """A project whose champion is a policy that learned from the true rewards."""
    root = tmp_path_factory.mktemp("gate")
    write_json(root / "data/champion.json", FIRST_PINS)
    collect(config.collect, config.tasks, 0, champion=root / "data/champion.json", out=root / "data/rollouts")
    learn(root, config, "champion", read_trajectories(root / "data/rollouts"))
    champion = Pin("champion", policy_hash("champion", root))
    write_pins(root / "data/reigning.json", Pins(1, champion, None))
    return root


def learn(root: Path, config: Config, name: str, trajectories: list[Trajectory]) -> None:
    """Train a policy from nothing on these trajectories."""
    (root / f"work-{name}").mkdir()
    write_trajectories(root / f"work-{name}", trajectories)
    pins = root / "data/champion.json"
    curate(config.curate, champion=pins, validated=root / f"work-{name}", out=root / f"batches-{name}")
    train(
        config.train,
        config.policy,
        0,
        batches=root / f"batches-{name}",
        champion=pins,
        out=root / name,
        training=root / f"training-{name}",
    )


def verdict(root: Path, config: Config, name: str) -> dict:
    """What the gate says of a challenger against the reigning champion."""
    out = root / f"evaluation-{name}"
    pins = root / "data/reigning.json"
    evaluate(
        config.evaluate, config.tasks, config.collect, config.decide, 0, champion=pins, challenger=root / name, out=out
    )
    decide(config.decide, config.evaluate, evaluation=out, out=root / f"decision-{name}")
    return read_json(root / f"decision-{name}/verdict.json")


def test_the_champion_of_this_file_learned_something(root: Path, config: Config) -> None:
    write_pins(root / "data/reigning.json", Pins(0, Pin(**FIRST_PINS["champion"]), None))
    first = verdict(root, config, "champion")
    champion = Pin("champion", policy_hash("champion", root))
    write_pins(root / "data/reigning.json", Pins(1, champion, None))
    assert first["verdict"] == "promote", first["reason"]
    assert first["difference"] > 0.1


def test_keeps_the_champion_against_shuffled_rewards(root: Path, config: Config) -> None:
    """Outcomes permuted over the trajectories: nothing about the task is left in them."""
    real = read_trajectories(root / "data/rollouts")
    order = np.random.default_rng(0).permutation(len(real))
    shuffled = []
    for one, other in zip(real, (real[place] for place in order), strict=True):
        last = replace(one.steps[-1], reward=float(other.outcome is Outcome.SUCCESS))
        shuffled.append(replace(one, steps=(*one.steps[:-1], last), outcome=other.outcome))
    learn(root, config, "shuffled", shuffled)
    found = verdict(root, config, "shuffled")
    assert found["verdict"] == "keep"
    assert found["judged_worse"]
    assert found["upper"] < 0


def test_keeps_the_champion_against_tasks_that_cannot_be_learned(root: Path, config: Config) -> None:
    """Each episode was told the mission of another: success has nothing to do with what was asked."""
    plan = [Episode("babyai:P5N2", 5_000 + place, "history", "shuffled") for place in range(2000)]
    conditions = Conditions(0, config.tasks.text, config.tasks.actions, 64)
    played = play_all([(Player("scripted:babyai-bot?noise=0.7"), plan)], conditions, workers=1)
    learn(root, config, "unlearnable", [one.trajectory for _, part in played for one in part])
    found = verdict(root, config, "unlearnable")
    assert found["verdict"] == "keep"
    assert found["judged_worse"]
