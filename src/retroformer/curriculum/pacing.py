"""When the next tier is admitted: on a measured signal, and in the end always."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Pacing:
    """Admits tier after tier as a signal that should grow (such as mean log-likelihood) is observed.

    The next tier is admitted when the signal reaches `threshold`, or has not grown by `min_gain` over its best for
    `patience` observations, or after `longest` observations of a tier at the latest: what failed is learned from
    too, so no tier is kept out for ever. Each admission starts the comparison afresh, as the signal is then
    measured on other trajectories. ``Pacing(**pacing.state())`` goes on where it was.
    """

    tiers: int
    patience: int = 3
    """Observations."""
    longest: int = 20
    """Observations."""
    min_gain: float = 0.01
    """In units of the signal."""
    threshold: float | None = None
    """In units of the signal; None for no threshold."""
    admitted: int = 1
    best: float | None = None
    """Best signal since the last admission."""
    stale: int = 0
    """Observations since the best."""
    seen: int = 0
    """Observations since the last admission."""
    schedule: list[dict[str, Any]] = field(default_factory=list)
    """Rows of ``schedule.csv``: update, tiers_admitted (after this observation), signal (None if not finite)."""

    def observe(self, update: int, signal: float) -> int:
        """Take in the signal measured at `update`; return how many tiers are admitted from now on."""
        finite = math.isfinite(signal)
        self.seen += 1
        if finite and (self.best is None or signal > self.best + self.min_gain):
            self.best, self.stale = signal, 0
        else:
            self.stale += 1
        reached = self.threshold is not None and finite and signal >= self.threshold
        if self.admitted < self.tiers and (reached or self.stale >= self.patience or self.seen >= self.longest):
            self.admitted += 1
            self.best, self.stale, self.seen = None, 0, 0
        row = {"update": update, "tiers_admitted": self.admitted, "signal": signal if finite else None}
        self.schedule.append(row)
        return self.admitted

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON."""
        return asdict(self)
