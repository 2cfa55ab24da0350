"""BabyAI on minigrid, told in words (after BabyAI-Text, Carta et al. 2023, arXiv 2302.02662).

Two families. ``babyai`` is minigrid's levels as they are, named without ``BabyAI-`` and ``-v0``. ``strict`` is made of
minigrid's own parts so that wandering fails, because the wrong object ends the episode: ``P6N3`` is one room of 6x6
cells, walls included, with 3 unique objects, one to be picked up; ``D6N4`` has 4 doors of distinct colours, one to be
opened. Every level has a step cap of about twice what the expert needs.

The words are in `babyai_text`; here is what happens.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import gymnasium
import minigrid  # noqa: F401  registers the levels
from gymnasium.envs.registration import load_env_creator
from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_NAMES, DIR_TO_VEC
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall
from minigrid.envs.babyai.core import roomgrid_level, verifier
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.utils.baby_ai_bot import BabyAIBot

from retroformer.environments.babyai_text import ACTIONS, COLOURS, Instruction, compact, plain
from retroformer.environments.babyai_text import words as lexicon
from retroformer.errors import EnvironmentFault

__all__ = ["BabyAI", "known", "lexicon", "make"]

# minigrid prints a line for every level that it draws and rejects.
roomgrid_level.__dict__["print"] = lambda *_: None

CAPS = {
    "GoToObjS4": 8,
    "GoToObj": 14,
    "GoToLocalS5N2": 14,
    "GoToLocalS6N2": 14,
    "GoToLocalS6N3": 14,
    "GoToLocalS6N4": 14,
    "GoToLocalS7N4": 16,
    "GoToLocalS7N5": 16,
    "GoToLocalS8N2": 18,
    "GoToLocalS8N3": 18,
    "GoToLocalS8N4": 18,
    "GoToLocalS8N5": 18,
    "GoToLocalS8N6": 18,
    "GoToLocalS8N7": 18,
    "GoToLocal": 18,
    "GoToRedBallGrey": 20,
    "GoToRedBall": 20,
    "GoToRedBallNoDists": 16,
    "GoToDoor": 14,
    "GoToObjDoor": 18,
    "OpenRedDoor": 12,
    "OpenDoorColor": 20,
    "PickupDist": 14,
    "PutNextLocalS5N3": 18,
    "PutNextLocalS6N4": 20,
    "PutNextLocal": 28,
    "PutNextS4N1": 20,
    "PutNextS5N1": 24,
    "PutNextS5N2": 28,
}
"""Most steps of minigrid's own levels, about twice the expert's usual length."""

STRICT = re.compile(r"([PD])([5-9])N([2-6])")
MOVES = (Actions.left, Actions.right, Actions.forward, Actions.pickup, Actions.drop, Actions.toggle)
VERBS = {
    verifier.GoToInstr: "go",
    verifier.PickupInstr: "pick",
    verifier.OpenInstr: "open",
    verifier.PutNextInstr: "put",
}
DIRECTIONS = tuple((int(x), int(y)) for x, y in DIR_TO_VEC)
OUTSIDE = Wall()
PICKABLE = ("ball", "box", "key")


class PickOne(RoomGridLevel):
    """One room with unique objects; picking up the wrong one ends the episode."""

    def __init__(self, room_size: int, objects: int):
        self.objects = objects
        super().__init__(room_size=room_size, num_rows=1, num_cols=1)

    def gen_mission(self) -> None:
        """Draw agent, objects and mission."""
        self.place_agent()
        objects = self.add_distractors(num_distractors=self.objects, all_unique=True)
        self.check_objs_reachable()
        goal = self._rand_elem(objects)
        self.instrs = verifier.PickupInstr(verifier.ObjDesc(goal.type, goal.color), strict=True)


class OpenOne(RoomGridLevel):
    """One room with doors of distinct colours; opening the wrong one ends the episode.

    The rooms around it are there because minigrid's expert plans through doors.
    """

    def __init__(self, room_size: int, doors: int):
        self.doors = doors
        super().__init__(room_size=room_size, num_rows=3, num_cols=3)

    def gen_mission(self) -> None:
        """Draw doors, agent and mission."""
        colours = self._rand_subset(COLOR_NAMES, self.doors)
        sides = self._rand_subset(range(4), self.doors)
        for side, colour in zip(sides, colours, strict=True):
            self.add_door(1, 1, door_idx=side, color=colour, locked=False)
        self.place_agent(1, 1)
        self.instrs = verifier.OpenInstr(verifier.ObjDesc("door", self._rand_elem(colours)), strict=True)


class QuickView:
    """Mixed into a level: minigrid's own view, cell for cell, made once a step and not encoded as an image."""

    def gen_obs(self: Any) -> dict[str, Any]:
        """Look around; called by minigrid at the end of each reset and step. The text is made from `view`."""
        size = self.agent_view_size
        (ax, ay), there, width, height = self.agent_pos, self.grid.grid, self.grid.width, self.grid.height
        ax, ay = int(ax), int(ay)  # minigrid gives numpy's, whose sums are slow
        cells: list[Any] = []
        for right, down in around(size, self.agent_dir):
            x, y = ax + right, ay + down
            cells.append(there[y * width + x] if 0 <= x < width and 0 <= y < height else OUTSIDE)
        visible = see(cells, size)
        cells = [cell if seen else None for cell, seen in zip(cells, visible, strict=True)]
        cells[size * (size - 1) + size // 2] = self.carrying
        view = Grid(size, size)
        view.grid = cells
        self.view = view, np.array(visible).reshape(size, size).T
        return {}

    def gen_obs_grid(self: Any, agent_view_size: int | None = None) -> tuple[Grid, np.ndarray]:
        """The view, 7x7 cells with the agent below in the middle, and which of them it sees, by column and row."""
        return self.view


@lru_cache
def around(size: int, direction: int) -> tuple[tuple[int, int], ...]:
    """Where the cells of a view lie from the agent, by column and row of the grid; row by row from the farthest."""
    x, y = DIRECTIONS[direction]
    sides = range(-(size // 2), size // 2 + 1)
    return tuple((ahead * x - side * y, ahead * y + side * x) for ahead in range(size - 1, -1, -1) for side in sides)


def see(cells: list[Any], size: int) -> list[bool]:
    """Which cells of a view are seen, row by row from the farthest: sight spreads sideways and forward.

    minigrid's own rule (``Grid.process_vis``), whose order of visits is part of it.
    """
    seen = [False] * (size * size)
    seen[size * (size - 1) + size // 2] = True
    clear = [cell is None or cell.see_behind() for cell in cells]
    for row in range(size * (size - 1), -1, -size):
        for columns, side in ((range(size - 1), 1), (range(size - 1, 0, -1), -1)):
            for column in columns:
                at = row + column
                if seen[at] and clear[at]:
                    seen[at + side] = True
                    if row:
                        seen[at + side - size] = seen[at - size] = True
    return seen


def known() -> tuple[str, ...]:
    """Task names, sorted."""
    sizes = range(5, 10)
    # More objects than a third of the free cells can hardly be laid out so that each can be reached.
    pick = (f"P{size}N{n}" for size in sizes for n in range(2, 7) if 3 * n <= (size - 2) ** 2)
    doors = (f"D{size}N{n}" for size in sizes for n in range(2, 5))
    return tuple(sorted((*CAPS, *pick, *doors)))


def make(task: str, text: str, actions: str) -> BabyAI:
    """One of the levels that `known` names."""
    return BabyAI(task, text, actions)


def build(task: str) -> tuple[Any, str, int]:
    """The bare minigrid level (no wrapper), its family and its step cap."""
    if match := STRICT.fullmatch(task):
        size, n = int(match[2]), int(match[3])
        base: Any = PickOne if match[1] == "P" else OpenOne
        arguments: dict[str, Any] = {"room_size": size, "objects" if match[1] == "P" else "doors": n}
        family, cap = "strict", 16 + 4 * max(0, size - 6)
    else:
        spec = gymnasium.spec(f"BabyAI-{task}-v0")
        base, arguments = load_env_creator(str(spec.entry_point)), spec.kwargs
        family, cap = "babyai", CAPS[task]
    return type(base.__name__, (QuickView, base), {})(**arguments), family, cap


def read(instruction: Any) -> Instruction:
    """What minigrid's instruction asks for."""
    if isinstance(instruction, verifier.PutNextInstr):
        goals = (instruction.desc_move, instruction.desc_fixed)
    else:
        goals = (instruction.desc,)
    return Instruction(VERBS[type(instruction)], tuple((goal.color, goal.type) for goal in goals))


class BabyAI:
    """A level as a TextEnvironment, see `retroformer.environments.protocol`."""

    def __init__(self, task: str, text: str = "compact", actions: str = "token"):
        self.task = task
        self.text = text
        self.actions = ACTIONS[actions]
        self.level, self.family, self.cap = build(task)
        self._others: Any = None
        self._running = False

    def reset(self, *, seed: int, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start episode `seed`; ``info["mission"]`` says what the mission became.

        ``other`` becomes ``shuffled`` where nothing else is there, and ``shuffled`` becomes ``invented``, another
        colour, in a level that has one mission only.
        """
        mission = (options or {}).get("mission", "true")
        if mission not in ("true", "shuffled", "other"):
            raise EnvironmentFault(f"option mission is {mission!r}, allowed: true, shuffled, other")
        self.level.reset(seed=seed)
        self.true = read(self.level.instrs)
        self._told, self._sentence, mission = self._tell(mission, seed)
        self._steps, self._last, self._running = 0, None, True
        self._bot: Any = None
        self._expert: tuple[int, str | None] = (-1, None)
        self.admissible = self._admissible()
        task = self._sentence if self.text == "plain" else self._told.compact
        return self._observe(), {"task": task, "admissible_actions": self.admissible, "mission": mission}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do one of the admissible actions. The reward is 1.0 for the step that solves the task, else 0.0."""
        if not self._running:
            raise EnvironmentFault(f"babyai:{self.task} is not running: reset it before a step")
        if action not in self.admissible:
            raise EnvironmentFault(
                f"babyai:{self.task} cannot do {action!r} now, admissible: {', '.join(self.admissible)}"
            )
        self._last = MOVES[self.actions.index(action)]
        _, reward, terminated, truncated, _ = self.level.step(self._last)
        self._steps += 1
        success = terminated and reward > 0
        truncated = not terminated and (truncated or self._steps >= self.cap)
        self._running = not (terminated or truncated)
        info: dict[str, Any] = {}
        if self._running:
            self.admissible = info["admissible_actions"] = self._admissible()
        else:
            info["success"] = success
        return self._observe(), float(success), terminated, truncated, info

    def close(self) -> None:
        """Nothing is held."""

    def expert_action(self) -> str | None:
        """What minigrid's expert would do now, for the true mission and after whatever was done so far.

        None where it does not know: it gives up, for instance, when a box was opened. Asked at every step it has seen
        what the agent saw; asked first in the middle it starts from what is in view.
        """
        if self._expert[0] != self._steps:
            self._expert = (self._steps, self._replan())
        return self._expert[1]

    def _replan(self) -> str | None:
        try:
            last = self._last
            if self._bot is None:
                self._bot, last = BabyAIBot(self.level), None
            action = self._bot.replan(last)
        except Exception:  # it raises several kinds, AssertionError among them, and none is the task's fault
            self._bot = None
            return None
        word = self.actions[MOVES.index(action)] if action in MOVES else None
        return word if word in self.admissible else None

    def _admissible(self) -> tuple[str, ...]:
        ahead, carrying = self.level.grid.get(*self.level.front_pos), self.level.carrying
        possible = (
            True,
            True,
            ahead is None or ahead.can_overlap(),
            ahead is not None and ahead.can_pickup() and carrying is None,
            ahead is None and carrying is not None,
            ahead is not None and ahead.type in ("door", "box"),
        )
        return tuple(action for action, can in zip(self.actions, possible, strict=True) if can)

    def _observe(self) -> str:
        grid, _ = self.level.gen_obs_grid()
        middle, agent = grid.width // 2, grid.height - 1
        seen = []
        for index, thing in enumerate(grid.grid):
            if thing is not None:
                row, column = divmod(index, grid.width)
                forward, right = agent - row, column - middle
                if thing.type != "wall":
                    seen.append((forward, right, thing))
        wall = next((k for k in range(1, grid.height) if is_wall(grid.get(middle, agent - k))), None)
        seen.sort(key=lambda one: (one[0] + abs(one[1]), one[0], one[1]))
        if self.text == "plain":
            return plain(wall, seen, self._sentence)
        return compact(wall, seen, self._told)

    def _tell(self, mission: str, seed: int) -> tuple[Instruction, str, str]:
        """What the agent is told: the instruction, minigrid's sentence for it, and which control it is."""
        if mission == "other" and (told := self._another_here(seed)):
            return read(told), told.surface(self.level), "other"
        if mission == "true":
            return self.true, self.level.mission, "true"
        if self._others is None:
            self._others = build(self.task)[0]
        for other_seed in np.random.SeedSequence(seed).generate_state(32):
            self._others.reset(seed=int(other_seed))
            told = read(self._others.instrs)
            if not told.overlaps(self.true):
                return told, self._others.mission, "shuffled"
        (colour, kind), *rest = self.true.goals
        if colour is None:
            raise EnvironmentFault(f"babyai:{self.task} has no mission other than {self.level.mission!r}")
        new = COLOURS[(COLOURS.index(colour) + 1 + seed % 5) % 6]
        return Instruction(self.true.verb, ((new, kind), *rest)), self.level.mission.replace(colour, new), "invented"

    def _another_here(self, seed: int) -> Any:
        """Another mission of the same verb and form about what is in the grid, or None."""
        kinds = {"pick": PICKABLE, "put": PICKABLE, "open": ("door",), "go": (*PICKABLE, "door")}[self.true.verb]
        (colour, kind), *rest = self.true.goals
        things = sorted({(thing.color, thing.type) for thing in self.level.grid.grid if thing and thing.type in kinds})
        forms = {(c if colour else None, k if kind else None) for c, k in things} - {(colour, kind)}
        if not forms:
            return None
        ordered = sorted(forms, key=str)
        new_colour, new_kind = ordered[seed % len(ordered)]
        goal = verifier.ObjDesc(new_kind, new_colour)
        if not rest:
            return type(self.level.instrs)(goal)
        beside = next(one for one in (rest[0], (colour, kind)) if one != (new_colour, new_kind))
        return verifier.PutNextInstr(goal, verifier.ObjDesc(beside[1], beside[0]))


def is_wall(thing: Any) -> bool:
    """Whether a cell holds a wall."""
    return thing is not None and thing.type == "wall"
