"""Where the wall time of a round went, from the samples of all its processes (`sampler/sitecustomize.py`)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

BIN = 0.5
"""Seconds; that of the sampler."""
WORK = ("model", "environments", "data")
"""What a round is for; all else is orchestration."""
Key = tuple[str, str]
"""(stage or empty, what was done)."""
Seconds = dict[Key, float]


@dataclass
class Process:
    """What one process was seen doing."""

    started: float
    words: list[str]
    bins: dict[int, Seconds] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """worker, background, or for those that run one inside the other: dvc, closing, command line, flow."""
        said = " ".join(self.words)
        if "resource_tracker" in said or "uvicorn" in said or "prefect.server" in said:
            return "background"
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
        first, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        process = Process(first["started"], first["words"])
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
    waits for its workers its time is split as theirs was, their waiting for work included.
    """
    chain = sorted((one for one in processes if one.kind not in ("worker", "background")), key=lambda one: -one.started)
    workers = [one for one in processes if one.kind == "worker"]
    total: Seconds = defaultdict(float)
    for place in range(int(started // BIN), int(ended // BIN) + 1):
        left = min(ended, (place + 1) * BIN) - max(started, place * BIN)
        for process in chain:
            seen = process.bins.get(place, {})
            length = sum(seen.values())
            if length > 0 and left > 0:
                taken = min(left, length)
                for key, seconds in of_process(process, seen, place, workers).items():
                    total[key] += seconds * taken / length
                left -= taken
        if left > 0:
            total["", "interpreters starting and ending"] += left
    return dict(total)


def of_process(process: Process, seen: Seconds, place: int, workers: Iterable[Process]) -> Seconds:
    """What a process was doing in a bin, its waiting split and what is no stage's named after the process."""
    told: Seconds = defaultdict(float)
    for (stage, doing), seconds in seen.items():
        if doing == "waiting" and stage:
            theirs: dict[str, float] = defaultdict(float)
            for worker in workers:
                for (_, what), spent in worker.bins.get(place, {}).items():
                    theirs["workers without work" if what in ("waiting", "outside") else what] += spent
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


def orchestration(seconds: Seconds) -> float:
    """The share that is not the model's, the environments' or data's."""
    work = sum(spent for (_, doing), spent in seconds.items() if doing in WORK)
    return 1 - work / sum(seconds.values())
