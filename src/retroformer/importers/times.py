"""Times of logs, in whatever form they are written, as seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from retroformer.importers.records import Rejected


def seconds(value: Any) -> float:
    """Seconds since 1970 of a number of them or an ISO 8601 time (in UTC where it names no zone). Raises Rejected."""
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise Rejected("invalid_timestamp", f"{str(value)[:80]!r} is no time")


def check_order(times: Sequence[float]) -> None:
    """Raise Rejected where a time lies before the one that precedes it."""
    for place in range(1, len(times)):
        if times[place] < times[place - 1]:
            raise Rejected(
                "timestamps_out_of_order",
                f"time {place} lies {times[place - 1] - times[place]:g} s before the one that precedes it",
            )
