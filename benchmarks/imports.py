"""Importing chat logs against a plain `json.loads` loop over the same file; and how long and large an import gets.

The file is made here: runs of a tool-calling agent, six calls each with short results, the case in which the work on
each message, rather than its length, decides. The loop reads and parses each line and keeps nothing.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import QUICK_REPS, REPS, Report, interleave, peak_megabytes
from retroformer.environments.splits import of_instance
from retroformer.importers.conversation import Rules
from retroformer.importers.importing import import_logs
from retroformer.importers.outcomes import OutcomeRule

CALLS = 6
TOOL = {"name": "find", "description": "Find an order.", "parameters": {"type": "object", "properties": {}}}
CASES = {"short_results": 100, "long_results": 2000}
"""Characters of a tool's result."""


def measure(quick: bool) -> Report:
    """Records per second of an import in this process (CPU time) and with a worker a core (wall time)."""
    report = Report("imports", QUICK_REPS if quick else REPS)
    report.notes = [
        "import_*_1: CPU seconds of one process; import_*_workers: wall seconds, which a shared machine stretches",
        "the loop: json.loads of each line, its value thrown away; the import parses, checks, converts and writes",
    ]
    megabytes, cores = 8 if quick else 64, len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        for case, characters in CASES.items():
            path = Path(folder) / f"{case}.jsonl"
            records = write_runs(path, megabytes * 2**20, characters)

            def once(workers: int, path: Path = path) -> Callable[[], Any]:
                return lambda: imported(path, workers)

            def yardstick(path: Path = path) -> None:
                loop(path)

            taken = interleave({"json": yardstick, "import": once(1)}, report.reps)
            walls: dict[str, list[float]] = {"json": [], "import": []}
            for _ in range(report.reps):
                for name, run in (("json", yardstick), ("import", once(cores))):
                    started = time.perf_counter()
                    run()
                    walls[name].append(time.perf_counter() - started)
            least = {name: min(seconds) for name, seconds in walls.items()}
            report.cases.append(
                {
                    "case": case,
                    "megabytes": path.stat().st_size / 1e6,
                    "records": records,
                    "json_per_second": records / taken["json"].median,
                    "import_per_second": records / taken["import"].median,
                    "wall_json_per_second": records / least["json"],
                    "wall_import_per_second": records / least["import"],
                    "peak_megabytes": peak_megabytes(once(1)),
                }
            )
            report.ratios[f"import_{case}_1"] = taken["json"].median / taken["import"].median
            report.ratios[f"import_{case}_workers"] = least["json"] / least["import"]
    return report


def loop(path: Path) -> None:
    """The yardstick."""
    with path.open("rb") as lines:
        for line in lines:
            json.loads(line)


def imported(path: Path, workers: int) -> None:
    """One import into a folder that is thrown away."""
    out = path.with_suffix(".out")
    import_logs([path], "openai-chat", out, Rules(OutcomeRule(), of_instance), workers=workers, afresh=True)
    shutil.rmtree(out)


def write_runs(path: Path, size: int, characters: int) -> int:
    """Write runs until the file has `size` bytes. Returns how many."""
    chance = random.Random(0)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            file.write(json.dumps(run_of_an_agent(count, characters, chance)) + "\n")
            count += 1
    return count


def run_of_an_agent(number: int, characters: int, chance: random.Random) -> dict[str, Any]:
    """One run of an agent, as chat JSONL has it."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You work at an order desk. " * 6},
        {"role": "user", "content": f"Please see to order {number}."},
    ]
    for n in range(CALLS):
        function = {"name": "find", "arguments": json.dumps({"id": chance.randrange(10**6), "what": "state"})}
        call = {"id": f"call_{n}", "type": "function", "function": function}
        told = " ".join(str(chance.randrange(10**6)) for _ in range(characters // 7))
        messages += [
            {"role": "assistant", "content": "Let me look this up.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call_{n}", "content": told},
        ]
    messages.append({"role": "assistant", "content": "That is done."})
    tools = [{"type": "function", "function": TOOL}]
    return {"id": f"run-{number}", "messages": messages, "tools": tools, "success": chance.random() < 0.5}
