"""Progress on stderr: live lines on a terminal, plain ones elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from operator import itemgetter, ne
from types import TracebackType
from typing import Any, Self

from experiments.lab.declare.config import RunConfig
from experiments.lab.training.batch_schedule import batch_schedule, total_steps

PLAIN_SECONDS = 15.0
LIVE_SECONDS = 0.2
SHORTEST = 2.0
"""seconds between two plain lines of one run at least"""
Kind = tuple[object, ...]
"""what tasks that are expected to take equally long have in common, a word for what they do first"""
LATER: Kind = ("train", "later stages")
"""the kind of runs of which nobody knows more yet than how many they are at most"""

SHORT = {"batch_size": "B", "weight_decay": "wd", "n_train": "n", "train_loss": "target loss", "model": "", "optimizer": "",
         "dataset": "", "augment": "", "schedule": "", "precision": "", "parent": "from"}
"""field -> how a run's name says it (others by their own name; empty: the value says enough)"""
FIRST = ("model", "dataset", "batch_size", "lr", "optimizer")
LAST = ("seed", "parent")
ECHOES = ("data_sha256", "parent")
"""fields that say in digits what others say in words: shown only where nothing else tells runs apart"""


def known_steps(config: RunConfig) -> int | None:
    """`total_steps` as far as the config alone tells: its data are not read."""
    return config.steps if config.n_train is None or config.imbalance > 1 else total_steps(config, config.n_train)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


@dataclass(frozen=True)
class Names:
    """How runs are called among each other: by the fields in which they differ. field -> significant digits of its numbers."""

    shown: Mapping[str, int]

    def of(self, *configs: RunConfig) -> str:
        """The name of a run; of several what they have in common."""
        return " ".join(_said(name, getattr(configs[0], name), digits) for name, digits in self.shown.items()
                        if all(getattr(config, name) == getattr(configs[0], name) for config in configs))


def names_among(configs: Sequence[RunConfig]) -> Names:
    """Names that tell `configs` apart; of a single run its model, batch size, learning rate and seed."""
    others = (f.name for f in fields(RunConfig) if f.name not in (*FIRST, *LAST))
    every = [config.__dict__ for config in configs]
    varying = [name for name in (*FIRST, *others, *LAST)
               if any(map(partial(ne, every[0][name]), map(itemgetter(name), every)))] if every else []
    plain = [name for name in varying if name not in ECHOES]
    if plain != varying and len({tuple(c.__dict__[name] for name in plain) for c in configs}) == len(configs):
        varying = plain
    return Names({name: _digits(configs, name) for name in varying or ("model", "batch_size", "lr", "seed")})


def _digits(configs: Sequence[RunConfig], name: str) -> int:
    """The fewest significant digits that keep the numbers of a field apart."""
    numbers = {value for config in configs if isinstance(value := config.__dict__[name], float)}
    return next((d for d in (3, 4, 6) if len({f"{number:.{d}g}" for number in numbers}) == len(numbers)), 17)


def _said(name: str, value: object, digits: int) -> str:
    if isinstance(value, bool) or value is None:
        said = {True: "yes", False: "no", None: "none"}[value]
    elif name in ECHOES:
        said = str(value)[:8]
    else:
        said = f"{value:.{digits}g}" if isinstance(value, float) else str(value)
    label = SHORT.get(name, name.replace("_", " ")) or ("" if value not in (None, "none") else name)
    return f"{label} {said}".strip()


@dataclass
class Sweep:
    """What is known of tasks: how many in all, finished ones with their seconds by kind, those not finished.

    `total` counts what `done` counts: tasks, or of a whole study runs.
    """

    total: int
    workers: int
    started: float = field(default_factory=time.monotonic)
    seconds: dict[Kind, tuple[int, float]] = field(default_factory=dict)
    """kind -> how many finished, and their seconds together (a study's stages share it)"""
    pending: Counter[Kind] = field(default_factory=Counter)
    """tasks not finished, by kind"""
    done: int = 0
    """ended, the failed ones with them"""
    failed: int = 0

    def measured(self, kind: Kind, seconds: float) -> None:
        count, together = self.seconds.get(kind, (0, 0.0))
        self.seconds[kind] = count + 1, together + seconds

    def finish(self, kind: Kind, *, failed: bool = False, counts: int = 1) -> None:
        self.pending[kind] -= 1
        self.done += counts
        self.failed += failed

    def typical(self, kind: Kind) -> float | None:
        """Mean seconds of the finished tasks of `kind`."""
        return _mean([self.seconds[kind]]) if kind in self.seconds else None

    def expected(self, kind: Kind) -> float:
        """The same; where there are none, of those that do the same to other runs, or of all."""
        alike = [found for other, found in self.seconds.items() if other[0] == kind[0]]
        return self.typical(kind) or _mean(alike or [*self.seconds.values()])

    def eta(self, spent: float = 0.0) -> float | None:
        """Seconds until the last task ends, from the mean of each kind; `spent` is time already in running tasks."""
        if not self.seconds:
            return None
        work = sum(count * self.expected(kind) for kind, count in self.pending.items() if count > 0)
        return max(0.0, work - spent) / max(1, min(self.workers, self.pending.total()))

    @property
    def bounded(self) -> bool:
        """Whether `total` is an upper bound."""
        return self.pending[LATER] > 0

    def count(self) -> str:
        return f"{self.done - self.failed} of {'at most ' * self.bounded}{self.total}"

    def left(self, spent: float) -> str:
        """The ETA in words: `at most` where later stages count by their bound, `about` where a kind of task was not seen yet
        and the mean of all stands for it."""
        if (eta := self.eta(spent)) is None:
            return "ETA unknown yet"
        guessed = any(count > 0 and kind not in self.seconds for kind, count in self.pending.items())
        return f"ETA {'at most ' * self.bounded}{'about ' * guessed}{duration(eta)}"


def _mean(found: Sequence[tuple[int, float]]) -> float:
    return sum(seconds for _, seconds in found) / sum(count for count, _ in found)


class Screen:
    """Lines on stderr: on a terminal each text replaces the one before it, elsewhere it is a line of its own."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty()
        self.last_line = 0.0

    def __enter__(self) -> Self:
        if self.live:
            from rich.console import Console
            from rich.live import Live

            self.screen = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self.screen.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.screen.stop()

    def due(self, plain_seconds: float | None = None) -> bool:
        """Whether it is time to show something; what to show costs more than a short run's share of the loop."""
        pause = LIVE_SECONDS if self.live else PLAIN_SECONDS if plain_seconds is None else plain_seconds
        return not self.quiet and time.monotonic() - self.last_line > pause

    def show(self, head: str, lines: Sequence[str] = ()) -> None:
        if self.quiet:
            return
        self.last_line = time.monotonic()
        if self.live:
            from rich.text import Text

            self.screen.update(Text("\n".join([head, *(f"  {line}" for line in lines)])))
        else:
            print("; ".join([head, *lines]), file=sys.stderr, flush=True)


def headline(sweep: Sweep, label: str, study: Sweep, study_label: str, spent: float) -> str:
    """How far a sweep is, as a part of `study`, which may be itself."""
    failed = f", {study.failed} failed" if study.failed else ""
    head = (f"{study_label}: {study.count()} {'finished' if study is sweep else 'runs'}{failed}, "
            f"{duration(time.monotonic() - study.started)} elapsed, {study.left(spent)}")
    if (study.total, study.pending.total()) == (sweep.total, sweep.pending.total()):
        return head  # this sweep is the whole study
    return f"{head}; {label}: {sweep.count()}, {sweep.left(spent)}"


class Training(Screen):
    """One run as it trains, shown the rows of its history: its step, and the last loss and scores. Use as a context manager."""

    def __init__(self, config: RunConfig, n_train: int, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self.total, self.batches, self.n_train = total_steps(config, n_train), batch_schedule(config, n_train), n_train
        self.started, self.step = time.monotonic(), 0
        self.first: tuple[int, float] | None = None
        """the first step that was seen, and when: reading the data is no step"""
        self.loss: float | None = None
        self.scores, self.scored = "", 0
        self.recent_loss: Callable[[], float | None] = lambda: None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if kind is None and self.step and not self.live and not self.last_line:  # it was over before a line was due
            self.show(self.line(self.total or self.step))

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.step = step = row["step"]
        match row["kind"]:
            case "resumed":
                if not self.quiet:
                    print(f"goes on from its checkpoint at step {self._of(step)}", file=sys.stderr, flush=True)
            case "step":
                self.recent_loss = row["recent_loss"]
                self.first = self.first or (step, time.monotonic())
                if self.due(self._pause()) and (self.live or time.monotonic() - self.first[1] > SHORTEST):
                    self.show(self.line(step))
            case "train":
                self.loss = row["loss"]
            case "eval":
                shown = (("test loss", "test_loss", ""), ("test accuracy", "test_accuracy", "%"), ("test R^2", "test_r2", ""))
                self.scores = "".join(f", {words} {row[name]:.4g}{unit}" for words, name, unit in shown
                                      if row.get(name) is not None)
                self.scored = step
                if self.due(self._pause()):
                    self.show(self.line(step))

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _pause(self) -> float:
        """Seconds between plain lines: a twentieth of the time so far, so that a long run does not fill a file."""
        return min(60.0, max(SHORTEST, self._elapsed() / 20))

    def line(self, step: int) -> str:
        """Loss of the last updates, scores of the last row that has some."""
        recent = self.recent_loss()
        loss = self.loss if recent is None else recent
        said = "" if loss is None else f", training loss {loss:.4g}"
        when = f" (at epoch {self._epoch(self.scored)})" if self.scores and self.scored != step else ""
        left = ""
        if self.total is not None and self.first is not None and step > self.first[0]:
            left = f", ETA {duration((self.total - step) * (time.monotonic() - self.first[1]) / (step - self.first[0]))}"
        elapsed = f"{duration(self._elapsed())} elapsed{left}"
        return f"step {self._of(step)}: epoch {self._epoch(step)}{said}{self.scores}{when}; {elapsed}"

    def _epoch(self, step: int) -> str:
        return f"{self.batches.seen(step) / self.n_train:.3g}"

    def _of(self, step: int) -> str:
        return f"{step:,}" if self.total is None else f"{step:,} of {self.total:,}"
