"""How many examples each update takes: B, or with `batch_growth` g then g B and g^2 B (Smith et al. 2018, section 2).

Pure integer arithmetic in units of B examples; no tensors. A budget of E examples is U = max(1, round(E / B)) units, with and
without growth. An update is of B while 2 u < U units are seen, of g B while 4 u < 3 U, of g^2 B after that; the last size is
taken as often as brings the units nearest to U, so that the examples of the run differ from U B by g^2 B / 2 at most. These are
the places, in units, at which the schedule `step` divides the learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from experiments.lab.declare.config import RunConfig


@dataclass(frozen=True)
class Phase:
    """Updates `first`, ..., `end` - 1 (default: no end) of `size` examples each, after `seen` examples."""

    first: int
    end: int | None
    size: int
    seen: int


@dataclass(frozen=True)
class Phases:
    """The phases of a run in order, none of them empty: the last has no end, for the budget says where the run ends."""

    parts: tuple[Phase, ...]
    budget: int | None = None
    """U, where the batch grows"""

    def at(self, step: int) -> Phase:
        """That of update `step` (0-based)."""
        return next(part for part in self.parts if part.end is None or step < part.end)

    def seen(self, step: int) -> int:
        """Examples of the first `step` updates, repeats counted."""
        part = self.at(step)
        return part.seen + (step - part.first) * part.size

    def units(self, step: int) -> int:
        """`seen` in units of the first size."""
        return self.seen(step) // self.parts[0].size

    def step_with(self, examples: float) -> int:
        """The fewest updates that see at least `examples` examples."""
        part = next(part for part in self.parts if part.end is None or examples <= self.seen(part.end))
        return part.first + math.ceil((examples - part.seen) / part.size)


def units_of(config: RunConfig, n: int) -> int:
    """U: updates of a budget in epochs over n training examples, were all of B examples."""
    assert config.epochs is not None
    return max(1, round(config.epochs * n / config.batch_size))


def steps_of(config: RunConfig, n: int) -> int:
    """Updates of a budget in epochs over n training examples."""
    units = units_of(config, n)
    if config.batch_growth == 1:
        return units
    last = phases_of(config, n).parts[-1]
    each = last.size // config.batch_size
    return last.first + (2 * (units - last.seen // config.batch_size) + each) // (2 * each)


def phases_of(config: RunConfig, n: int) -> Phases:
    """Of a run over n training examples."""
    size, growth = config.batch_size, config.batch_growth
    if growth == 1:
        return Phases((Phase(0, None, size, 0),))
    units, parts, step, seen = units_of(config, n), [], 0, 0
    for quarters, each in ((2, 1), (3, growth)):
        count = max(0, -(-(quarters * units - 4 * seen) // (4 * each)))
        if count:
            parts.append(Phase(step, step + count, each * size, seen * size))
        step, seen = step + count, seen + count * each
    return Phases((*parts, Phase(step, None, growth**2 * size, seen * size)), units)
