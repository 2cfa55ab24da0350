"""The words of BabyAI: observations, missions and the lexicon that holds them all.

Compact text has one token for each visible object with its place, nearest first, and repeats the goal last, where the
action is read: ``wall4 grey_ball@f2r0 red_door_open@f1l2 > red_ball``. The parts of a token are joined by ``_`` and
``@``, so that an embedding can start as the sum of its parts'. ``f2l1`` is two cells forward and one to the left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("blue", "green", "grey", "purple", "red", "yellow")
KINDS = ("ball", "box", "key", "door")
VIEW = 7
"""The agent sees 7x7 cells: 0 to 6 forward, up to 3 to each side."""
VERBS = {"go": "go to", "pick": "pick up", "open": "open", "put": "put"}

ACTIONS = {
    "token": ("left", "right", "forward", "pickup", "drop", "toggle"),
    "words": ("turn left", "turn right", "go forward", "pick up", "drop", "toggle"),
}
"""In minigrid's order."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """A verb and what it is about; (colour, kind), either of them None where it does not matter."""

    verb: str
    goals: tuple[tuple[str | None, str | None], ...]

    @property
    def words(self) -> str:
        """The goals, one word each: ``red_ball``, ``any_ball``, ``red_object``."""
        return " ".join(f"{colour or 'any'}_{kind or 'object'}" for colour, kind in self.goals)

    @property
    def compact(self) -> str:
        """The whole mission in compact text."""
        return f"{self.verb} {self.words}"

    def overlaps(self, other: Instruction) -> bool:
        """Whether one object could serve as the first goal of both."""
        pairs = zip(self.goals[0], other.goals[0], strict=True)
        return all(mine is None or its is None or mine == its for mine, its in pairs)


def state(thing: Any) -> str:
    """Of a door: open, closed or locked. Of anything else: nothing."""
    if thing.type != "door":
        return ""
    return "open" if thing.is_open else "locked" if thing.is_locked else "closed"


def name(colour: str, kind: str, state: str) -> str:
    """``red_ball``, ``red_door``, ``red_door_open``, ``red_door_locked``."""
    return f"{colour}_{kind}" if state in ("", "closed") else f"{colour}_{kind}_{state}"


def place(forward: int, right: int) -> str:
    """``f2r0``: two cells forward, none to the right."""
    return f"f{forward}{'l' if right < 0 else 'r'}{abs(right)}"


def compact(wall: int | None, seen: Sequence[tuple[int, int, Any]], told: Instruction) -> str:
    """The observation as compact text.

    `wall` is the distance of the nearest wall ahead; `seen` has (forward, right, thing), the carried one at (0, 0).
    """
    words = [] if wall is None else [f"wall{wall}"]
    for forward, right, thing in seen:
        what = name(thing.color, thing.type, state(thing))
        words.append(f"carry_{what}" if forward == right == 0 else f"{what}@{place(forward, right)}")
    return " ".join((*words, ">", told.words))


def steps(forward: int, right: int) -> str:
    """``2 steps forward and 1 step left``."""
    parts = ((forward, "forward"), (abs(right), "left" if right < 0 else "right"))
    return " and ".join(f"{n} step{'s' * (n > 1)} {where}" for n, where in parts if n)


def phrase(colour: str, kind: str, state: str) -> str:
    """``a red ball``, ``an open red door``."""
    return f"{'an' if state == 'open' else 'a'} {state + ' ' if state else ''}{colour} {kind}"


def plain(wall: int | None, seen: Sequence[tuple[int, int, Any]], sentence: str) -> str:
    """The observation in ordinary sentences, the mission last."""
    says = [] if wall is None else [f"You see a wall {steps(wall, 0)}."]
    for forward, right, thing in seen:
        what = phrase(thing.color, thing.type, state(thing))
        says.append(f"You carry {what}." if forward == right == 0 else f"You see {what} {steps(forward, right)}.")
    return " ".join((*(says or ["You see nothing."]), f"Task: {sentence}."))


def places() -> Iterable[tuple[int, int]]:
    """Every cell of the view but the agent's own, (forward, right)."""
    side = VIEW // 2
    return ((f, r) for f in range(VIEW) for r in range(-side, side + 1) if f or r)


def words(text: str, actions: str) -> tuple[str, ...]:
    """Every word that any level can say or be told, sorted."""
    doors = ("open", "closed", "locked")
    things = [(c, k, s) for c in COLOURS for k in KINDS for s in (doors if k == "door" else ("",))]
    pieces = list(ACTIONS[actions])
    if text == "compact":
        pieces += [f"wall{k}" for k in range(1, VIEW)]
        pieces += [f"{name(*thing)}@{place(*where)}" for thing in things for where in places()]
        pieces += [f"carry_{name(*thing)}" for thing in things if thing[1] != "door"]
        pieces += [*VERBS, ">"]
        pieces += [Instruction("", ((c, k),)).words for c in (None, *COLOURS) for k in (None, *KINDS)]
    else:
        pieces += ["You see nothing. You carry a wall Task: next to the a", *VERBS.values()]
        pieces += [f"{phrase(*thing)} {phrase(*thing)}." for thing in things]
        pieces += ["object object."]
        pieces += [f"{steps(*where)} {steps(*where)}." for where in places()]
    return tuple(sorted({word for piece in pieces for word in piece.split()}))
