"""Which environment seeds belong to which split: ranges that never meet; and which split a logged task is of.

A seed reads as decimal digits, ``S RR NN IIIII``: the split, the run's seed, the round and the episode.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Literal, TypeVar

from retroformer.config import EPISODES
from retroformer.errors import ConfigError

Item = TypeVar("Item")
SPLITS = ("history", "train", "checkpoint", "gate", "final", "transfer")
SAME_EVERY_ROUND = ("final", "transfer")
ROUNDS, RUNS = 100, 100
"""Room for this many rounds a run, and runs; EPISODES is the room a round."""
LogSplit = Literal["train", "checkpoint", "evaluation"]
SHARES: dict[LogSplit, float] = {"train": 0.7, "checkpoint": 0.1, "evaluation": 0.2}
"""How imported logs are split. `evaluation` is for off-policy evaluation alone: nothing else reads it."""


def seeds(split: str, *, run_seed: int, round_number: int, count: int, offset: int = 0) -> range:
    """`count` seeds of a split, from the `offset`-th on. Two ranges meet only if split, run and round are the same.

    final and transfer are the same every round. Raises ConfigError where something does not fit.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}, allowed: {', '.join(SPLITS)}")
    if not 0 <= run_seed < RUNS:
        raise ConfigError(f"seed is {run_seed}, allowed: 0 to {RUNS - 1}")
    if not 1 <= round_number < ROUNDS:
        raise ConfigError(f"round is {round_number}, allowed: 1 to {ROUNDS - 1}")
    if count < 0 or offset < 0 or offset + count > EPISODES:
        raise ConfigError(f"episodes {offset} to {offset + count} of {split} do not fit into 0 to {EPISODES}")
    round_part = 0 if split in SAME_EVERY_ROUND else round_number
    start = ((SPLITS.index(split) * RUNS + run_seed) * ROUNDS + round_part) * EPISODES + offset
    return range(start, start + count)


def of_instance(instance: str) -> LogSplit:
    """The split of a logged task instance, by a hash of what names it.

    Every attempt at an instance is in the same split, in whatever file, order or round it is read.
    """
    place = int.from_bytes(hashlib.sha256(instance.encode()).digest()[:8]) / 2**64
    if place < SHARES["evaluation"]:
        return "evaluation"
    return "checkpoint" if place < SHARES["evaluation"] + SHARES["checkpoint"] else "train"


def official(seed: int, train: Sequence[Item], dev: Sequence[Item], test: Sequence[Item]) -> Item:
    """The instance of a benchmark that has splits of its own, for an environment seed of ours.

    history and train draw from the benchmark's train, final and transfer from its test. Of dev, checkpoint choice has
    every other instance and the gate the rest. Drawn by a hash, so more seeds than instances mean that some come again.
    """
    split = SPLITS[min(seed // (RUNS * ROUNDS * EPISODES), len(SPLITS) - 1)]
    instances = {"checkpoint": dev[::2], "gate": dev[1::2] or dev, "final": test, "transfer": test}.get(split, train)
    return instances[zlib.crc32(str(seed).encode()) % len(instances)]
