"""A tiny round on real levels, stage by stage, as `dvc repro` would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retroformer.config import Config, load_config
from retroformer.pins import Pin, Pins, policy_hash, write_pins
from retroformer.stages.collect import collect
from retroformer.stages.curate import curate
from retroformer.stages.evaluate import evaluate
from retroformer.stages.train import train
from retroformer.stages.validate import validate

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
BOT = "scripted:babyai-bot?noise=0.5"
TINY = {
    "tasks.train": ["babyai:P5N2", "babyai:GoToLocalS5N2"],
    "tasks.held_out": ["babyai:P6N3"],
    "policy.width": 16,
    "policy.layers": 1,
    "policy.heads": 2,
    "collect.episodes": 24,
    "collect.checkpoint_share": 0.25,
    "collect.environments": 8,
    "collect.workers": 1,
    "train.baselines": [],
    "train.updates": 12,
    "train.batch": 4,
    "train.warmup": 2,
    "train.checkpoints": 2,
    "evaluate.first_look": 4,
    "evaluate.looks": 2,
    "evaluate.final": 4,
    "evaluate.transfer": 2,
}


def tiny_config(**overrides: Any) -> Config:
    """The project's parameters, made tiny; `overrides` as section__key."""
    return load_config(PARAMS, {**TINY, **{key.replace("__", "."): value for key, value in overrides.items()}})


def pin(root: Path, policy: str = BOT, train_from: str | None = None, closed: int = 0) -> Path:
    """Write data/champion.json as it should be."""

    def pinned(name: str) -> Pin:
        return Pin(name, policy_hash(name, root))

    path = root / "data" / "champion.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pins(path, Pins(closed, pinned(policy), None if train_from is None else pinned(train_from)))
    return path


def run_collect(root: Path, config: Config) -> dict[str, Any]:
    data = root / "data"
    paths = {"champion": data / "champion.json", "logs": data / "logs"}
    return collect(config.collect, config.tasks, config.seed, **paths, out=data / "rollouts")


def run_train(root: Path, config: Config) -> dict[str, Any]:
    data = root / "data"
    paths = {"batches": data / "batches", "champion": data / "champion.json"}
    return train(config.train, config.policy, config.seed, **paths, out=data / "challenger", training=data / "training")


def run_evaluate(root: Path, config: Config) -> dict[str, Any]:
    data = root / "data"
    sections = (config.evaluate, config.tasks, config.collect, config.decide)
    names = ("challenger", "training", "batches", "history")
    paths = {"champion": data / "champion.json", **{name: data / name for name in names}}
    return evaluate(*sections, config.seed, **paths, out=data / "evaluation")


def run_to_batches(root: Path, config: Config) -> None:
    """Collect, validate, curate."""
    data = root / "data"
    run_collect(root, config)
    validate(config.validate_, rollouts=data / "rollouts", out=data / "validated")
    paths = {"champion": data / "champion.json", "validated": data / "validated", "history": data / "history"}
    curate(config.curate, **paths, out=data / "batches")
