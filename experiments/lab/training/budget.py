"""When training looks at itself and when it stops. Pure functions of what the run has seen; no tensors.

The budget `train_loss` means *at* the target, not somewhere below it: curvature scales with the cross-entropy, so arms
that stop at different losses cannot be compared. Two passes in a row at or below the target bracket the crossing; the
run then returns to its last pass above the target and bisects over updates until the loss lies within `BAND`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.lab.declare.config import Budget, RunConfig
from experiments.lab.training.batch_schedule import Phases, steps_of

BAND = 0.9
"""A pass in [BAND * target, target] meets a `train_loss` budget."""
IMPROVEMENT = 0.99
"""A plateau is `patience` epochs without a training loss below IMPROVEMENT times the best."""


@dataclass(frozen=True)
class Pass:
    """One evaluation-mode pass over training examples after `step` updates: mean cross-entropy in nats."""

    step: int
    loss: float


def total_steps(config: RunConfig, n: int) -> int | None:
    """Updates of a budget of known length (n training examples), None for the others."""
    match config.budget:
        case Budget.EPOCHS:
            return steps_of(config, n)
        case Budget.STEPS:
            return config.steps
        case _:
            return None


def cap_steps(config: RunConfig, n: int) -> int:
    """No run takes more updates than this."""
    known = total_steps(config, n)
    if known is not None:
        return known
    assert config.max_epochs is not None
    return max(1, math.ceil(config.max_epochs * n / config.batch_size))


def next_pass(config: RunConfig, n: int, passes: Sequence[Pass]) -> int | None:
    """Step of the next pass over training examples, None where the budget needs none.

    `plateau`: every epoch. `train_loss`: half of the way to the target as the last two passes predict it, but at least
    n/8 examples (which is the spacing once near the target) and at most 4 epochs ahead.
    """
    if config.budget not in (Budget.TRAIN_LOSS, Budget.PLATEAU):
        return None
    epoch = n / config.batch_size
    if config.budget is Budget.PLATEAU or len(passes) < 2:
        last = passes[-1].step if passes else 0
        return max(last + 1, math.ceil((round(last / epoch) + 1) * epoch))
    assert config.train_loss is not None
    before, last = passes[-2:]
    fall = math.log(before.loss / last.loss) / (last.step - before.step) if before.loss > 0 < last.loss else 0.0
    ahead = math.log(last.loss / config.train_loss) / fall / 2 if fall > 0 else epoch
    if last.loss <= config.train_loss:
        ahead = 0.0
    return last.step + max(1, math.ceil(min(max(ahead, epoch / 8), 4 * epoch)))


def crossed(config: RunConfig, passes: Sequence[Pass]) -> bool:
    """Whether the last two passes lie at or below the target of a `train_loss` budget."""
    target = config.train_loss
    return target is not None and len(passes) >= 2 and all(p.loss <= target for p in passes[-2:])


def in_band(config: RunConfig, loss: float) -> bool:
    """Whether a pass meets the target as closely as comparisons need."""
    assert config.train_loss is not None
    return BAND * config.train_loss <= loss <= config.train_loss


def levelled_off(config: RunConfig, n: int, passes: Sequence[Pass]) -> bool:
    """Whether a `plateau` budget is spent: `patience` epochs since the last pass 1% below the best before it."""
    if config.budget is not Budget.PLATEAU or not passes:
        return False
    assert config.patience is not None
    best, best_step = math.inf, 0
    for p in passes:
        if p.loss < IMPROVEMENT * best:
            best, best_step = p.loss, p.step
    return (passes[-1].step - best_step) * config.batch_size >= config.patience * n


def next_curve_point(n: int, phases: Phases, step: int) -> int:
    """The next step after `step` at which the training curves get a point: epochs 1, 1.5, 2, 3, 4, 6, 8, 12, ..."""
    for doubling in itertools.count():
        for epochs in (2**doubling, 1.5 * 2**doubling):
            if (point := phases.step_with(epochs * n)) > step:
                return point
    raise AssertionError("unreachable")
