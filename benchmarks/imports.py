"""Importing chat logs against a plain `json.loads` loop over the same file; and how large an import gets.

The files are made here: runs of a tool-calling agent, six calls each. With short results the work on each message
decides, with long ones their length. The loop reads and parses each line and keeps nothing; the import is the command
that a user types, its start included.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import QUICK_REPS, Report, Taken, interleave, peak_megabytes
from retroformer.environments.splits import of_instance
from retroformer.importers.conversation import Rules
from retroformer.importers.importing import import_logs
from retroformer.importers.outcomes import OutcomeRule

CALLS = 6
TOOL = {"name": "find", "description": "Find an order.", "parameters": {"type": "object", "properties": {}}}
CASES = {"short_results": 100, "long_results": 2000}
"""Characters of a tool's result."""
MEGABYTES, QUICK_MEGABYTES = 1024, 8
"""Of each file: 1 GiB, over which what starts first does not count."""
LARGE_REPS = 3
"""A gibibyte takes a minute, and its median does not move much."""


def measure(quick: bool) -> Report:
    """The command's wall seconds beside the loop's, and CPU seconds of an import in this process, without workers."""
    report = Report("imports", QUICK_REPS if quick else LARGE_REPS)
    report.notes = [
        "`import_*`: wall seconds of `retroformer import`, which has a worker a core for what is large, beside the "
        "loop's. The loop: json.loads of each line, its value thrown away.",
        "`import_*_1`: CPU seconds of one process on an eighth of the file, at most 64 MiB. `peak_megabytes` is its "
        "memory above what was there before.",
    ]
    size = (QUICK_MEGABYTES if quick else MEGABYTES) * 2**20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, characters in CASES.items():
            whole, part = folder / f"{case}.jsonl", folder / f"{case}-part.jsonl"
            records = write_runs(whole, size, characters)
            some = write_runs(part, min(64 * 2**20, size // 8), characters)
            command = {"json.loads": Taken(), "import": Taken()}
            for _ in range(report.reps):
                for taken, run in zip(command.values(), (loop, typed), strict=True):
                    started = time.perf_counter()
                    run(whole)
                    taken.repetitions.append(time.perf_counter() - started)
            whole_size = whole.stat().st_size
            whole.unlink()
            alone = {"json.loads": partial(loop, part), "import": partial(here, part)}
            single = interleave(alone, report.reps)
            for variant, taken in command.items():
                report.cases.append(
                    {
                        "case": case,
                        "variant": variant,
                        "seconds": taken.as_json(),
                        "megabytes": whole_size / 1e6,
                        "records": records,
                        "records_per_second": records / taken.median,
                        "cpu_records_per_second": some / single[variant].median,
                        "peak_megabytes": peak_megabytes(alone[variant]) if variant == "import" else None,
                    }
                )
            report.ratios[f"import_{case}"] = command["json.loads"].median / command["import"].median
            report.ratios[f"import_{case}_1"] = single["json.loads"].median / single["import"].median
    return report


def typed(path: Path) -> None:
    """The import as a user has it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        words = ["import", "--format", "openai-chat", str(path), "--out", os.path.join(out, "logs")]
        subprocess.run([sys.executable, "-m", "retroformer", *words], check=True, capture_output=True)


def here(path: Path) -> None:
    """An import in this process into a folder that is thrown away."""
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        rules = Rules(OutcomeRule(), of_instance)
        import_logs([path], "openai-chat", Path(out) / "logs", rules, workers=1, afresh=True)


def loop(path: Path) -> None:
    """The yardstick."""
    with path.open("rb") as lines:
        for line in lines:
            json.loads(line)


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
