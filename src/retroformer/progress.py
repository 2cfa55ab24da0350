"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts towards `total`; `note` is what stands behind the bar."""

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.started = self.printed = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=label, unit=f" {unit}", disable=not self.terminal, dynamic_ncols=True)

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more are done."""
        self.done += count
        if self.terminal:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.printed > SECONDS_BETWEEN_LINES or self.done >= self.total:
            self.printed = time.monotonic()
            rate = self.done / max(self.printed - self.started, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            tail = f", {note}" if note else ""
            line = f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s, {left:.0f} s left{tail}"
            print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    """A `Progress` that closes its bar whatever happens."""
    shown = Progress(label, total, unit)
    try:
        yield shown
    finally:
        shown.bar.close()
