"""TextWorld (Côté et al. 2018, arXiv 1806.11532): games that are generated and compiled here, without a download.

Compiling a game takes seconds, so there are `GAMES` for each split and task, which are kept in the user's cache and
compiled when they are first played; `retroformer.environments.splits.official` draws among them. Goals are brief: the
detailed ones tell the way. A step's reward is what it changed of the score, as a share of the best one. The expert is
TextWorld's own plan, which it has from wherever the agent is.
"""

# TextWorld is an extra, and of a part of it pyright sees nothing but the name.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import textworld  # pyright: ignore[reportMissingImports]
from textworld.challenges import CHALLENGES  # pyright: ignore[reportMissingImports]
from textworld.generator import compile_game  # pyright: ignore[reportMissingImports]
from textworld.generator.chaining import QuestGenerationError  # pyright: ignore[reportMissingImports]

from retroformer.environments.splits import official
from retroformer.errors import EnvironmentFault

MAX_STEPS = 50
TRIES, SPREAD = 20, 10_000
"""Seeds that are tried for a game, this far apart, so that no other game is met."""
GAMES = {"train": 64, "dev": 32, "test": 32}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"coin-collector-{level}": ("tw-coin_collector", {"level": level}) for level in (5, 10, 20)},
    **{f"treasure-hunter-{level}": ("tw-treasure_hunter", {"level": level}) for level in (5, 10)},
    "simple": ("tw-simple", {"rewards": "dense", "goal": "brief", "test": False}),
}
INFOS = textworld.EnvInfos(
    **dict.fromkeys(
        ("admissible_commands", "policy_commands", "won", "score", "max_score", "objective", "description"), True
    )
)


def known() -> tuple[str, ...]:
    """The challenges that TextWorld generates, with their levels."""
    return tuple(TASKS)


def make(task: str) -> TextWorld:
    """One of the challenges that `known` names."""
    return TextWorld(task)


def cache() -> Path:
    """Where compiled games are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "retroformer" / "textworld"


def compiled(task: str, number: int) -> Path:
    """The game's file, compiled if it is not there yet. Written whole or not at all, so that workers may race."""
    folder = cache() / f"{task}-{textworld.__version__}-{number}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            options = textworld.GameOptions()
            options.path = str(Path(made) / "new" / "game.z8")
            options.grammar.only_last_action = True
            compile_game(generated(task, number, options), options)
            try:
                os.rename(Path(made) / "new", folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder / "game.z8"


def generated(task: str, number: int, options: Any) -> Any:
    """The game that `number` names, or the first after it that can be: some seeds' maps have no room for the quest."""
    challenge, settings = TASKS[task]
    for attempt in range(TRIES):
        options.seeds = number + attempt * SPREAD
        try:
            return CHALLENGES[challenge][1](dict(settings), options)
        except QuestGenerationError:
            continue
    raise EnvironmentFault(
        f"textworld:{task} has no game for seeds {number}, {number + SPREAD}, ...: {TRIES} were tried"
    )


class TextWorld:
    """A challenge as a TextEnvironment, see `retroformer.environments.protocol`."""

    def __init__(self, task: str):
        self.task = task
        self.family = "textworld"
        self.admissible: tuple[str, ...] = ()
        self._game: Any = None

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`; the observation is the first room."""
        train, dev, test = (range(1000 * part, 1000 * part + size) for part, size in enumerate(GAMES.values(), 1))
        self.close()
        with warnings.catch_warnings():
            # jericho says that it does not know the score of a game that was not in its list; TextWorld does.
            warnings.filterwarnings("ignore", message=".*is not fully supported.*")
            self._game = textworld.start(str(compiled(self.task, official(seed, train, dev, test))), INFOS)
            self._state = self._game.reset()
        self._steps, self._share = 0, 0.0
        self.admissible = tuple(sorted(self._state.admissible_commands))
        told = {"task": tidy(self._state.objective), "admissible_actions": self.admissible}
        return tidy(self._state.description), told

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do one of the admissible actions."""
        if action not in self.admissible:
            now = f"admissible: {', '.join(self.admissible)}" if self.admissible else "it is not running: reset it"
            raise EnvironmentFault(f"textworld:{self.task} cannot do {action!r} now, {now}")
        self._state, _, terminated = self._game.step(action)
        self._steps += 1
        truncated = not terminated and self._steps >= MAX_STEPS
        share = self._state.score / self._state.max_score
        reward, self._share = share - self._share, share
        if terminated or truncated:
            self.admissible = ()
            info: dict[str, Any] = {"success": bool(self._state.won)}
        else:
            self.admissible = tuple(sorted(self._state.admissible_commands))
            info = {"admissible_actions": self.admissible}
        return tidy(self._state.feedback), reward, bool(terminated), truncated, info

    def close(self) -> None:
        """End the game's interpreter."""
        if self._game is not None:
            self._game.close()
            self._game = None

    def expert_action(self) -> str | None:
        """The first action of TextWorld's own plan from here."""
        plan = self._state.policy_commands
        return plan[0] if plan and plan[0] in self.admissible else None


def tidy(text: str) -> str:
    """A game's text on one line, without the interpreter's prompt and status."""
    return " ".join(text.partition("\n>")[0].split()) or "Nothing."
