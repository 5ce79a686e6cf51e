"""Learning rate against the fraction of the budget."""

from __future__ import annotations

import math

from experiments.lab.declare.config import RunConfig, Schedule
from experiments.lab.training.batch_schedule import BatchSchedule


def lr_at(config: RunConfig, step: int, total_steps: int | None) -> float:
    """The LR of update `step` (0-based) of `total_steps` (None: no known length, constant LR).

    Warm-up: peak * (step + 1) / (warmup * total), while that is below the peak. After it, with s in [0, 1) the fraction
    of the remaining budget: linear 1 - (1 - final) s, cosine final + (1 - final)(1 + cos(pi s)) / 2, step 1, 1/10 from
    1/2 and 1/100 from 3/4 of the whole budget.
    """
    if total_steps is None:
        return config.peak_lr
    warmup_steps = config.warmup * total_steps
    if step + 1 < warmup_steps:
        return config.peak_lr * (step + 1) / warmup_steps
    s = (step - warmup_steps) / max(total_steps - warmup_steps, 1) if step > warmup_steps else 0.0
    match config.schedule:
        case Schedule.CONSTANT:
            factor = 1.0
        case Schedule.LINEAR:
            factor = 1 - (1 - config.final_lr) * s
        case Schedule.COSINE:
            factor = config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * s)) / 2
        case Schedule.STEP:
            factor = 0.1 ** ((step >= total_steps / 2) + (step >= 3 * total_steps / 4))
    return config.peak_lr * factor


def lr_of(config: RunConfig, batches: BatchSchedule, step: int, total_steps: int | None) -> float:
    """The LR of update `step` (0-based) of a run whose batch may grow.

    With growth the fraction of the budget is that of the examples seen, not of the updates: update `step` has the LR of the
    update that begins at the same example in a run without growth, so schedules bend at the same epochs in both.
    """
    if batches.budget is None:
        return lr_at(config, step, total_steps)
    return lr_at(config, batches.units(step), batches.budget)
