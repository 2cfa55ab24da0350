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
ANOTHER = Play("told another task", told_another=True)
UNSEEN_ANOTHER = Play("unseen training games, told another task", unseen=True, told_another=True)
PLAYS = (SAMPLED, SWAPPED, ANOTHER, *TRANSFER)
UPDATES = 1000
"""Of a policy for one family; one for several families has as many as theirs together."""
JOINT = "one policy for all"
IMITATION = f"{JOINT}, imitation of successes"
"""The simple baseline: the same policy, data and updates with another objective."""


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
    return (*PLAYS, UNSEEN, UNSEEN_ANOTHER) if set(packages) & set(GAMES) else PLAYS


def arms(seeds: int) -> list[Arm]:
    """A policy for all families by either objective, one for each on its share of the updates, the logs' agents."""
    packages = present()
    together = (*ONCE, ("tasks.train", named(KINDS, packages)), ("tasks.held_out", named(HELD_OUT, packages)))
    budget = ("train.updates", UPDATES * len(packages))
    for_all = {JOINT: (budget,), IMITATION: (budget, ("train.objective", "imitation_of_successes"))}
    found = []
    for seed in range(seeds):
        found.append(Arm("random", seed, plays=(SAMPLED,), policy="scripted:random", data=together))
        for name, overrides in for_all.items():
            found.append(Arm(name, seed, overrides, plays_of(packages), data=together))
        for package in packages:
            own = ("tasks.train", named(KINDS, [package]))
            alone = (own, ("train.updates", UPDATES))
            found.append(Arm(f"{package} alone", seed, alone, plays_of([package]), data=together))
            found.append(Arm(f"{package} agent", seed, plays=(SAMPLED,), policy=AGENTS[package], data=(own,)))
    return found


def answer(results: Sequence[dict[str, Any]]) -> tuple[str, None]:
    """Joint and single training on trained and held-out tasks, and with another mission than the true one."""
    found = by_arm(results)
    packages = [package for package in KINDS if f"{package} agent" in found]
    trained = [JOINT, IMITATION, *(f"{package} alone" for package in packages)]

    def row(arm: str, play: str, columns: Sequence[Sequence[str]]) -> list[str]:
        own = found.get(arm, [])
        cells = [over_seeds(success(one, play, tasks.__contains__) for one in own) for tasks in columns]
        return [arm, play, str(len(own)), *cells]

    def logs(columns: Sequence[Sequence[str]], of: Sequence[str]) -> list[str]:
        """The agents, each on its own tasks."""
        cells = [row(f"{package} agent", "sampled", [tasks])[-1] for package, tasks in zip(of, columns, strict=True)]
        return ["the agent that made the logs", "sampled", str(len(found[f"{packages[0]} agent"])), *cells]

    families, header = [KINDS[package] for package in packages], ["", "played", "seeds"]
    rows = [logs(families, packages), row("random", "sampled", families)]
    rows += [row(arm, play, families) for play in ("sampled", "swapped", ANOTHER.name) for arm in trained]
    for play in (UNSEEN.name, UNSEEN_ANOTHER.name):
        rows += [row(arm, play, families) for arm in trained if play in found.get(arm, [{}])[0]]
    text = table([*header, *packages], rows)
    tasks = [[task] for package in packages for task in KINDS[package]]
    owners = [package for package in packages for _ in KINDS[package]]
    rows = [logs(tasks, owners), *(row(arm, "sampled", tasks) for arm in ("random", *trained))]
    text += "\nTask by task:\n\n" + table([*header, *(task for (task,) in tasks)], rows)
    text += "\nTasks never trained on (" + ", ".join(named(HELD_OUT, packages)) + "):\n\n"
    held_out = [HELD_OUT[package] for package in packages]
    rows = [row(arm, play, held_out) for play in ("held out", "held out, shuffled") for arm in trained]
    text += table([*header, *packages], rows)
    text += (
        f"\nA policy of one family had {UPDATES:,} updates and those for all {UPDATES * len(packages):,}, on the same "
        "history. Swapped and shuffled are played on the tasks whose mission differs from seed to seed, those of "
        "babyai and Taxi; the others are told what another task of their family tells (Lake4 what Taxi does, each game "
        "what the other one does). A policy of one family plays the others' tasks too: that is what it transfers to "
        "them. TextWorldExpress's test games, and those that sort, name things that none of its training games does: "
        "words that a model from scratch has never met."
    )
    if missing := [package for package in KINDS if package not in packages]:
        text += f" {', '.join(missing)} was not installed."
    return text + "\n", None
