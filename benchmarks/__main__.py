"""`python -m benchmarks list`, or NAME [--json FILE] [--quick]: one benchmark side by side with its peers or limits."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from retroformer.storage import write_json

BENCHMARKS = {
    "train": "forward and backward of whole trajectories against TRL's GRPO and lamorel's algorithm",
    "act": "choosing actions in 8 environments against lamorel's cached scoring and full rescoring",
    "limit": "training as a share of this machine's matrix products; the output layer at a large vocabulary",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark and print its ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=["list", *BENCHMARKS])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--quick", action="store_true", help="3 repetitions instead of 7, small cases; under a minute")
    options = parser.parse_args(arguments)
    if options.name == "list":
        for name, what in BENCHMARKS.items():
            print(f"{name:<11} {what}")
        return
    import torch

    torch.set_num_threads(1)
    report = importlib.import_module(f"benchmarks.{options.name.replace('-', '_')}").measure(options.quick)
    for line in report.skipped:
        print(f"skipped: {line}")
    for key, value in report.ratios.items():
        print(f"{key:<32} {value:.3g}")
    if options.json is not None:
        write_json(options.json, report.as_json())


if __name__ == "__main__":
    main()
