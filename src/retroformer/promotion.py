"""Move the champion by hand: promote a version, or roll the last promotion back.

Both are one compare-and-swap of the pins: refused where another command moves them, or has moved them since this one
began. What the pins say is recorded with who decided it, why and on which evidence (`tracking.promotions`), and the
registry follows (`rounds.move`). The open round notices by itself: DVC runs again what had started from another pin.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retroformer.errors import ConfigError, DataError
from retroformer.pins import Pin, Pins, read_pins, verify
from retroformer.rounds import MOVED, PINS, commit, exclusively, git, move
from retroformer.tracking import aliases, promotions
from retroformer.tracking.promotions import Promotion
from retroformer.tracking.record import folder_of, read_records
from retroformer.tracking.versions import Version, find, named, version_of, versions_of


@dataclass(frozen=True, slots=True)
class Moved:
    """What a command did to the pins."""

    before: Pins
    after: Pins
    promotion: Promotion | None
    """None where nothing had to move."""
    versions: tuple[Version, ...]

    def sentence(self) -> str:
        """For people."""
        champion, goes_on = (named(pin, self.versions) for pin in (self.after.champion, self.after.train_from))
        if self.promotion is None:
            return f"{champion} is in production already; the registry agrees"
        was = named(self.before.champion, self.versions)
        return (
            f"{champion} is in production (it was {was}), decided by {self.promotion.by}: {self.promotion.reason}\n"
            f"training goes on from {goes_on}; round {self.after.round} is open, `dvc repro` runs it from there"
        )


def promote(
    version: str,
    root: Path = Path("."),
    *,
    reason: str,
    by: str = "",
    train_from: str = "",
    force: bool = False,
    commit: bool = False,
) -> Moved:
    """Put a version into production: a number, or `challenger` for the newest.

    Training goes on from it, unless `train_from` names another version. The verdict of the version's own round is its
    evidence, and is recorded with the reason and who decided; a version that the gate judged not better than the
    champion of its day is refused without `force`. Where the version is in production already, nothing moves but a
    registry that says otherwise.

    Raises DataError for an unknown or rejected version, one that is not here, or where the pins moved meanwhile;
    PinMismatch where its content, or the champion's, is not what was recorded.
    """
    with swapping(Path(root), by) as (root, who, pins, records):
        versions = tuple(versions_of(records))
        target = find(version, versions, pins)
        goes_on = find(train_from, versions, pins).pin if train_from else None
        if promotions.same(target.pin, pins.champion):
            after = replace(pins, train_from=goes_on or pins.train_from)
        else:
            verify(pins.champion, root)
            refuse_rejected(target, force)
            after = Pins(pins.closed_rounds, target.pin, goes_on or target.pin)
        decided = None
        if after != pins:
            evidence = promotions.evidence_of(target.record)
            forced = force and target.record["verdict"] == "keep"
            decided = promotions.decision("promote", pins, after, who, reason, evidence, forced=forced)
        return moved(root, pins, after, records, decided, commit, f"Promote version {target.number}")


def rollback(
    root: Path = Path("."),
    *,
    reason: str = "",
    by: str = "",
    train_from: str = "",
    expected: str = "",
    commit: bool = False,
) -> Moved:
    """Put back the champion before the last promotion, be it a version or the agent of the beginning.

    Training goes on from it (afresh where it is no checkpoint), unless `train_from` names a version: what was rolled
    back is not silently trained on. Again, and it goes back one promotion more; with `expected`, a version, only if
    that is in production, so that a program can repeat the command without going further.

    Raises DataError where there is nothing to go back to, `expected` is not in production, or the policy is not here;
    PinMismatch where its content is not what was recorded.
    """
    with swapping(Path(root), by) as (root, who, pins, records):
        versions = tuple(versions_of(records))
        if expected and not promotions.same(find(expected, versions, pins).pin, pins.champion):
            raise DataError(f"version {expected} is not in production, {named(pins.champion, versions)} is")
        earlier = promotions.champions(promotions.read(root), pins.champion)[:-1]
        if not earlier:
            raise DataError(
                f"{named(pins.champion, versions)} is the first champion that {promotions.JOURNAL} knows: "
                "there is nothing to roll back to"
            )
        target = earlier[-1]
        goes_on = find(train_from, versions, pins).pin if train_from else None if target.scripted else target
        after = Pins(pins.closed_rounds, target, goes_on)
        of_target = version_of(target, versions)
        evidence = promotions.evidence_of(of_target.record) if of_target else {}
        why = reason or f"rollback of {named(pins.champion, versions)}"
        decided = promotions.decision("rollback", pins, after, who, why, evidence)
        return moved(root, pins, after, records, decided, commit, f"Roll back to {named(target, versions)}")


def repair(root: Path = Path(".")) -> dict[str, str | None]:
    """Set the registry from the files: versions that it lacks, aliases that stand for something else.

    Returns the aliases that moved and the versions that they stand for now, None for none.
    """
    root = Path(root)
    with exclusively(root):
        pins = read_pins(root / PINS)
        return aliases.reconcile(root, pins, read_records(root, pins.closed_rounds))


@contextmanager
def swapping(root: Path, by: str) -> Iterator[tuple[Path, str, Pins, list[dict[str, Any]]]]:
    """Alone with the pins as they were when the command began; who decides, and the closed rounds.

    Raises DataError where they are not: another command won.
    """
    seen = read_pins(root / PINS)
    who = by.strip() or author(root)
    if who == promotions.GATE:
        raise ConfigError(f"--by {who}: that is what a closing signs with; expected a person or program")
    with exclusively(root):
        pins = read_pins(root / PINS)
        if pins != seen:
            raise DataError(
                f"another command moved the champion meanwhile, to {pins.champion.policy}; nothing was done: "
                "look at `retroformer models list` and decide again"
            )
        yield root, who, pins, read_records(root, pins.closed_rounds)


def author(root: Path) -> str:
    """Who decides, as git knows them."""
    try:
        name = git(root, "config", "user.name").strip()
    except DataError:
        name = ""
    if not name:
        raise ConfigError("who decides this? git has no user.name here; say --by NAME")
    return name


def refuse_rejected(version: Version, force: bool) -> None:
    """Raise DataError for a version that its gate has proven not better than the champion of its day."""
    if version.record["verdict"] == "keep" and not force:
        raise DataError(
            f"version {version.number} was rejected in round {version.record['round']}: {version.record['reason']} "
            "--force promotes it all the same, and is recorded"
        )


def moved(
    root: Path,
    before: Pins,
    after: Pins,
    records: list[dict[str, Any]],
    decided: Promotion | None,
    commit_it: bool,
    message: str,
) -> Moved:
    """Check that what the pins will name is here and sound, move them, and commit if that was asked for."""
    versions = tuple(versions_of(records))
    for pin in pins_of(after):
        version = version_of(pin, versions)
        verify(pin, root, recorded_in=f"{version.folder}/round.json" if version else str(promotions.JOURNAL))
    move(root, after, records, decided)
    if commit_it:
        closed = [f"{folder_of(number)}.dvc" for number in range(1, after.closed_rounds + 1)]
        commit(root, message, [path for path in (*map(str, MOVED), *closed) if (root / path).is_file()])
    return Moved(before, after, decided, versions)


def pins_of(pins: Pins) -> list[Pin]:
    """Both, once where they are the same."""
    return list(dict.fromkeys(pin for pin in (pins.champion, pins.train_from) if pin is not None))
