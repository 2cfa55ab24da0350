"""Families that differ in kind, under one policy: rooms told in words, Gymnasium's toy_text, TextWorldExpress (S7).

A family's history is by an agent of its own, see `arms.AGENTS`. TextWorldExpress is an extra that needs Java; without
it the study is of the other two, and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retroformer.environments import make
from retroformer.errors import EnvironmentFault
from studies.arms import AGENTS, GAMES, ONCE, SAMPLED, SWAPPED, TRANSFER, Arm, Play
from studies.tables import by_arm, over_seeds, success, table

KINDS = {
    "babyai": ("P5N2", "P6N3", "GoToLocalS5N2"),
    "toy_text": ("Taxi", "Lake4"),
    "textworld-express": ("simonsays", "peckingorder"),
}
HELD_OUT = {
    "babyai": ("P6N4", "GoToLocalS6N4"),
    "toy_text": ("Lake6",),
    "textworld-express": ("sorting",),
}
UNSEEN = Play("unseen training games", unseen=True)
PLAYS = (SAMPLED, SWAPPED, *TRANSFER)
UPDATES = ("train.updates", 1000)
"""Of every arm: their sequences are several times as long as those of the default job."""


def present() -> list[str]:
    """The families whose parts are installed."""
    found = []
    for package, tasks in KINDS.items():
        try:
            make(f"{package}:{tasks[0]}").close()
        except EnvironmentFault:
            continue
        found.append(package)
    return found


def named(tasks: dict[str, tuple[str, ...]], packages: Sequence[str]) -> list[str]:
    """The tasks of some families under their full names."""
    return [f"{package}:{task}" for package in packages for task in tasks[package]]


def plays_of(packages: Sequence[str]) -> tuple[Play, ...]:
    """How a policy that is trained on these families is played."""
    return (*PLAYS, UNSEEN) if set(packages) & set(GAMES) else PLAYS


def arms(seeds: int) -> list[Arm]:
    """One policy for all families, one for each on equal updates, and the agents that made the logs."""
    packages = present()
    together = (*ONCE, ("tasks.train", named(KINDS, packages)), ("tasks.held_out", named(HELD_OUT, packages)))
    found = []
    for seed in range(seeds):
        found.append(Arm("random", seed, plays=(SAMPLED,), policy="scripted:random", data=together))
        found.append(Arm("joint", seed, (UPDATES,), plays_of(packages), data=together))
        for package in packages:
            own = ("tasks.train", named(KINDS, [package]))
            found.append(Arm(f"{package} alone", seed, (own, UPDATES), plays_of([package]), data=together))
            found.append(Arm(f"{package} agent", seed, plays=(SAMPLED,), policy=AGENTS[package], data=(own,)))
    return found


def answer(results: Sequence[dict[str, Any]]) -> tuple[str, None]:
    """Joint and single training on trained and held-out tasks, and with another mission than the true one."""
    found = by_arm(results)
    packages = [package for package in KINDS if f"{package} agent" in found]

    def row(label: str, arm: str, play: str, tasks: dict[str, tuple[str, ...]], kinds: Sequence[str]) -> list[str]:
        own = found.get(arm, [])
        cells = [over_seeds(success(one, play, tasks[package].__contains__) for one in own) for package in kinds]
        return [label, play, str(len(own)), *cells]

    trained = [("one policy for all", "joint"), *((f"{package} alone",) * 2 for package in packages)]
    agents = [
        over_seeds(success(one, "sampled", KINDS[p].__contains__) for one in found[f"{p} agent"]) for p in packages
    ]
    rows = [["the agent that made the logs", "sampled", str(len(found[f"{packages[0]} agent"])), *agents]]
    rows.append(row("random admissible", "random", "sampled", KINDS, packages))
    for play in ("sampled", "swapped"):
        rows += [row(label, arm, play, KINDS, packages) for label, arm in trained]
    rows += [
        row(label, arm, UNSEEN.name, KINDS, packages)
        for label, arm in trained
        if UNSEEN.name in found.get(arm, [{}])[0]
    ]
    text = table(["", "played", "seeds", *packages], rows)
    text += "\nTasks never trained on (" + ", ".join(named(HELD_OUT, packages)) + "):\n\n"
    rows = []
    for play in ("held out", "held out, shuffled"):
        rows += [row(label, arm, play, HELD_OUT, packages) for label, arm in trained]
    text += table(["", "played", "seeds", *packages], rows)
    text += (
        f"\nEach policy had {UPDATES[1]:,} updates. Swapped and shuffled are played on the tasks whose mission differs "
        "from seed to seed, those of babyai and Taxi. A policy of one family plays the others' tasks too: that is "
        "what it transfers to them. TextWorldExpress's test games, and those that sort, name things that none of its "
        "training games does: words that a model from scratch has never met."
    )
    if missing := [package for package in KINDS if package not in packages]:
        text += f" {', '.join(missing)} was not installed."
    return text + "\n", None
