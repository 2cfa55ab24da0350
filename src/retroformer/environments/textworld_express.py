"""TextWorldExpress (Jansen & Côté 2022, arXiv 2208.01174): eight text games with official splits and gold paths.

The task is the game, with its default size. Official splits: `retroformer.environments.splits.official`. A step's
reward is what it changed of the game's score, which is in 0..1, and below 0 where a wrong move ends some of the games.
The action ``task`` is left out: it repeats the mission, which is told already and may be swapped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from textworld_express import GAME_NAMES, TextWorldExpressEnv  # pyright: ignore[reportMissingImports]

from retroformer.environments.java import share
from retroformer.environments.splits import official
from retroformer.errors import EnvironmentFault

MAX_STEPS = 50
"""As in the paper."""
REPEATS_THE_MISSION = "task"
INTERFACE = "textworldexpress.runtime.PythonInterface"


def known() -> tuple[str, ...]:
    """The games."""
    return tuple(GAME_NAMES)


def make(task: str) -> TextWorldExpress:
    """One of the games that `known` names."""
    return TextWorldExpress(task)


@lru_cache
def instances(task: str) -> tuple[list[tuple[str, int]], ...]:
    """The game's own seeds for training, development and test, each with the name of its fold."""
    game = share(TextWorldExpressEnv, INTERFACE)
    game.load(task, "")
    folds = {"train": game.getValidSeedsTrain(), "dev": game.getValidSeedsDev(), "test": game.getValidSeedsTest()}
    return tuple([(fold, seed) for seed in seeds] for fold, seeds in folds.items())


class TextWorldExpress:
    """A game as a TextEnvironment, see `retroformer.environments.protocol`."""

    def __init__(self, task: str):
        self.task = task
        self.family = "textworld-express"
        self.game: Any = share(TextWorldExpressEnv, INTERFACE)
        self.game.envStepLimit = 10 * MAX_STEPS  # the limit is ours, so that reaching it can be told from losing
        self.game.load(task, "")
        self.admissible: tuple[str, ...] = ()

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`; the observation is the look of the first room."""
        self._fold, self._seed = official(seed, *instances(self.task))
        self._actions: list[str] = []
        self._gold: list[str] | None = None
        observation, info = self.game.reset(seed=self._seed, gameFold=self._fold)
        self.admissible = admissible(info)
        return tidy(observation), {"task": info["taskDescription"], "admissible_actions": self.admissible}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do one of the admissible actions."""
        if action not in self.admissible:
            now = f"admissible: {', '.join(self.admissible)}" if self.admissible else "it is not running: reset it"
            raise EnvironmentFault(f"textworld-express:{self.task} cannot do {action!r} now, {now}")
        observation, reward, terminated, info = self.game.step(action)
        self._actions.append(action)
        truncated = not terminated and len(self._actions) >= MAX_STEPS
        if terminated or truncated:
            self.admissible = ()
            result: dict[str, Any] = {"success": bool(info["tasksuccess"]), "score": info["score"]}
        else:
            self.admissible = admissible(info)
            result = {"admissible_actions": self.admissible}
        return tidy(observation), float(reward), bool(terminated), truncated, result

    def close(self) -> None:
        """The Java machine is shared and ends with the process."""

    def expert_action(self) -> str | None:
        """The next action of the game's gold path, as long as nothing else was done."""
        if self._gold is None:
            if self._actions:
                return None
            self.game.reset(seed=self._seed, gameFold=self._fold, generateGoldPath=True)
            self._gold = [action for action in self.game.getGoldActionSequence() if action != REPEATS_THE_MISSION]
        done = len(self._actions)
        on_path = self._actions == self._gold[:done] and done < len(self._gold)
        return self._gold[done] if on_path and self._gold[done] in self.admissible else None


def admissible(info: dict[str, Any]) -> tuple[str, ...]:
    """The valid actions, sorted: the simulator lists them in the order of a hash."""
    return tuple(sorted(set(info["validActions"]) - {REPEATS_THE_MISSION}))


def tidy(observation: str) -> str:
    """The observation on one line."""
    return " ".join(observation.split())
