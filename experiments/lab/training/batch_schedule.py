"""How many updates a run has, and the size of each: B examples, and where `batch_growth` g asks for it g B and g^2 B examples
after that (Smith et al. 2018, section 2).

Pure integer arithmetic in units of B examples; no tensors. A budget of E examples is U = max(1, round(E / B)) units, with and
without growth. An update is of B while 2 u < U units are seen, of g B while 4 u < 3 U, of g^2 B after that; the last size is
taken as often as brings the units nearest to U, so that the examples of the run differ from U B by g^2 B / 2 at most. These are
the places, in units, at which the schedule `step` divides the learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from experiments.lab.declare.config import Budget, RunConfig


@dataclass(frozen=True)
class Phase:
    """Updates `first`, ..., `end` - 1 (default: no end) of `size` examples each, after `seen` examples."""

    first: int
    end: int | None
    size: int
    seen: int


@dataclass(frozen=True)
class BatchSchedule:
    """The phases of a run in order, none of them empty: the last has no end, for the budget says where the run ends."""

    phases: tuple[Phase, ...]
    budget: int | None = None
    """U, where the batch grows"""

    def at(self, step: int) -> Phase:
        """That of update `step` (0-based)."""
        return next(phase for phase in self.phases if phase.end is None or step < phase.end)

    def seen(self, step: int) -> int:
        """Examples of the first `step` updates, repeats counted."""
        phase = self.at(step)
        return phase.seen + (step - phase.first) * phase.size

    def units(self, step: int) -> int:
        """`seen` in units of the first size."""
        return self.seen(step) // self.phases[0].size

    def step_with(self, examples: float) -> int:
        """The fewest updates that see at least `examples` examples."""
        phase = next(phase for phase in self.phases if phase.end is None or examples <= self.seen(phase.end))
        return phase.first + math.ceil((examples - phase.seen) / phase.size)


def units_of(config: RunConfig, n: int) -> int:
    """U: updates of a budget in epochs over n training examples, were all of B examples."""
    assert config.epochs is not None
    return max(1, round(config.epochs * n / config.batch_size))


def total_steps(config: RunConfig, n: int) -> int | None:
    """Updates of a run over n training examples, None where only training can tell: budgets `train_loss` and `plateau`."""
    match config.budget:
        case Budget.STEPS:
            return config.steps
        case Budget.EPOCHS:
            units = units_of(config, n)
            if config.batch_growth == 1:
                return units
            last = batch_schedule(config, n).phases[-1]
            each = last.size // config.batch_size
            return last.first + (2 * (units - last.seen // config.batch_size) + each) // (2 * each)
        case _:
            return None


def batch_schedule(config: RunConfig, n: int) -> BatchSchedule:
    """Of a run over n training examples."""
    size, growth = config.batch_size, config.batch_growth
    if growth == 1:
        return BatchSchedule((Phase(0, None, size, 0),))
    units, phases, step, seen = units_of(config, n), [], 0, 0
    for quarters, each in ((2, 1), (3, growth)):
        count = max(0, -(-(quarters * units - 4 * seen) // (4 * each)))
        if count:
            phases.append(Phase(step, step + count, each * size, seen * size))
        step, seen = step + count, seen + count * each
    return BatchSchedule((*phases, Phase(step, None, growth**2 * size, seen * size)), units)


def position(step: int, config: RunConfig, n: int) -> dict[str, Any]:
    """Where a run over n training examples is after `step` updates, as its history says it."""
    examples = batch_schedule(config, n).seen(step)
    return {"step": step, "examples": examples, "epoch": examples / n}
