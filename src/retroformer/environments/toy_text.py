"""Gymnasium's toy_text in words: Taxi, FrozenLake, CliffWalking, Blackjack.

``Lake4`` and ``Lake6`` are FrozenLake on firm ice, with a new map for every seed: the map must be read. In plain text
it is told row by row; in compact text, for small models, as a word for each hole and one for the goal, told from where
one stands, and Taxi's stops likewise. What changes nothing is not admissible, which for Taxi is Gymnasium's
``action_mask``. Rewards are Gymnasium's over a constant, so that they lie in -1..1. Taxi's destination is told in the
task alone, so its mission can be swapped; the others have one mission.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map

from retroformer.errors import EnvironmentFault

STOPS = ("red", "green", "yellow", "blue")
"""Taxi's marked cells, in Gymnasium's order."""
COMPASS = {
    "Taxi-v4": ("south", "north", "east", "west", "pickup", "dropoff"),
    "FrozenLake-v1": ("west", "south", "east", "north"),
    "CliffWalking-v1": ("north", "east", "south", "west"),
    "Blackjack-v1": ("stick", "hit"),
}
"""The actions, in Gymnasium's order."""
DISCOUNT = 0.99
"""Of the expert's value iteration."""


def taxi(world: Any, state: int, compact: bool) -> str:
    """Where the taxi and the passenger are; compact, where the stops are from here."""
    row, column, passenger, _ = world.decode(state)
    rides = passenger == len(STOPS)
    if compact:
        stops = zip(STOPS, world.locs, strict=True)
        seen = " ".join(f"{stop}@{offset(r - row, c - column)}" for stop, (r, c) in stops)
        return f"{seen} passenger@{'taxi' if rides else STOPS[passenger]}"
    return f"taxi at row {row} column {column} passenger {'rides' if rides else f'waits at {STOPS[passenger]}'}"


def taxi_task(world: Any, state: int) -> str:
    """Where the passenger wants to go."""
    return f"drive the passenger to {STOPS[list(world.decode(state))[3]]}"


def lake(world: Any, state: int, compact: bool) -> str:
    """The place and the whole map, row by row; compact, where the holes and the goal are from here."""
    row, column = divmod(int(state), world.ncol)
    if compact:
        return " ".join(
            f"{cell.decode()}@{offset(r - row, c - column)}"
            for (r, c), cell in np.ndenumerate(world.desc)
            if cell in (b"H", b"G")
        )
    rows = " / ".join(" ".join(cell.decode() for cell in line) for line in world.desc)
    return f"row {row} column {column} of {rows}"


def offset(down: int, right: int) -> str:
    """``s2e1`` is two south and one east of here; ``here`` is here."""
    south = f"{'s' if down > 0 else 'n'}{abs(down)}" if down else ""
    east = f"{'e' if right > 0 else 'w'}{abs(right)}" if right else ""
    return south + east or "here"


def cliff(world: Any, state: int, compact: bool) -> str:
    """The place; the map never changes."""
    row, column = divmod(int(state), world.shape[1])
    return f"r{row}c{column}" if compact else f"row {row} column {column}"


def cards(world: Any, state: tuple[int, int, int], compact: bool) -> str:
    """The player's sum, the dealer's card, and whether an ace counts as eleven."""
    total, dealer, ace = state
    held = "soft" if ace else "hard"
    return f"sum@{total} {held} dealer@{dealer}" if compact else f"sum {total} {held} dealer shows {dealer}"


@dataclass(frozen=True, slots=True)
class Game:
    """One of the tasks."""

    spec: str
    cap: int
    """Most steps of an episode."""
    scale: float
    """What Gymnasium's reward is divided by."""
    observe: Callable[[Any, Any, bool], str]
    task: str | Callable[[Any, Any], str]
    size: int = 0
    """Side of a map that is drawn anew for every seed."""


SAFE = "cross the lake from S to G over F and stay off H"
GAMES = {
    "Taxi": Game("Taxi-v4", 40, 20, taxi, taxi_task),
    "FrozenLake": Game("FrozenLake-v1", 60, 1, lake, f"{SAFE} the ice is slippery"),
    "Lake4": Game("FrozenLake-v1", 14, 1, lake, SAFE, size=4),
    "Lake6": Game("FrozenLake-v1", 22, 1, lake, SAFE, size=6),
    "CliffWalking": Game("CliffWalking-v1", 40, 100, cliff, "walk around the cliff to row 3 column 11"),
    "Blackjack": Game("Blackjack-v1", 12, 1, cards, "beat the dealer and do not go over 21"),
}


def known() -> tuple[str, ...]:
    """Task names."""
    return tuple(GAMES)


def lexicon(text: str = "compact") -> tuple[str, ...]:
    """Every word that the games can say or be told."""
    told = " ".join(game.task for game in GAMES.values() if isinstance(game.task, str))
    acts = " ".join(action for actions in COMPASS.values() for action in actions)
    words = {*f"drive the passenger to {told} {acts} soft hard".split(), *STOPS}
    if text == "compact":
        offsets = [offset(down, right) for down in range(-7, 8) for right in range(-7, 8)]
        words.update(f"{what}@{where}" for what in (*STOPS, "H", "G") for where in offsets)
        words.update(f"passenger@{stop}" for stop in (*STOPS, "taxi"))
        words.update(f"r{row}c{column}" for row in range(4) for column in range(12))
        words.update(f"{what}@{number}" for what in ("sum", "dealer") for number in range(32))
    else:
        words.update(
            ["taxi", "at", "rides", "waits", "row", "column", "of", "/", "S", "F", "H", "G", "sum", "dealer", "shows"],
            map(str, range(32)),
        )
    return tuple(sorted(words))


def make(task: str, text: str = "compact") -> ToyText:
    """One of the games that `known` names, told in `text`, compact or plain."""
    return ToyText(task, text)


class ToyText:
    """A game as a TextEnvironment, see `retroformer.environments.protocol`."""

    def __init__(self, task: str, text: str = "compact"):
        self.task = task
        self.compact = text == "compact"
        self.game = GAMES[task]
        self.family = "toy_text"
        self.actions = COMPASS[self.game.spec]
        self.world: Any = None if self.game.size else gymnasium.make(self.game.spec).unwrapped
        self.admissible: tuple[str, ...] = ()
        self._values: dict[int, list[float]] | None = None

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`."""
        if self.game.size:
            drawn = generate_random_map(self.game.size, p=0.75, seed=seed)
            self.world, self._values = FrozenLakeEnv(desc=drawn, is_slippery=False), None
        self.state, _ = self.world.reset(seed=seed)
        self._steps = 0
        self.admissible = self._admissible()
        task = self.game.task
        told = task if isinstance(task, str) else task(self.world, self.state)
        return self._observe(), {"task": told, "admissible_actions": self.admissible}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do one of the admissible actions."""
        if action not in self.admissible:
            now = f"admissible: {', '.join(self.admissible)}" if self.admissible else "it is not running: reset it"
            raise EnvironmentFault(f"toy_text:{self.task} cannot do {action!r} now, {now}")
        self.state, reward, terminated, _, _ = self.world.step(self.actions.index(action))
        self._steps += 1
        truncated = not terminated and self._steps >= self.game.cap
        if terminated or truncated:
            self.admissible = ()
            # CliffWalking ends at its goal alone, with a reward of -1 like any other step.
            success = terminated and (reward > 0 or self.task == "CliffWalking")
            info: dict[str, Any] = {"success": bool(success)}
        else:
            self.admissible = self._admissible()
            info = {"admissible_actions": self.admissible}
        return self._observe(), float(reward) / self.game.scale, bool(terminated), truncated, info

    def close(self) -> None:
        """Nothing is held."""

    def expert_action(self) -> str:
        """The best action by value iteration on the game's own dynamics; for Blackjack, the usual table."""
        if self.task == "Blackjack":
            total, dealer, ace = self.state
            stick = total >= 18 if ace else total >= 17 or (total >= 12 and 2 <= dealer <= 6)
            return "stick" if stick else "hit"
        if self._values is None:
            self._values = action_values(self.world.P)
        values = self._values[int(self.state)]
        return max(self.admissible, key=lambda action: values[self.actions.index(action)])

    def _observe(self) -> str:
        return self.game.observe(self.world, self.state, self.compact)

    def _admissible(self) -> tuple[str, ...]:
        if self.task == "Blackjack":
            return self.actions
        here = int(self.state)
        outcomes = self.world.P[here]
        return tuple(
            action
            for index, action in enumerate(self.actions)
            if any(after != here or ends for _, after, _, ends in outcomes[index])
        )


def action_values(dynamics: dict[int, dict[int, list[tuple[float, int, float, bool]]]]) -> dict[int, list[float]]:
    """Q by value iteration; `dynamics[state][action]` lists (probability, next state, reward, whether it ends)."""
    states, actions = sorted(dynamics), sorted(dynamics[0])
    width = max(len(dynamics[s][a]) for s in states for a in actions)
    shape = (len(states), len(actions), width)
    chance, after, reward, goes_on = np.zeros(shape), np.zeros(shape, int), np.zeros(shape), np.zeros(shape)
    for s in states:
        for a in actions:
            for k, (p, following, gained, ends) in enumerate(dynamics[s][a]):
                chance[s, a, k], after[s, a, k], reward[s, a, k], goes_on[s, a, k] = p, following, gained, not ends
    values = np.zeros(shape[:2])
    change = 1.0
    while change > 1e-9:
        best = values.max(axis=1)
        new = (chance * (reward + DISCOUNT * goes_on * best[after])).sum(axis=2)
        change, values = float(np.abs(new - values).max()), new
    return {s: values[s].tolist() for s in states}
