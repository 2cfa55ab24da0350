"""The record of promotions, and what a rollback goes back to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from retroformer.errors import DataError
from retroformer.pins import Pin, Pins
from retroformer.tracking import promotions
from retroformer.tracking.promotions import Promotion, champions, standing

SCRIPT, A, B, C = Pin("scripted:bot", "s"), Pin("a", "1"), Pin("b", "2"), Pin("c", "3")


def moved(action: str, before: Pin, after: Pin) -> Promotion:
    made = promotions.decision("promote", Pins(0, before, None), Pins(0, after, after), "me", "why", {})
    return replace(made, action=action)


def promote(before: Pin, after: Pin) -> Promotion:
    return moved("promote", before, after)


def back(before: Pin, after: Pin) -> Promotion:
    return moved("rollback", before, after)


@pytest.mark.parametrize(
    ("lines", "current", "expected"),
    [
        ([], A, [A]),
        ([promote(SCRIPT, A)], A, [SCRIPT, A]),
        ([promote(SCRIPT, A), promote(A, B)], B, [SCRIPT, A, B]),
        ([promote(SCRIPT, A), promote(A, B), back(B, A)], A, [SCRIPT, A]),
        ([promote(SCRIPT, A), promote(A, B), back(B, A), back(A, SCRIPT)], SCRIPT, [SCRIPT]),
        ([promote(SCRIPT, A), promote(A, B), back(B, A), promote(A, C)], C, [SCRIPT, A, C]),
        ([promote(SCRIPT, A), promote(A, B), promote(B, A)], A, [SCRIPT, A, B, A]),
        ([promote(SCRIPT, A), promote(A, B), promote(B, A), back(A, B)], B, [SCRIPT, A, B]),
        # Killed before the pins moved, and not repeated: the line has no effect.
        ([promote(SCRIPT, A), promote(A, B)], A, [SCRIPT, A]),
        ([promote(SCRIPT, A), promote(A, B), promote(A, C)], C, [SCRIPT, A, C]),
        ([promote(SCRIPT, A), back(A, SCRIPT)], A, [SCRIPT, A]),
        # Pinned by hand, before and after a line.
        ([promote(SCRIPT, A)], C, [SCRIPT, A, C]),
        ([promote(SCRIPT, A), promote(C, B)], B, [SCRIPT, A, C, B]),
    ],
)
def test_where_rollbacks_lead_back_to(lines: list[Promotion], current: Pin, expected: list[Pin]) -> None:
    assert champions(lines, current) == expected


def test_who_made_the_champion_what_it_is() -> None:
    first, second, undone = promote(SCRIPT, A), promote(A, B), back(B, A)
    assert standing([], A) is None
    assert standing([first, second], B) is second
    assert standing([first, second, undone], A) is undone
    assert standing([first, second], A) is first, "the second was killed before the pins moved"
    assert standing([first], C) is None, "pinned by hand"


def test_lines_come_back_as_they_were_and_a_repeated_one_is_one(tmp_path: Path) -> None:
    assert promotions.read(tmp_path) == []
    first, second = replace(promote(SCRIPT, A), evidence={"lower": 0.1}), promote(A, B)
    for line in (first, second, replace(second, at="later")):
        promotions.append(tmp_path, line)
    assert promotions.read(tmp_path) == [first, second]
    promotions.append(tmp_path, back(B, A))
    promotions.append(tmp_path, second)
    assert len(promotions.read(tmp_path)) == 4


@pytest.mark.parametrize("line", ["{", "[]", '{"action": "promote"}', '"x"'])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    promotions.append(tmp_path, promote(SCRIPT, A))
    with (tmp_path / promotions.JOURNAL).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"data/promotions.jsonl, line 2, is no record of a promotion"):
        promotions.read(tmp_path)
