"""`python -m benchmarks list`, or NAME [--json FILE] [--quick]: one benchmark beside its peers or limits.

`NAME --pages` writes its page from what was measured before.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from retroformer.errors import RetroformerError
from retroformer.files import write_json

BENCHMARKS = {
    "train": "forward and backward of whole trajectories against TRL's GRPO and lamorel's algorithm",
    "act": "choosing actions in 8 environments against lamorel's cached scoring and full rescoring",
    "serve": "an agent that records itself in an application against the bare model's forward",
    "imports": "importing chat logs against a plain json.loads loop over the same file",
    "rollouts": "collecting on two workers against one process and the bare environments; memory over 10,000 episodes",
    "limit": "training as a share of this machine's matrix products; the output layer at a large vocabulary",
    "end-to-end": "what the wall time of a real round is spent on; how time and memory grow with the history",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark and print its ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=["list", *BENCHMARKS])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where what is measured is written")
    parser.add_argument("--quick", action="store_true", help="3 repetitions instead of 7, small cases; under a minute")
    parser.add_argument(
        "--pages", action="store_true", help="measure nothing: write the page from --json or docs/benchmarks/NAME.json"
    )
    options = parser.parse_args(arguments)
    if options.name == "list":
        for name, what in BENCHMARKS.items():
            print(f"{name:<11} {what}")
        return
    if options.pages:
        from benchmarks.pages import DOCS, write_page

        try:
            write_page(options.name, options.json or DOCS / f"{options.name}.json")
        except RetroformerError as error:
            parser.error(f"{error}; measure first")
        return
    report = importlib.import_module(f"benchmarks.{options.name.replace('-', '_')}").measure(options.quick)
    report.quick = options.quick
    for line in report.skipped:
        print(f"skipped: {line}")
    for key, value in report.ratios.items():
        print(f"{key:<32} {value:.3g}")
    if options.json is not None:
        write_json(options.json, report.as_json())


if __name__ == "__main__":
    main()
