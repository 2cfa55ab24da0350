"""Clocks, memory and the machine. Peer and project take turns in one process, so that both meet the same load."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPS, QUICK_REPS = 7, 3
LONG_ENOUGH = 0.2
"""CPU seconds that a repetition takes at least, so that what is fast is not noise."""
CLOCK = "CPU seconds of the process"
INSTRUCTIONS = ("AVX512F", "AVX2", "AVX", "ASIMD")
"""What torch's products use where the processor has it, the widest first."""
MEMORY = (
    "peak resident memory above what the process held before, in MB (10^6 bytes): the variant runs once in a forked "
    "child, whose high-water mark (VmHWM) is reset first; not measured where /proc does not offer this"
)
Run = Callable[[], Any]


@dataclass
class Report:
    """What a benchmark found; `as_json` is what is written."""

    name: str
    reps: int
    model: dict[str, Any] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """How it was measured, and what is unfair to whom."""
    skipped: list[str] = field(default_factory=list)
    quick: bool = False
    """Whether cases were left out and repetitions are few."""

    def as_json(self) -> dict[str, Any]:
        """The report with the machine that it was made on."""
        return {**vars(self), "machine": machine()}


def machine() -> dict[str, Any]:
    """What figures depend on besides the code: processor, threads, versions, the load at this moment, the date."""
    told = [line.partition(":") for line in _lines("/proc/cpuinfo")]
    said = {name.strip(): text.strip() for name, _, text in reversed(told)}
    flags = said.get("flags", said.get("Features", "")).split()
    return {
        "processor": said.get("model name", platform.processor() or platform.machine()),
        "instructions": next((name for name in INSTRUCTIONS if name.lower() in flags), "not told"),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


@dataclass
class Taken:
    """CPU seconds of one run of a variant, over the repetitions, and what its last run returned."""

    repetitions: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        """Over the repetitions."""
        return statistics.median(self.repetitions)

    def as_json(self) -> dict[str, float]:
        """Median, least and most."""
        return {"median": self.median, "least": min(self.repetitions), "most": max(self.repetitions)}


def interleave(variants: Mapping[str, Run], reps: int, before: Mapping[str, Run] | None = None) -> dict[str, Taken]:
    """Run every variant `reps` times, in turn; in each turn again and again until LONG_ENOUGH is spent.

    CPU time, because a machine that is shared stretches wall time by chance. Nothing is run to warm up: the median
    does not see a slow first turn. What a variant needs `before` each run is not timed.
    """
    taken = {name: Taken() for name in variants}
    gc.freeze()  # what is there stays there; collecting before each turn costs little then
    for rep in range(reps):
        names = list(variants)
        for name in names[rep % len(names) :] + names[: rep % len(names)]:
            gc.collect()
            spent, runs = 0.0, 0
            while spent < LONG_ENOUGH:
                if before and name in before:
                    before[name]()
                started = time.process_time()
                taken[name].result = variants[name]()
                spent += time.process_time() - started
                runs += 1
            taken[name].repetitions.append(spent / runs)
    return taken


def peak_megabytes(run: Run) -> float | None:
    """See MEMORY. None where the system does not offer it, or the child failed."""
    import torch

    if not Path("/proc/self/clear_refs").exists():
        return None
    gc.collect()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the parent's other threads are not here: a forked child would wait for them
            ctypes.CDLL(None).malloc_trim(0)  # what the parent freed must not serve the child unseen
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            run()
            os.write(writer, str((status("VmHWM") - before) / 1e6).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        text = told.read()
    return float(text) if text else None


def status(name: str, process: int | str = "self") -> int:
    """A size from /proc/PROCESS/status, in bytes."""
    for line in _lines(f"/proc/{process}/status"):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
