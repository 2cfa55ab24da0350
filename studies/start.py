"""The state before any round is closed: the agent that is in production, and the lockfile that says so.

Apart from the arms, so that who needs nothing else does not wait for the imports of training.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from retroformer import pins

PINS = Path("data/champion.json")
FIRST_AGENT = "scripted:babyai-bot?noise=0.7"


def first_pins(agent: str = FIRST_AGENT) -> dict[str, Any]:
    """A lockfile in which no round is closed yet."""
    return asdict(pins.first_pins(agent))
