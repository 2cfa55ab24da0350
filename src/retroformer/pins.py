"""``data/champion.json``: which policy is in production, and which one to train on from.

A pin is a path that git and the DVC remote alone can bring back (or a ``scripted:`` name), with its content
hash. A stage refuses a policy whose hash differs from its pin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retroformer.errors import DataError, PinMismatch
from retroformer.files import hash_directory, read_json, write_json

SCRIPTED = "scripted:"


@dataclass(frozen=True, slots=True)
class Pin:
    """A policy and the hash of its content."""

    policy: str
    """``scripted:NAME?key=value`` or a checkpoint folder, relative to the project's root."""
    hash: str
    uri: str = ""
    """Registry URI, for information."""

    @property
    def scripted(self) -> bool:
        """Whether it is an agent without a checkpoint."""
        return self.policy.startswith(SCRIPTED)

    @property
    def version(self) -> str:
        """What trajectories record as their behaviour policy."""
        return self.policy if self.scripted else self.hash[:16]


@dataclass(frozen=True, slots=True)
class Pins:
    """The two pins and the number of rounds that are closed."""

    closed_rounds: int
    champion: Pin
    train_from: Pin | None

    @property
    def round(self) -> int:
        """The round that is open, from 1."""
        return self.closed_rounds + 1

    @property
    def start(self) -> Pin | None:
        """The checkpoint that training goes on from; None where it starts afresh."""
        return self.train_from or (None if self.champion.scripted else self.champion)


def policy_hash(policy: str, root: Path = Path(".")) -> str:
    """SHA-256 of a checkpoint folder's content, or of the name of a scripted agent."""
    if policy.startswith(SCRIPTED):
        return hashlib.sha256(policy.encode()).hexdigest()
    return hash_directory(Path(root) / policy)


def first_pins(agent: str) -> Pins:
    """Those of a project in which no round is closed yet; `agent` is ``scripted:NAME?key=value``."""
    return Pins(0, Pin(agent, policy_hash(agent)), None)


def read_pins(path: Path = Path("data/champion.json")) -> Pins:
    """Read the lockfile. Raises DataError that says what is missing from it or is not what it should be."""
    value = read_json(path)
    wrong = _wrong_keys("it", value, ("closed_rounds", "champion", "train_from"))
    for name in ("champion", "train_from"):
        if not wrong and (name == "champion" or value[name] is not None):
            wrong = _wrong_keys(name, value[name], ("policy", "hash"), ("uri",))
    if wrong:
        raise DataError(f"{path} is not a lockfile of pins (closed_rounds, champion, train_from): {wrong}")
    champion, start = value["champion"], value["train_from"]
    pins = Pins(value["closed_rounds"], Pin(**champion), None if start is None else Pin(**start))
    if type(pins.closed_rounds) is not int or pins.closed_rounds < 0:
        raise DataError(f"{path}: closed_rounds is {pins.closed_rounds!r}, expected a whole number from 0")
    for name, pin in (("champion", pins.champion), ("train_from", pins.train_from)):
        for field, found in asdict(pin).items() if pin else ():
            if not isinstance(found, str) or (field == "policy" and not found):
                raise DataError(f"{path}: {name}.{field} is {found!r}, expected text")
    return pins


def _wrong_keys(what: str, value: Any, needed: Sequence[str], allowed: Sequence[str] = ()) -> str:
    if not isinstance(value, dict):
        return f"{what} is {value!r}, expected an object with {', '.join(needed)}"
    missing = [key for key in needed if key not in value]
    unknown = [key for key in value if key not in (*needed, *allowed)]
    return f"{what} lacks {', '.join(missing)}" if missing else f"{what} has {', '.join(unknown)}" if unknown else ""


def write_pins(path: Path, pins: Pins) -> None:
    """Write the lockfile whole or not at all."""
    value: dict[str, Any] = asdict(pins)
    write_json(path, value)


def verify(pin: Pin, root: Path = Path("."), *, recorded_in: str = "data/champion.json") -> Pin:
    """The pin, if the policy that it names is there and has the pinned content; `recorded_in` says who pins it.

    Raises PinMismatch with got and expected, DataError where the folder is missing.
    """
    if not pin.scripted and not (Path(root) / pin.policy).is_dir():
        raise DataError(f"{pin.policy}, which {recorded_in} pins, does not exist; try `dvc pull`")
    found = policy_hash(pin.policy, root)
    if found != pin.hash:
        raise PinMismatch(
            f"{pin.policy} has hash {found[:16]}, {recorded_in} pins {pin.hash[:16]}: "
            "the policy or the pin was edited; restore it with `git checkout` or `dvc checkout`"
        )
    return pin
