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
    comes every ten seconds. ``close`` prints where it ended.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.terminal = sys.stderr.isatty()
        self.began = self.printed = 0.0
        self.first: int | None = None
        self.latest: tuple[int, int | None] = (0, None)
        self.shown: tuple[int, int | None] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        """Report that ``done`` of ``total`` are done."""
        now = time.monotonic()
        if self.first is None:
            # What an earlier run had done says nothing about the speed of this one.
            self.first, self.began = done, now
        self.latest = (done, total)
        if self.shown is None or now - self.printed >= (0.2 if self.terminal else 10.0):
            self.show(end="" if self.terminal else "\n")

    def show(self, end: str) -> None:
        """Print the line."""
        self.printed, self.shown = time.monotonic(), self.latest
        begin = "\r\x1b[K" if self.terminal else ""
        print(begin + self.line(), end=end, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints

    def line(self) -> str:
        """Return ``12,800 of 80,000 rows, 4,210/s, 16 s left``."""
        done, total = self.latest
        seconds = time.monotonic() - self.began
        rate = (done - (self.first or 0)) / seconds if seconds > 0 else 0.0
        parts = [f"{done:,}" + (f" of {total:,}" if total is not None else "") + f" {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:,.0f}/s")
            if total is not None and total > done:
                parts.append(f"{(total - done) / rate:,.0f} s left")
        return ", ".join(parts)

    def close(self) -> None:
        """Print the last state where it was not shown, and end the line."""
        if self.first is not None and (self.terminal or self.shown != self.latest):
            self.show(end="\n")
