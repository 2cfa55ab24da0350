"""Collection: two workers beside one process and beside the bare environments, and whether memory stays flat.

The bare loop resets and steps the same environments with random actions and keeps nothing. The engine in one process
does the same with its buffer, its random agent and its records; the next case has the environments in a process apart,
as collection has them; the last spreads that over two workers and writes the shards to disk.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import QUICK_REPS, REPS, Report, Taken
from retroformer.config import load_config
from retroformer.environments import make
from retroformer.policies import open_agent
from retroformer.rollouts.engine import play
from retroformer.rollouts.episodes import Conditions, Episode, Played
from retroformer.rollouts.workers import Player, play_all

ENVIRONMENTS = 64
RANDOM = Player("scripted:random")
NOTES = [
    "The default tasks (BabyAI in words), random actions: the agent costs next to nothing, so what is seen is the "
    f"engine. {ENVIRONMENTS} environments advance together. Wall seconds, the variants in turn in one process: a "
    "machine that does other work at the same time stretches those that use both cores most.",
    "`rollouts_2_vs_1`: one process over two workers. `rollouts_2_vs_bare`: the bare loop over two workers, 2 at most. "
    "`engine_vs_bare`: the engine in one process over the bare loop, what buffer, agent and records cost. "
    "`apart_vs_engine`: with the environments in a process apart over the engine, what isolation costs.",
    "Memory: resident, in MB (10^6 bytes), as each shard arrives; `workers` is all processes below this one, what they "
    "share counted in each. The ratios are the most in the last fifth over the most in the second fifth.",
]


def plan(count: int) -> list[Episode]:
    """Episodes of the default tasks in turn."""
    names = load_config().tasks.train
    return [Episode(names[place % len(names)], place, "train") for place in range(count)]


def bare(episodes: list[Episode]) -> int:
    """The yardstick; returns how many steps it did."""
    environments = {name: make(name) for name in dict.fromkeys(episode.name for episode in episodes)}
    steps = 0
    for episode in episodes:
        environment, chance = environments[episode.name], random.Random(episode.seed)
        _, info = environment.reset(seed=episode.seed)
        ended = False
        while not ended:
            _, _, terminated, truncated, info = environment.step(chance.choice(info.get("admissible_actions", ("",))))
            ended = terminated or truncated
            steps += 1
    return steps


def steps_of(played: Iterator[Played]) -> int:
    """Steps of all that is played."""
    return sum(len(one.trajectory.steps) for one in played)


def spread(episodes: list[Episode], conditions: Conditions, workers: int) -> Iterator[Played]:
    """As a collection plays them, shards on disk included."""
    with tempfile.TemporaryDirectory() as folder:
        arriving = play_all([(RANDOM, episodes)], conditions, workers, folder=Path(folder))
        yield from chain.from_iterable(played for _, played in arriving)


def measure(quick: bool, count: int | None = None, long: int | None = None) -> Report:
    """Throughput over `count` episodes and memory over `long`."""
    report = Report("rollouts", QUICK_REPS if quick else REPS, notes=list(NOTES))
    conditions = Conditions(0, "compact", "token", ENVIRONMENTS)
    episodes = plan(count or (512 if quick else 2048))
    variants: dict[str, Callable[[], int]] = {
        "bare": lambda: bare(episodes),
        "engine": lambda: steps_of(play(open_agent(RANDOM.policy, slots=ENVIRONMENTS), episodes, conditions)),
        "apart": lambda: steps_of(spread(episodes, conditions, 1)),
        "workers 2": lambda: steps_of(spread(episodes, conditions, 2)),
    }
    steps_of(spread(episodes[: 2 * ENVIRONMENTS], conditions, 2))  # workers start once, and stay
    taken = {name: Taken() for name in variants}
    for rep in range(report.reps):
        names = list(variants)
        for name in names[rep % len(names) :] + names[: rep % len(names)]:
            started = time.perf_counter()
            taken[name].result = variants[name]()
            taken[name].repetitions.append(time.perf_counter() - started)
    for name, one in taken.items():
        figures: dict[str, Any] = {"episodes": len(episodes), "steps_per_second": one.result / one.median}
        report.cases.append({"case": "throughput", "variant": name, "seconds": one.as_json(), **figures})
    for key, slower, faster in (
        ("rollouts_2_vs_1", "apart", "workers 2"),
        ("rollouts_2_vs_bare", "bare", "workers 2"),
        ("engine_vs_bare", "engine", "bare"),
        ("apart_vs_engine", "apart", "engine"),
    ):
        report.ratios[key] = taken[slower].median / taken[faster].median
    remember(report, plan(long or (1024 if quick else 10_240)), conditions)
    return report


def remember(report: Report, episodes: list[Episode], conditions: Conditions) -> None:
    """Memory of this process and of those below it while many episodes are played."""
    seen: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in play_all([(RANDOM, episodes)], conditions, 2, folder=Path(folder)):
            seen.append((resident([psutil.Process(os.getpid())]), resident(psutil.Process().children(recursive=True))))
    fifth = max(1, len(seen) // 5)
    for place, name in enumerate(("parent", "workers")):
        early, late = (max(one[place] for one in part) for part in (seen[fifth : 2 * fifth] or seen, seen[-fifth:]))
        figures = {"episodes": len(episodes), "early_mb": early, "late_mb": late}
        report.cases.append({"case": "memory", "variant": name, **figures})
        report.ratios[f"memory_growth_{name}"] = late / early


def resident(processes: list[psutil.Process]) -> float:
    """Resident memory of those that are there, in MB."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / 1e6
