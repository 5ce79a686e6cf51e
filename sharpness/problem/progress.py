"""Long work speaks: how many products, passes or points are done, of how many, and how long the rest takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from sharpness.problem.arguments import shown

Progress = bool | Callable[[int, int | None, str], object] | None
"""None or False: silent. True: lines on stderr, once more than a few seconds are ahead. A function: called as
(done, total, what) after each step, total None where nobody knows it; what it returns is ignored."""

SOON, EVERY = 3.0, 10.0  # seconds: work shorter than the first needs no line, then one in so many


class Meter:
    """Counts the steps of one measurement, and tells whoever asked."""

    def __init__(self, progress: Progress, what: str, total: int | None = None) -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise ValueError(f"progress is {shown(progress)}: it must be True, a function of (done, total, what), or None")
        self.active = bool(progress)
        self.done = 0
        self._what, self._total = what, total
        self._tell: Any = Lines() if progress is True else progress

    def tick(self, steps: int = 1) -> None:
        self.done += steps
        if self.active:
            self._tell(self.done, self._total, self._what)


SILENT = Meter(None, "")


class Lines:
    """A line on stderr as soon as the first step shows that the work is long, and every ten seconds after."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last: float | None = None

    def __call__(self, done: int, total: int | None, what: str) -> None:
        now = time.monotonic()
        elapsed = now - self._started
        ahead = elapsed / done * (total - done) if total and done else 0.0
        if done == total:
            due = self._last is not None
        else:
            due = elapsed + ahead > SOON if self._last is None else now - self._last > EVERY
        if due:
            self._last = now
            of = f" of {total}" if total else ""
            left = f", about {ahead:.0f} s left" if total and done < total else ""
            print(f"{what}: {done}{of}, {elapsed:.0f} s{left}", file=sys.stderr, flush=True)
