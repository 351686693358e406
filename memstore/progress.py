"""Progress of long work: one line on stderr, with rate and remaining time. stdout stays clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

#: Told (done, total or None) as work goes on.
Report = Callable[[int, int | None], None]


class Progress:
    """Prints what is done, how fast, and how long it will take.

    On a terminal the line is rewritten a few times a second; elsewhere (a log file) a new line
    comes every ten seconds.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.began = time.monotonic()
        self.first: int | None = None
        self.printed = float("-inf")
        self.terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int | None) -> None:
        """Report that ``done`` of ``total`` are done."""
        if self.first is None:
            # What an earlier run had done says nothing about the speed of this one.
            self.first, self.began = done, time.monotonic()
        now = time.monotonic()
        finished = total is not None and done >= total
        if not finished and now - self.printed < (0.2 if self.terminal else 10.0):
            return
        self.printed = now
        line = self.line(done, total, now - self.began)
        end = "" if self.terminal and not finished else "\n"
        print(f"\r\x1b[K{line}" if self.terminal else line, end=end, file=sys.stderr, flush=True)  # noqa: T201 - this is the one place that prints

    def line(self, done: int, total: int | None, seconds: float) -> str:
        """Return ``12,800 of 80,000 rows, 4,210/s, 16 s left``."""
        rate = (done - (self.first or 0)) / seconds if seconds > 0 else 0.0
        parts = [f"{done:,}" + (f" of {total:,}" if total is not None else "") + f" {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:,.0f}/s")
            if total is not None and total > done:
                parts.append(f"{(total - done) / rate:,.0f} s left")
        return ", ".join(parts)

    def close(self) -> None:
        """End the line on a terminal, so that what follows starts on its own."""
        if self.terminal and self.first is not None:
            print(file=sys.stderr)  # noqa: T201 - see above
