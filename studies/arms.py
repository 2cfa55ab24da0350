"""One arm of a study: train on a fixed history with some parameters changed, then play seeds that no gate uses.

Every arm goes through the stage functions, so what is studied is what runs. A finished arm is a JSON file under
``.resume/studies``, named by a hash of all that it depends on: a study that was killed goes on where it was, and one
whose code or parameters changed starts anew.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from retroformer.config import Config, load_config
from retroformer.environments import with_missions
from retroformer.environments.splits import official, seeds
from retroformer.errors import DataError
from retroformer.files import read_json, resume_folder, write_json, write_text
from retroformer.rollouts.engine import Conditions, Episode
from retroformer.rollouts.workers import Player, play_all
from retroformer.stages.collect import collect
from retroformer.stages.curate import curate
from retroformer.stages.train import train
from retroformer.storage import TrajectoryWriter, stream_trajectories
from retroformer.types import Outcome
from studies import told
from studies.start import FIRST_AGENT, PINS, first_pins

ROOT = Path(".resume/studies")
AGENTS = {
    "babyai": FIRST_AGENT,
    "toy_text": "scripted:expert?noise=0.5",
    "textworld-express": "scripted:expert?noise=0.2",
    "desk": "scripted:desk?noise=0.3",
}
"""Who wrote the history of a package's tasks: an expert with as much noise as leaves it both outcomes."""
LOGGING = {"desk": "docs/examples/desk_agent.py"}
"""What stands for an application that logs what its agent does, where the history is imported and not played."""
GAMES = {"textworld-express": 1000}
"""Packages whose tasks have training and test games of their own, and how many of each. A test game may name things
that no training game does."""
ONCE = (("collect.episodes", 6600),)
"""The history of studies that use one several times over, or must not change with the default job's."""
Successes = dict[str, list[int]]
"""Task -> [solved, played]."""


@dataclass(frozen=True)
class Play:
    """A way of playing a trained policy."""

    name: str
    mission: str = "true"
    greedy: bool = False
    held_out: bool = False
    target_return: float | None = None
    unseen: bool = False
    """Only the training games of GAMES that the history does not have."""
    told_another: bool = False
    """Those tasks that tell every seed the same, told what the next task of their package tells."""


SAMPLED, GREEDY = Play("sampled"), Play("greedy", greedy=True)
SWAPPED = Play("swapped", mission="shuffled")
FOLLOWS = (Play("shuffled", mission="shuffled"), Play("other", mission="other"))
TRANSFER = (Play("held out", held_out=True), Play("held out, shuffled", mission="shuffled", held_out=True))


@dataclass(frozen=True)
class Arm:
    """What is trained, on which seed, and how it is played afterwards."""

    name: str
    seed: int
    overrides: tuple[tuple[str, Any], ...] = ()
    plays: tuple[Play, ...] = (SAMPLED, GREEDY, *FOLLOWS, *TRANSFER)
    policy: str | None = None
    """A scripted agent that is only played."""
    data: tuple[tuple[str, Any], ...] = ()
    """Overrides that change the history too."""


def configure(overrides: tuple[tuple[str, Any], ...], seed: int) -> Config:
    """params.yaml with an arm's changes; an arm has no baselines, it is one or stands beside one."""
    return load_config(overrides={"train.baselines": [], **dict(overrides), "seed": seed})


def history(seed: int, overrides: tuple[tuple[str, Any], ...]) -> Path:
    """Batches of the first agent's history for a seed: collected once, by the first of the arms that ask, and kept."""
    config = configure(overrides, seed)
    sections = [config.collect, config.tasks, config.curate, seed]
    folder = ROOT / resume_folder("history", [], sections).name
    ROOT.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_suffix(".lock")):
        if not (folder / "batches").is_dir():
            collect_history(folder, seed, config)
    return folder


def collect_history(folder: Path, seed: int, config: Config) -> None:
    """What the agents of all packages did, curated as one history."""
    parts = [collected(folder, seed, config, package) for package in packages_of(config.tasks.train)]
    (folder / "rollouts").mkdir(exist_ok=True)
    with TrajectoryWriter(folder / "rollouts") as writer:
        for part in parts:
            for trajectory in stream_trajectories(part):
                writer.add(trajectory)
    write_json(folder / PINS, first_pins())
    curate(config.curate, champion=folder / PINS, validated=folder / "rollouts", out=folder / "batches")


def packages_of(names: Sequence[str]) -> list[str]:
    """The packages of some tasks, each once, in their order."""
    return list(dict.fromkeys(name.partition(":")[0] for name in names))


def collected(folder: Path, seed: int, config: Config, package: str) -> Path:
    """What the package's own agent did on its share of the tasks."""
    tasks = tuple(name for name in config.tasks.train if name.partition(":")[0] == package)
    episodes = config.collect.episodes * len(tasks) // len(config.tasks.train)
    own = config.collect.model_copy(update={"workers": 1, "episodes": episodes})
    pins, out, logs = (folder / package / name for name in ("data/champion.json", "rollouts", "logs"))
    write_json(pins, first_pins(AGENTS[package]))
    if own.source == "import":
        words = ["--runs", str(episodes), "--seed", str(seed), "--out", str(logs / "agent.jsonl")]
        subprocess.run([sys.executable, LOGGING[package], *words], check=True, stdout=subprocess.DEVNULL)
    collect(own, config.tasks.model_copy(update={"train": tasks}), seed, champion=pins, logs=logs, out=out)
    return out


def key_of(arm: Arm) -> str:
    """Names an arm by all that it depends on."""
    return resume_folder("arm", [], [arm, configure((*arm.data, *arm.overrides), arm.seed)]).name


def finished(arm: Arm) -> dict[str, Any] | None:
    """The arm's result if it was run before."""
    path = ROOT / f"{key_of(arm)}.json"
    return read_json(path) if path.is_file() else None


def run(arm: Arm) -> dict[str, Any]:
    """The arm's result: {play: {task: [solved, played]}, "train": train.json}; read where it is there already."""
    done = finished(arm)
    if done is not None:
        return done
    config = configure((*arm.data, *arm.overrides), arm.seed)
    key, path = key_of(arm), ROOT / f"{key_of(arm)}.json"
    result: dict[str, Any] = {"arm": arm.name, "seed": arm.seed}
    folder = ROOT / key
    if arm.policy is None:
        past = history(arm.seed, arm.data)
        folder.mkdir(parents=True, exist_ok=True)
        train(
            config.train,
            config.policy,
            arm.seed,
            batches=narrowed(past / "batches", folder, config),
            champion=past / "data/champion.json",
            out=folder / "challenger",
            training=folder / "training",
        )
        result["train"] = read_json(folder / "training/train.json")
    for way in arm.plays:
        result[way.name] = played(arm, folder / "challenger", way, config)
    write_json(path, result)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def narrowed(batches: Path, folder: Path, config: Config) -> Path:
    """The batches with only those tasks in the catalogue that the arm trains on."""
    from retroformer.curriculum.catalogue import read_catalogue, write_catalogue

    names = {name.partition(":")[2] for name in config.tasks.train}
    catalogue = read_catalogue(batches / "catalogue.csv")
    if names >= set(catalogue["task"]):
        return batches
    out = folder / "batches"
    shutil.copytree(batches, out, dirs_exist_ok=True)
    write_catalogue(out / "catalogue.csv", catalogue[catalogue["task"].isin(names)])
    return out


def game(name: str, seed: int) -> int:
    """Which game of its split a seed of ours stands for."""
    places = range(GAMES[name.partition(":")[0]])
    return official(seed, places, places, places)


def games_of(past: Path) -> set[tuple[str, int]]:
    """The training games that a history has."""
    tasks = [one.task for one in stream_trajectories(past / "rollouts") if one.task.split == "history"]
    names = [(f"{task.environment}:{task.name}", task.seed) for task in tasks if task.environment in GAMES]
    return {(name, game(name, seed)) for name, seed in names}


def next_task(name: str, names: Sequence[str]) -> str:
    """The task after `name` among those of its package, the first one after the last."""
    package = name.partition(":")[0]
    own = [one for one in names if one.partition(":")[0] == package]
    return own[(own.index(name) + 1) % len(own)].partition(":")[2]


def played(arm: Arm, challenger: Path, way: Play, config: Config) -> Successes:
    """Play the final range (or the held-out tasks) one way. Raises DataError where much of it ends in error."""
    if way.target_return is not None:
        # Another folder, or a worker that still holds the policy would not see the other target.
        challenger = shutil.copytree(
            challenger, challenger.with_name(f"target-{way.target_return:g}"), dirs_exist_ok=True
        )
        settings = json.loads((challenger / "retroformer.json").read_text())
        settings["layout"]["target_return"] = way.target_return
        write_text(challenger / "retroformer.json", json.dumps(settings))
    everything = configure(arm.data, arm.seed).tasks
    names = everything.held_out if way.held_out else everything.train
    if way.mission != "true":
        names = with_missions(names, text=config.tasks.text, actions=config.tasks.actions)
    if way.told_another:
        able = with_missions(names, text=config.tasks.text, actions=config.tasks.actions)
        names = tuple(name for name in names if name not in able)
    split, count = ("transfer", config.evaluate.transfer) if way.held_out else ("final", config.evaluate.final)
    if way.unseen:
        split, names = "train", tuple(name for name in names if name.partition(":")[0] in GAMES)
    numbers = seeds(split, run_seed=arm.seed, round_number=1, count=count)
    plan = [Episode(names[i % len(names)], number, split, way.mission) for i, number in enumerate(numbers)]  # type: ignore[arg-type]
    if way.unseen:
        seen = games_of(history(arm.seed, arm.data))
        plan = [one for one in plan if (one.name, game(one.name, one.seed)) not in seen]
    if way.told_another:
        plan = [replace(one, name=told.named(one.name, next_task(one.name, everything.train))) for one in plan]
    conditions = Conditions(arm.seed, config.tasks.text, config.tasks.actions, config.collect.environments)
    player = Player(arm.policy or str(challenger), greedy=way.greedy)
    found: Successes = {}
    broken = []
    for _, ended in play_all([(player, plan)], conditions, workers=1):
        for one in ended:
            if one.trajectory.outcome is Outcome.ERROR:
                broken.append(one.trajectory)
            elif one.trajectory.learnable:
                counts = found.setdefault(told.true_name(one.trajectory.task.name), [0, 0])
                counts[0] += one.trajectory.outcome is Outcome.SUCCESS
                counts[1] += 1
    if len(broken) > config.collect.max_errors * len(plan):
        raise DataError(
            f"{len(broken)} of {len(plan)} episodes of {arm.name}, {way.name}, ended in error, the first one of "
            f"{broken[0].task.name}: {broken[0].error}"
        )
    return found
