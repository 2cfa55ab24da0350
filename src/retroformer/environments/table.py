"""The table of environments in docs/environments.md: ``python -m retroformer.environments.table [PACKAGE:TASK ...]``.

Each is played from seed 0 on, by uniformly random admissible actions and by its expert, for a stated number of
episodes or seconds, whichever comes first. Steps per second are those of the bare environment in one process, resets
included, and are to be read as an order of magnitude.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import mean
from typing import Any

import numpy as np

from retroformer.environments import make, start
from retroformer.errors import EnvironmentFault

EPISODES = 100
SECONDS = 20.0
"""For each of the two players."""
LICENCES = {
    "babyai": "Apache-2.0 (minigrid)",
    "desk": "ours",
    "miniwob": "MIT",
    "scienceworld": "Apache-2.0",
    "textworld": "MIT; jericho GPL-2.0",
    "textworld-express": "Apache-2.0",
    "toy_text": "MIT (Gymnasium)",
}
DEFAULT = (
    *("babyai:GoToLocalS6N4", "babyai:P6N3", "babyai:D6N4", "desk:refund", "desk:undo"),
    *("toy_text:Taxi", "toy_text:FrozenLake", "toy_text:Lake6", "toy_text:CliffWalking", "toy_text:Blackjack"),
    *(f"textworld-express:{game}" for game in ("coin", "mapreader", "arithmetic", "sorting", "twc", "cookingworld")),
    *(f"miniwob:{task}" for task in ("click-button", "click-link", "enter-text", "click-checkboxes", "login-user")),
    *(f"scienceworld:{task}" for task in ("find-animal", "boil", "chemistry-mix", "lifespan-longest-lived")),
    *(f"textworld:{task}" for task in ("coin-collector-5", "treasure-hunter-10", "simple")),
)
Choose = Callable[[Any, dict[str, Any], np.random.Generator], str | None]


def at_random(environment: Any, info: dict[str, Any], chance: np.random.Generator) -> str | None:
    """Any admissible action; None in text mode, where there is no such thing."""
    actions = info.get("admissible_actions")
    return actions[chance.integers(len(actions))] if actions else None


def by_expert(environment: Any, info: dict[str, Any], chance: np.random.Generator) -> str | None:
    """What the expert says; it gives up where it does not know.

    ScienceWorld's gold action counts whether or not it is among those offered.
    """
    ask = getattr(environment, "gold_action", None) or getattr(environment, "expert_action", None)
    return ask() if ask else None


def play(name: str, choose: Choose) -> tuple[list[bool], list[int], float]:
    """Success and length of each episode, and the seconds that environment and player took; none without a player."""
    environment = make(name)
    solved, steps, began, seconds = [], [], time.monotonic(), 0.0
    try:
        for seed in range(EPISODES):
            if time.monotonic() - began > SECONDS:
                break
            chance = np.random.default_rng(seed)
            before = time.monotonic()
            _, info = start(environment, seed)
            t, over = 0, False
            while not over:
                action = choose(environment, info, chance)
                if action is None:
                    break
                _, _, terminated, truncated, info = environment.step(action)
                t, over = t + 1, terminated or truncated
            seconds += time.monotonic() - before
            if t == 0:
                break
            solved.append(bool(over and info["success"]))
            steps.append(t)
    finally:
        environment.close()
    return solved, steps, seconds


def row(name: str) -> str:
    """The environment's line of the table."""
    (lucky, wandered, seconds), (able, needed, thought) = play(name, at_random), play(name, by_expert)
    steps, spent = (wandered, seconds) if wandered else (needed, thought)

    def rate(solved: list[bool]) -> str:
        return f"{mean(solved):.2f} (n {len(solved)})" if solved else "-"

    def length(of: list[int]) -> str:
        return f"{mean(of):.1f}/{max(of)}" if of else "-"

    speed = f"{sum(steps) / spent:,.0f}" if steps else "-"
    cells = (
        name,
        rate(lucky),
        rate(able),
        length(wandered),
        length(needed),
        speed,
        LICENCES.get(name.partition(":")[0], ""),
    )
    return f"| {' | '.join(cells)} |"


def main(names: tuple[str, ...]) -> None:
    """Print the table; what cannot be made is named below it."""
    print("| environment | random admissible | expert | steps, random, mean/max | expert | steps/s | licence |")
    print("|---|---|---|---|---|---|---|")
    missing: dict[str, str] = {}
    for name in names:
        try:
            print(row(name), flush=True)
        except EnvironmentFault as error:
            missing[name] = str(error)
    for name, reason in missing.items():
        print(f"\n{name}: not played, {reason}")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or DEFAULT)
