"""``COLUMN=VALUE`` and its like: which trajectories are meant. All conditions must hold.

Columns are those of ``episodes.parquet``, `round`, and `text`, which is everything that was said: the task's
description, each observation, each action, the error.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from retroformer.errors import ConfigError
from retroformer.storage import EPISODES, STEPS, stream_table

SHAPE = re.compile(r"(?P<column>\w+)\s*(?P<sign>!=|<=|>=|=|<|>|~)\s*(?P<value>.*)", re.DOTALL)
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TEXT = "text"
SAID = ("description", "error", TEXT)
"""Columns whose values are what was said; a tombstone keeps a hash of what they were matched with."""
NUMBERS = {"round", *(field.name for field in EPISODES if not pa.types.is_string(field.type))}
COLUMNS = (*EPISODES.names, "round", TEXT)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on a trajectory."""

    column: str
    sign: str
    value: str
    allowed: frozenset[str] = frozenset()
    """What ``=@FILE`` has, one a line."""

    def holds(self, value: Any) -> bool:
        """Whether a value of the column satisfies it; what is missing satisfies ``!=`` alone."""
        if value is None:
            return self.sign == "!="
        if self.sign == "~":
            return re.search(self.value, value) is not None
        if self.allowed:
            return str(value) in self.allowed
        if self.sign in ORDER:
            return ORDER[self.sign](value, float(self.value))
        equal = value == float(self.value) if self.column in NUMBERS else value == self.value
        return equal == (self.sign == "=")

    def kept(self) -> str:
        """As a tombstone keeps it: without what may be the very thing that is to be forgotten."""
        if self.column not in SAID:
            return f"{self.column}{self.sign}{self.value}"
        return f"{self.column}{self.sign}sha256:{hashlib.sha256(self.value.encode()).hexdigest()}"


def parse(text: str) -> Condition:
    """A condition from ``COLUMN SIGN VALUE``; ``=@FILE`` is any of the file's lines. Raises ConfigError."""
    found = SHAPE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no condition; expected COLUMN, one of = != < <= > >= ~, and a value")
    column, sign, value = found["column"], found["sign"], found["value"]
    column = "trajectory_id" if column == "id" else column
    if column not in COLUMNS:
        raise ConfigError(f"{text!r}: no column {column}; known: id, {', '.join(COLUMNS[1:])}")
    if sign == "~":
        if column in NUMBERS:
            raise ConfigError(f"{text!r}: {column} is a number; compare it with = != < <= > >=")
        try:
            re.compile(value)
        except re.error as error:
            raise ConfigError(f"{text!r}: {value!r} is no regular expression: {error}") from None
        return Condition(column, sign, value)
    if column == TEXT or (sign in ORDER and column not in NUMBERS):
        raise ConfigError(
            f"{text!r}: {column} is text; compare it with ~ (a regular expression)"
            + ("" if column == TEXT else ", = or !=")
        )
    if value.startswith("@") and sign == "=":
        try:
            lines = frozenset(filter(None, Path(value[1:]).read_text(encoding="utf-8").splitlines()))
        except OSError as error:
            raise ConfigError(f"{text!r}: {value[1:]} cannot be read: {error.strerror}") from None
        if not lines:
            raise ConfigError(f"{text!r}: {value[1:]} holds no line")
        return Condition(column, sign, value, lines)
    if column in NUMBERS:
        try:
            float(value)
        except ValueError:
            raise ConfigError(f"{text!r}: {column} is a number, got {value!r}") from None
    return Condition(column, sign, value)


def matching(folder: Path, round_number: int, conditions: list[Condition]) -> dict[str, str]:
    """Id -> source of the trajectories of a folder that satisfy all conditions, in whatever state its rows are.

    Steps that no episode claims have an id, a round and text alone.
    """
    on_text = [re.compile(one.value) for one in conditions if one.column == TEXT]
    others = [one for one in conditions if one.column != TEXT]
    said: dict[str, set[int]] = {}

    def hear(id: str | None, *texts: str | None) -> None:
        if id is not None:
            heard = {n for n, pattern in enumerate(on_text) if any(text and pattern.search(text) for text in texts)}
            said.setdefault(id, set()).update(heard)

    if on_text:
        for batch in stream_table(folder / "steps.parquet", STEPS):
            for row in batch.to_pylist():
                hear(row["trajectory_id"], row["observation"], row["action"], *(row["admissible_actions"] or ()))
    found: dict[str, str] = {}
    claimed: set[str] = set()
    for batch in stream_table(folder / "episodes.parquet", EPISODES):
        for row in batch.to_pylist():
            id = row["trajectory_id"]
            if id is None:
                continue
            claimed.add(id)
            row["round"] = round_number
            hear(id, row["description"], row["error"])
            if len(said.get(id, ())) == len(on_text) and all(one.holds(row[one.column]) for one in others):
                found[id] = row["source"] or ""
    for id in said.keys() - claimed:
        row = {"trajectory_id": id, "round": round_number}
        if len(said[id]) == len(on_text) and all(one.column in row and one.holds(row[one.column]) for one in others):
            found[id] = ""
    return found
