"""Where an imported run's outcome is read: a reward, a success flag, an assessment, or the user's own function.

A missing outcome is not a failure: it is UNKNOWN, kept, and usable for nothing that needs a reward.
"""

from __future__ import annotations

import difflib
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from retroformer.errors import ConfigError
from retroformer.importers.records import Rejected
from retroformer.types import Outcome, Trajectory

WORDS = {
    **dict.fromkeys(("true", "yes", "pass", "passed", "success", "succeeded", "correct", "resolved"), True),
    **dict.fromkeys(("false", "no", "fail", "failed", "failure", "incorrect", "unresolved"), False),
}
"""How a success is said in words."""
MISSING = object()
MOST_NAMES = 128
"""Names of other fields that are kept, for each that is missing."""
NAMED = 8
"""Names that are told where none is near."""


class Verdict(NamedTuple):
    """How a run ended, and what that is worth."""

    outcome: Outcome
    reward: float = 0.0


@dataclass(slots=True)
class Looked:
    """What was found under the names that a rule has, so that one which is in no record can be told."""

    found: set[str] = field(default_factory=set)
    """``reward:FIELD`` and the like."""
    others: dict[str, set[str]] = field(default_factory=dict)
    """Of a name that some record lacks: names that such records have."""

    def taken(self, hidden: Callable[[str], str]) -> Looked:
        """What was noted, to be told of through `hidden`; it is forgotten here."""
        taken = Looked(self.found, {name: set(map(hidden, others)) for name, others in self.others.items()})
        self.found, self.others = set(), {}
        return taken

    def add(self, other: Looked) -> None:
        """What was found elsewhere, too."""
        self.found |= other.found
        for name, others in other.others.items():
            known = self.others.setdefault(name, set())
            known.update(sorted(others)[: MOST_NAMES - len(known)])

    def missing(self) -> list[str]:
        """A sentence for each name that is in no record, with the nearest of those that are."""
        told = []
        for name, others in self.others.items():
            if name in self.found:
                continue
            wanted = name.partition(":")[2]
            by_last = {one.rpartition(".")[2]: one for one in sorted(others, reverse=True)}
            near = difflib.get_close_matches(wanted, sorted(others), 3)
            near += [by_last[one] for one in difflib.get_close_matches(wanted.rpartition(".")[2], sorted(by_last), 3)]
            shown = ", ".join([*dict.fromkeys(near)][:3] or sorted(others)[:NAMED]) or "none"
            told.append(f"{name} is in no record; {'the nearest' if near else 'the names'} that there are: {shown}")
        return told


@dataclass(frozen=True, slots=True)
class OutcomeRule:
    """How a run's outcome is found. With none of the four, the fields ``success`` and ``reward`` are looked for.

    A reward above 0 is a success unless `success`, `assessment` or `function` says otherwise; a success without a
    reward of its own is worth 1, a failure 0.
    """

    reward: str = ""
    """Field of the record, dotted where it is nested."""
    success: str = ""
    assessment: str = ""
    """Name of an assessment (of a trace, say): a truth value, or a number taken as the reward."""
    function: str = ""
    """``package.module:function``, from a trajectory to an Outcome, a reward, a truth value or None."""
    lowest: float = -math.inf
    highest: float = math.inf
    """Range of rewards that is believed."""
    looked: Looked = field(default_factory=Looked, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.function and (self.reward or self.success or self.assessment):
            raise ConfigError(f"outcomes by {self}: expected fields to read, or a function alone")
        if not self.lowest <= self.highest:
            raise ConfigError(f"rewards from {self.lowest:g} to {self.highest:g}: expected the smaller number first")

    def __str__(self) -> str:
        return " ".join([*self._named(), *([self.function] if self.function else [])])

    def _named(self) -> list[str]:
        named = (("reward", self.reward), ("success", self.success), ("assessment", self.assessment))
        return [f"{kind}:{name}" for kind, name in named if name]

    def judge(
        self, fields: dict[str, Any], assessments: dict[str, Any], trajectory: Callable[[], Trajectory]
    ) -> Verdict:
        """The outcome and the reward. Raises Rejected where the log has one that cannot be believed."""
        if self.function:
            return self._verdict(self._called(trajectory()), f"what {self.function} returns")
        named = self.reward or self.success or self.assessment
        if named:
            self._look(fields, assessments)
        reward_field, success_field = (self.reward, self.success) if named else ("reward", "success")
        reward = look_up(fields, reward_field)
        number = None if reward is MISSING or reward is None else self._number(reward, reward_field)
        truth = look_up(fields, success_field)
        if truth is MISSING or truth is None:
            truth = assessments.get(self.assessment) if self.assessment else None
        if truth is None:
            return Verdict(Outcome.UNKNOWN) if number is None else self._verdict(number, reward_field)
        said = self._verdict(truth, success_field or f"assessment {self.assessment}")
        return Verdict(said.outcome, number) if number is not None else said

    def _look(self, fields: dict[str, Any], assessments: dict[str, Any]) -> None:
        looked = self.looked
        for one in self._named():
            if one in looked.found:
                continue
            kind, _, name = one.partition(":")
            value = assessments.get(name) if kind == "assessment" else look_up(fields, name)
            if value is not MISSING and value is not None:
                looked.found.add(one)
            elif len(others := looked.others.setdefault(one, set())) < MOST_NAMES:
                others.update(assessments if kind == "assessment" else names_in(fields))

    def check(self, reward: float, name: str) -> None:
        """Raise Rejected where a reward is outside of the stated range."""
        if not self.lowest <= reward <= self.highest:
            raise Rejected("reward_out_of_range", f"{name} is {reward:g}, expected {self.lowest:g} to {self.highest:g}")

    def _verdict(self, value: Any, name: str) -> Verdict:
        if isinstance(value, Outcome):
            return Verdict(value, 1.0 if value is Outcome.SUCCESS else 0.0)
        if value is None:
            return Verdict(Outcome.UNKNOWN)
        if isinstance(value, str):
            if value.strip().lower() not in WORDS:
                raise Rejected("success_not_a_truth_value", f"{name} is {value[:80]!r}, expected true or false")
            value = WORDS[value.strip().lower()]
        number = float(value) if isinstance(value, bool) else self._number(value, name)
        return Verdict(Outcome.SUCCESS if number > 0 else Outcome.FAILURE, number)

    def _number(self, value: Any, name: str) -> float:
        number = finite(value, "reward", name)
        if not self.lowest <= number <= self.highest:
            raise Rejected("reward_out_of_range", f"{name} is {number:g}, expected {self.lowest:g} to {self.highest:g}")
        return number

    def _called(self, trajectory: Trajectory) -> Any:
        try:
            return imported(self.function)(trajectory)
        except ConfigError:
            raise
        except Exception as error:  # the user's own code, on one record
            raise Rejected("outcome_function_failed", f"{type(error).__name__}: {error}") from None


@cache
def imported(name: str) -> Callable[[Trajectory], Any]:
    """The user's function; modules of the working folder are found. Raises ConfigError."""
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name} is not a function to import: {error}; expected package.module:function") from None
    if not callable(found):
        raise ConfigError(f"{name} is a {type(found).__name__}, expected a function from a trajectory to its outcome")
    return found


def parse_rule(text: str, *believed: float) -> OutcomeRule:
    """The rule that words like ``reward:score success:passed`` or ``package.module:function`` write.

    `believed` are the smallest and the largest reward, if they are bounded. Raises ConfigError for anything else.
    """
    found: dict[str, Any] = {}
    for word in text.split():
        kind, colon, name = word.partition(":")
        if not colon or not name:
            raise ConfigError(
                f"outcome {word!r} is none of reward:FIELD, success:FIELD, assessment:NAME, package.module:function"
            )
        if kind in ("reward", "success", "assessment"):
            found[kind] = name
        else:
            imported(word)
            found["function"] = word
    if believed:
        found["lowest"], found["highest"] = believed
    return OutcomeRule(**found)


def look_up(fields: dict[str, Any], name: str) -> Any:
    """The value of a field, whose dots may be its own or lead into nested ones; MISSING where there is none."""
    if not name:
        return MISSING
    value: Any = fields
    while True:
        if isinstance(value, dict) and name in value:
            return value[name]
        first, dot, name = name.partition(".")
        if not dot or not isinstance(value, dict) or first not in value:
            return MISSING
        value = value[first]


def names_in(fields: dict[str, Any], depth: int = 3) -> Iterator[str]:
    """Names of the values that could be an outcome, dotted where they are nested."""
    for name, value in fields.items():
        if isinstance(value, dict) and depth > 1:
            yield from (f"{name}.{one}" for one in names_in(value, depth - 1))
        elif isinstance(value, (bool, int, float, str)):
            yield str(name)


def finite(value: Any, kind: str, name: str) -> float:
    """A finite number. Raises Rejected: ``reward_not_a_number``, ``reward_not_finite``, or of another kind."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Rejected(f"{kind}_not_a_number", f"{name} is {str(value)[:80]!r} ({type(value).__name__})")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Rejected(f"{kind}_not_finite", f"{name} is {number}")
    return number
