"""Progress on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType

from experiments.lab.config import Budget, RunConfig
from experiments.lab.training.phases import steps_of

PLAIN_SECONDS = 15.0
LIVE_SECONDS = 0.2


def describe(config: RunConfig) -> str:
    return f"{config.model} B {config.batch_size} seed {config.seed}"


def expected_steps(config: RunConfig, n_train: int) -> int | None:
    """Updates until the budget is spent, None where only training can tell."""
    if config.budget is Budget.STEPS:
        return config.steps
    if config.budget is Budget.EPOCHS:
        return steps_of(config, n_train)
    return None


def duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


@dataclass
class Sweep:
    """What is known of a sweep: tasks in all, finished ones with their seconds by kind, those under way."""

    total: int
    workers: int
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    """tasks not finished, by kind (tasks of one kind are expected to take equally long)"""
    done: int = 0

    def finish(self, kind: str, seconds: float) -> None:
        self.seconds.setdefault(kind, []).append(seconds)
        self.pending[kind] -= 1
        self.done += 1

    def typical(self, kind: str) -> float | None:
        """Mean seconds of the finished tasks of `kind`."""
        times = self.seconds.get(kind)
        return sum(times) / len(times) if times else None

    def eta(self, spent: float = 0.0) -> float | None:
        """Seconds until the last task ends, from the mean of each kind; `spent` is time already in running tasks."""
        if not self.seconds:
            return None
        everything = [s for times in self.seconds.values() for s in times]
        mean = sum(everything) / len(everything)
        means = {kind: sum(times) / len(times) for kind, times in self.seconds.items()}
        work = sum(count * means.get(kind, mean) for kind, count in self.pending.items())
        return max(0.0, work - spent) / self.workers


class Progress:
    """One line per worker and one for the sweep. Use as a context manager."""

    def __init__(self, sweep: Sweep, label: str, *, quiet: bool = False) -> None:
        self.sweep, self.label, self.quiet = sweep, label, quiet
        self.live = sys.stderr.isatty() and not quiet
        self.last_line = 0.0
        self.lines: dict[int, str] = {}

    def __enter__(self) -> Progress:
        if self.live:
            from rich.console import Console
            from rich.live import Live

            self.screen = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self.screen.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.screen.stop()

    def due(self) -> bool:
        """Whether it is time to show something; what to show costs more than a short run's share of the loop."""
        return not self.quiet and time.monotonic() - self.last_line > (LIVE_SECONDS if self.live else PLAIN_SECONDS)

    def update(self, lines: dict[int, str], spent: float) -> None:
        """Show `lines`, one per worker, and the sweep's count and ETA."""
        if self.quiet:
            return
        self.last_line = time.monotonic()
        eta = self.sweep.eta(spent)
        left = "ETA unknown yet" if eta is None else f"ETA {duration(eta)}"
        elapsed = duration(time.monotonic() - self.sweep.started)
        head = f"{self.label}: {self.sweep.done} of {self.sweep.total} finished, {elapsed} elapsed, {left}"
        if self.live:
            from rich.text import Text

            self.screen.update(Text("\n".join([head, *(f"  {line}" for line in lines.values())])))
        else:
            print(head + "".join(f"; {line}" for line in lines.values()), file=sys.stderr, flush=True)
