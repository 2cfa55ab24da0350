"""What is known of how an episode ended, checked where it is said and not months later where it is read."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from retroformer.errors import ConfigError
from retroformer.serving.recording import Recorder, recorder_of


def report(
    record: str | Path | Recorder,
    episode: str,
    *,
    success: bool | None = None,
    reward: float | None = None,
    error: str | None = None,
) -> None:
    """Say how a recorded episode ended, at any later time and from any process: its `id` is all that is needed.

    `record` is the folder that the agent records to, or any other whose files are imported together with it. A reward
    above 0 is a success where `success` does not say otherwise; a success is worth 1 where no reward is given. `error`
    says that the infrastructure broke: such an episode says nothing of its task. The last report counts. Raises
    ConfigError where nothing is said, or something else than expected.
    """
    if not isinstance(episode, str) or not episode:
        raise ConfigError(f"the episode is {episode!r}, expected its id")
    said = outcome(success, reward, error)
    if not said:
        raise ConfigError(f"nothing is said of episode {episode}: expected success, reward or error")
    recorder = record if isinstance(record, Recorder) else recorder_of(Path(record).resolve())
    recorder.write([{"event": "outcome", "id": episode, "time": time.time(), **said}])


def outcome(success: bool | None, reward: float | None, error: str | None = None) -> dict[str, Any]:
    """The fields of an event that say it, those that are known. Raises ConfigError."""
    if success is not None and not isinstance(success, bool):
        try:
            success = {0: False, 1: True}[success]  # numpy's truth values, and 0 and 1
        except (KeyError, TypeError):
            raise ConfigError(f"success is {success!r}, expected True or False") from None
    said = {"success": success, "reward": None if reward is None else finite(reward), "error": error}
    return {name: value for name, value in said.items() if value is not None and value != ""}


def finite(reward: Any) -> float:
    """The reward as a number that can be learned from. Raises ConfigError."""
    try:
        number = float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"the reward is {reward!r}, expected a finite number")
    return number
