"""``data/promotions.jsonl``: every move of the champion, a JSON object a line: who decided it, why, on which evidence.

Lines are only ever added. A line is written just before the pins move, so no move lacks its line; the line of a command
that was killed in between shows no effect in the pins, and `champions` passes over it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from retroformer.errors import DataError
from retroformer.files import write_text
from retroformer.pins import Pin, Pins
from retroformer.tracking.record import folder_of

JOURNAL = Path("data/promotions.jsonl")
GATE = "gate"
"""Who decided what closing a round promotes."""
MEASURED = ("round", "model_version", "verdict", "reason", "difference", "lower", "upper", "n", "dataset_hash")


@dataclass(frozen=True, slots=True)
class Promotion:
    """The champion moved, by a promotion or by the rollback of one."""

    action: Literal["promote", "rollback"]
    before: Pin
    after: Pin
    train_from: str | None
    """The policy that training went on from afterwards; None afresh."""
    by: str
    """`gate`, or a person or program by its name."""
    reason: str
    evidence: dict[str, Any]
    """What the round that made `after` measured of it, and against which champion; empty for an agent of no round."""
    forced: bool
    """Against the gate's verdict."""
    at: str
    """UTC, ISO 8601."""


def decision(
    action: Literal["promote", "rollback"],
    before: Pins,
    after: Pins,
    by: str,
    reason: str,
    evidence: dict[str, Any],
    *,
    forced: bool = False,
) -> Promotion:
    """The line for a move from `before` to `after` that is decided now."""
    goes_on = None if after.train_from is None else after.train_from.policy
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Promotion(action, before.champion, after.champion, goes_on, by, reason, evidence, forced, at)


def same(one: Pin, other: Pin) -> bool:
    """Whether two pins are of the same policy; their URIs inform only."""
    return (one.policy, one.hash) == (other.policy, other.hash)


def evidence_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a closed round says of the policy that it made."""
    report = (folder_of(record["round"]) / "decision/report.html").as_posix()
    return {key: record[key] for key in MEASURED} | {"against": record["champion"]["policy"], "report": report}


def read(root: Path) -> list[Promotion]:
    """All lines, the oldest first. Raises DataError with the line that is none."""
    path = root / JOURNAL
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            pins = {key: Pin(**value[key]) for key in ("before", "after")}
            found.append(Promotion(**{**value, **pins}))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{JOURNAL}, line {number}, is no record of a promotion: {error}") from None
    return found


def append(root: Path, promotion: Promotion) -> None:
    """Add a line, unless the last one says the same: then this is a killed command, repeated."""
    earlier = read(root)
    if earlier and replace(earlier[-1], at=promotion.at) == promotion:
        return
    line = json.dumps(asdict(promotion), sort_keys=True, allow_nan=False)
    text = (root / JOURNAL).read_text(encoding="utf-8") if earlier else ""
    write_text(root / JOURNAL, f"{text}{line}\n")


def champions(promotions: Sequence[Promotion], current: Pin) -> list[Pin]:
    """Where one rollback after another leads back to: the oldest champion first, `current` last.

    A promotion puts its policy on top, a rollback takes the top away. A champion that was pinned by hand, which no line
    tells of, is one more below the next line's.
    """
    stack: list[Pin] = []
    next_champions = [*(one.before for one in promotions), current][1:]
    for promotion, next_champion in zip(promotions, next_champions, strict=True):
        put(stack, promotion.before)
        if same(next_champion, promotion.before):
            continue  # killed before the pins moved
        if promotion.action == "rollback":
            while stack and not same(stack[-1], promotion.after):
                stack.pop()
        put(stack, promotion.after)
    put(stack, current)
    return stack


def put(stack: list[Pin], pin: Pin) -> None:
    """On top, unless it is there."""
    if not stack or not same(stack[-1], pin):
        stack.append(pin)


def standing(promotions: Sequence[Promotion], champion: Pin) -> Promotion | None:
    """The line that made `champion` the champion; None where it was pinned by hand or is the first."""
    last = promotions[-1] if promotions else None
    if last is not None and same(last.before, champion) and not same(last.after, champion):
        return standing(promotions[:-1], champion)  # killed before the pins moved
    return last if last is not None and same(last.after, champion) else None
