"""`python -m studies [NAME ...]`: run the studies that are not done yet, then write docs/studies/.

Arms are shared between studies and run two at a time, one thread each; `--seeds 1` makes a quick pass.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

from joblib import Parallel, delayed

from retroformer.progress import progress
from studies import pages
from studies.arms import Arm, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and write the pages."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(pages.STUDIES)}; all by default")
    parser.add_argument("--seeds", type=int, help="seeds of every arm, fewer than the study's own for a quick pass")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="arms at a time (default: cores)")
    parser.add_argument("--pages", action="store_true", help="write the pages from what is done, run nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in pages.STUDIES]
    if unknown:
        parser.error(f"{unknown[0]} is not a study; there are {', '.join(pages.STUDIES)}")
    for name in options.names or pages.STUDIES:
        study = pages.STUDIES[name]
        arms: list[Arm] = study.arms(options.seeds or study.seeds)
        results = []
        if options.pages:
            from studies.arms import finished

            results = [result for arm in arms if (result := finished(arm)) is not None]
        else:
            with progress(name, len(arms), "arms") as shown, Parallel(options.workers, return_as="generator") as pool:
                for result in pool(delayed(run)(arm) for arm in arms):
                    results.append(result)
                    shown.advance(1, f"{result['arm']} seed {result['seed']}")
        pages.write(name, study, results)


if __name__ == "__main__":
    main()
