"""`python -m studies [NAME ...]`: run the studies that are not done yet, then write docs/studies/.

Arms are shared between studies and run on all cores, one thread each; `--seeds 1` makes a quick pass.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

from joblib import Parallel, delayed

from retroformer.progress import progress
from studies import arms, crashes, off_policy, pages, rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and write the pages."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of rounds, off_policy, crashes, {', '.join(pages.STUDIES)}; all by default",
    )
    parser.add_argument("--seeds", type=int, help="seeds of every arm, fewer than the study's own for a quick pass")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="arms at a time (default: cores)")
    parser.add_argument("--kills", type=int, default=200, help="of the study crashes (default 200)")
    parser.add_argument("--pages", action="store_true", help="write the pages from what is done, run nothing")
    options = parser.parse_args(arguments)
    known = ["rounds", "off_policy", "crashes", *pages.STUDIES]
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"{unknown[0]} is not a study; there are {', '.join(known)}")
    for name in options.names or known:
        if name == "rounds":
            of_seeds(range(options.seeds or 3), only_pages=options.pages)
        elif name == "off_policy":
            off_policy.run()
        elif name == "crashes":
            of_kills(options.kills, only_pages=options.pages)
        else:
            of_arms(name, options.seeds, options.workers, only_pages=options.pages)


def of_seeds(seeds: range, *, only_pages: bool) -> None:
    """The main job, seed after seed."""
    found = []
    with progress("rounds", len(seeds), "seeds") as shown:
        for seed in seeds:
            found += rounds.closed(seed) if only_pages else rounds.run(seed)
            shown.advance(1)
    if found:
        how = (
            "The default job, nothing chosen: every seed and round is here. Success is the mean over a family's tasks."
        )
        question = "What do the rounds of the main job give, and do they hold on fresh seeds?"
        pages.write("rounds", question, how, *rounds.page(found))


def of_kills(kills: int, *, only_pages: bool) -> None:
    """Rounds that are killed again and again."""
    entries = crashes.known(crashes.folder()) if only_pages else crashes.run(kills)
    if entries:
        question = "Does a round that is killed end as one that is not?"
        pages.write("crashes", question, crashes.HOW, crashes.page(entries), None)


def of_arms(name: str, seeds: int | None, workers: int, *, only_pages: bool) -> None:
    """One study: its arms that are not done yet, then its page."""
    study = pages.STUDIES[name]
    wanted = study.arms(seeds or study.seeds)
    if only_pages:
        results = [result for arm in wanted if (result := arms.finished(arm)) is not None]
    else:
        results = []
        with progress(name, len(wanted), "arms") as shown, Parallel(workers, return_as="generator") as pool:
            for result in pool(delayed(arms.run)(arm) for arm in wanted):
                results.append(result)
                shown.advance(1, f"{result['arm']} seed {result['seed']}")
    if results:
        pages.write_study(name, study, results)


if __name__ == "__main__":
    main()
