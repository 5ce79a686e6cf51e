"""When a run looks at its training loss, and whether it ends: the budgets `epochs`, `steps`, `train_loss` and `plateau`.

The budget `train_loss` means *at* the target, not somewhere below it: curvature scales with the cross-entropy, so arms
that stop at different losses cannot be compared. Two passes in a row at or below the target bracket the crossing; the
run then returns to its last pass above the target and bisects over updates until the loss lies within `BAND`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from experiments.lab.declare.config import Budget, RunConfig
from experiments.lab.training.batch_schedule import total_steps
from experiments.lab.training.data import Data
from experiments.lab.training.engine import Due, Engine
from experiments.lab.training.evaluate import calibrate_on, evaluate
from experiments.lab.training.state import Checkpoint, Pass, Snapshot

CHECKED = 5000
"""training examples that a pass looks at"""
BAND = 0.9
"""A pass in [BAND * target, target] meets a `train_loss` budget."""
IMPROVEMENT = 0.99
"""A plateau is `patience` epochs without a training loss below IMPROVEMENT times the best."""


def checked_loss(model: nn.Module, data: Data) -> float:
    """A pass: evaluation-mode mean cross-entropy on the first `CHECKED` training examples."""
    calibrate_on(model, data.train.inputs)
    return evaluate(model, data.train.inputs[:CHECKED], data.train.targets[:CHECKED], data.task).loss


@dataclass(frozen=True)
class Ending:
    """A run's status, and the reason for it where it needs one."""

    status: str
    reason: str | None = None


@dataclass
class StopRule:
    """The budget of one run over n training examples, with what its passes have seen so far.

    `above` and `below` are the states at the last pass above a `train_loss` target and at the first below it since then.
    """

    config: RunConfig
    n: int
    passes: tuple[Pass, ...] = ()
    above: Snapshot | None = None
    below: Snapshot | None = None

    def __post_init__(self) -> None:
        self.total = total_steps(self.config, self.n)
        self.target = self.config.train_loss

    def resume(self, saved: Checkpoint) -> None:
        self.passes, self.above, self.below = saved.passes, saved.above, saved.below

    @property
    def cap(self) -> int:
        """No run takes more updates than this."""
        if self.total is not None:
            return self.total
        assert self.config.max_epochs is not None
        return max(1, math.ceil(self.config.max_epochs * self.n / self.config.batch_size))

    def next_pass(self) -> int | None:
        """Step of the next pass over training examples, None where the budget needs none.

        `plateau`: every epoch. `train_loss`: half of the way to the target as the last two passes predict it, but at least
        n/8 examples (which is the spacing once near the target) and at most 4 epochs ahead.
        """
        if self.total is not None:
            return None
        epoch = self.n / self.config.batch_size
        if self.target is None or len(self.passes) < 2:
            last = self.passes[-1].step if self.passes else 0
            return min(max(last + 1, math.ceil((round(last / epoch) + 1) * epoch)), self.cap)
        before, last = self.passes[-2:]
        fall = math.log(before.loss / last.loss) / (last.step - before.step) if before.loss > 0 < last.loss else 0.0
        ahead = math.log(last.loss / self.target) / fall / 2 if fall > 0 else epoch
        if last.loss <= self.target:
            ahead = 0.0
        return min(last.step + max(1, math.ceil(min(max(ahead, epoch / 8), 4 * epoch))), self.cap)

    def begin(self, loss: float, copy: Callable[[], Snapshot]) -> Ending | None:
        """Of a `train_loss` budget: look before the first update, for the target may be crossed before the first pass."""
        assert self.target is not None
        self.above = copy()
        return Ending("capped", "the training loss met its target before the first update") if loss <= self.target else None

    def note(self, step: int, loss: float, copy: Callable[[], Snapshot]) -> None:
        """Remember a pass, and the state after it where it brackets the target."""
        self.passes = (*self.passes, Pass(step, loss))
        if self.target is not None and loss > self.target:
            self.above, self.below = copy(), None
        elif self.target is not None and self.below is None:
            self.below = copy()

    def spent(self, step: int) -> Ending | None:
        """How the run ends after `step` updates, None where it goes on."""
        if step == self.total or self.levelled_off():
            return Ending("done")
        if step >= self.cap:
            config = self.config
            return Ending("capped", f"the budget {config.budget} was not met within {config.max_epochs:g} epochs")
        return None

    def levelled_off(self) -> bool:
        """Whether a `plateau` budget is spent: `patience` epochs since the last pass 1% below the best before it."""
        if self.config.budget is not Budget.PLATEAU or not self.passes:
            return False
        assert self.config.patience is not None
        best, best_step = math.inf, 0
        for p in self.passes:
            if p.loss < IMPROVEMENT * best:
                best, best_step = p.loss, p.step
        return (self.passes[-1].step - best_step) * self.config.batch_size >= self.config.patience * self.n

    def crossed(self, step: int) -> bool:
        """Whether a `train_loss` target was crossed for good: the last two passes lie at or below it, or the last at the cap."""
        if self.target is None or self.below is None:
            return False
        return step >= self.cap or (len(self.passes) > 1 and self.passes[-2].loss <= self.target)

    def in_band(self, loss: float) -> bool:
        """Whether a pass meets the target as closely as comparisons need."""
        assert self.target is not None
        return BAND * self.target <= loss <= self.target

    def bisect(self, engine: Engine, data: Data, due: Due) -> Ending:
        """Bring `engine` to an update whose training loss is in the target's band, by bisection between `above` and `below`.

        Invariant: the loss is above the target at `above`, at or below it at `below`. Updates are repeated exactly (those of
        an ensemble up to rounding), so the trajectory is the one that was seen. Where even neighbouring updates jump over
        the band, the nearer one is taken.
        """
        losses = {0: math.inf} | {p.step: p.loss for p in self.passes}
        target, above, below = self.target, self.above, self.below
        assert target is not None and below is not None
        while above is not None and not self.in_band(losses[below.step]) and below.step - above.step > 1:
            engine.restore([above])
            engine.advance(above.step + (below.step - above.step) // 2, due)
            losses[engine.step] = checked_loss(engine.model(), data)
            if losses[engine.step] > target:
                above = engine.copy()
            else:
                below = engine.copy()
        ends = [end for end in (below, above) if end is not None]
        if self.in_band(losses[below.step]):
            ends = [below]
        nearest = min(ends, key=lambda end: abs(math.log(max(losses[end.step], 1e-300) / target)))
        engine.restore([nearest])
        loss = losses[nearest.step]
        return Ending("done", None if self.in_band(loss) else f"neighbouring updates jump over the target; ended at {loss:.3g}")
