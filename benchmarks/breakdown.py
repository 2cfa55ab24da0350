"""Where the wall time of a round went, from the samples of all its processes (`sampler/sitecustomize.py`)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from retroformer.preloaded import SERVE

BIN = 0.5
"""Seconds; that of the sampler."""
WORK = ("model", "environments", "data")
"""What a round is for; all else is orchestration."""
IDLE = "workers without work"
Key = tuple[str, str]
"""(stage or empty, what was done)."""
Seconds = dict[Key, float]


@dataclass
class Process:
    """What one process was seen doing."""

    started: float
    words: list[str]
    bins: dict[int, Seconds] = field(default_factory=dict)
    forks: int = 0
    """From the start of its interpreter."""

    @property
    def kind(self) -> str:
        """worker, environments, background, or for those that run one inside the other: dvc, closing, command line,
        flow. A command is a fork of the preloaded process, and its workers are forks of that."""
        said = " ".join(self.words)
        if "resource_tracker" in said or "uvicorn" in said or "prefect.server" in said:
            return "background"
        if "multiprocessing.forkserver" in said:
            return "environments" if self.forks else "background"
        if SERVE in self.words and self.forks != 1:
            return "worker" if self.forks else "background"
        if "popen_loky" in said:
            return "worker"
        if "dvc" in said:
            return "dvc"
        names = [Path(word).name for word in self.words]
        if "retroformer" in names:
            return "closing" if "close" in names else "command line"
        return "flow"


def read_samples(folder: Path) -> list[Process]:
    """All processes that left samples in a folder."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not written:  # it ended as it began
            continue
        first, *lines = written
        process = Process(first["started"], first["words"], forks=first["forks"])
        for line in lines:
            seen = process.bins.setdefault(line["bin"], defaultdict(float))
            for key, seconds in line["seconds"].items():
                stage, _, doing = key.partition("/")
                seen[stage, doing] += seconds
        found.append(process)
    return found


def breakdown(processes: Iterable[Process], started: float, ended: float) -> Seconds:
    """Seconds by (stage, what was done) that add up to `ended` - `started`, times since the epoch.

    Processes run one inside the other, and of those the one that started last is what all wait for. While a stage
    waits for its workers its time is split as theirs was, their waiting for work included; while they wait for their
    environments, as the time of those was.
    """
    processes = list(processes)
    beside = ("worker", "environments", "background")
    chain = sorted((one for one in processes if one.kind not in beside), key=lambda one: -one.started)
    workers, environments = ([one for one in processes if one.kind == kind] for kind in beside[:2])
    total: Seconds = defaultdict(float)
    for place in range(int(started // BIN), int(ended // BIN) + 1):
        left = min(ended, (place + 1) * BIN) - max(started, place * BIN)
        for process in chain:
            seen = process.bins.get(place, {})
            length = sum(seen.values())
            if length > 0 and left > 0:
                taken = min(left, length)
                for key, seconds in of_process(process, seen, place, workers, environments).items():
                    total[key] += seconds * taken / length
                left -= taken
        if left > 0:
            total["", "interpreters starting and ending"] += left
    return dict(total)


def of_process(
    process: Process, seen: Seconds, place: int, workers: Iterable[Process], environments: Iterable[Process]
) -> Seconds:
    """What a process was doing in a bin, its waiting split and what is no stage's named after the process."""
    told: Seconds = defaultdict(float)
    for (stage, doing), seconds in seen.items():
        if doing == "waiting" and stage:
            theirs = doings(workers, place)
            inside = doings(environments, place)
            inside.pop(IDLE, 0.0)
            if inside:
                # A worker that waits for its environments is not without work.
                share = min(1.0, theirs[IDLE] / sum(inside.values())) if theirs else 1.0
                for what, spent in inside.items():
                    theirs[what] += spent * share
                theirs[IDLE] = max(0.0, theirs[IDLE] - share * sum(inside.values()))
            if not theirs:
                theirs["workers starting"] = 1.0
            for what, spent in theirs.items():
                told[stage, what] += seconds * spent / sum(theirs.values())
        elif not stage and doing == "imports":
            told[stage, f"imports of {process.kind}"] += seconds
        elif not stage and doing not in ("contract", "tracking"):
            told[stage, process.kind] += seconds
        else:
            told[stage, doing] += seconds
    return told


def doings(processes: Iterable[Process], place: int) -> dict[str, float]:
    """Seconds of each thing that processes did in a bin."""
    found: dict[str, float] = defaultdict(float)
    for process in processes:
        for (_, what), spent in process.bins.get(place, {}).items():
            found[IDLE if what in ("waiting", "outside") else what] += spent
    return found


def orchestration(seconds: Seconds) -> float:
    """The share that is not the model's, the environments' or data's."""
    work = sum(spent for (_, doing), spent in seconds.items() if doing in WORK)
    return 1 - work / sum(seconds.values())
