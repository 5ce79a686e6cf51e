"""Maximise a differentiable function over a box, from several starts: a pure function of a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import fmin_l_bfgs_b

Vector = NDArray[np.float64]
Objective = Callable[[Vector], tuple[float, Vector]]


@dataclass(frozen=True)
class Start:
    """Where a search begins, and how.

    Attributes:
        name, point: [p], inside the box.
        sign_steps: how often first to jump to the vertex that the gradient's signs point to, while that
            ascends.
        max_evaluations: of the whole search; None leaves it to L-BFGS-B's iterations and line searches.
    """

    name: str
    point: Vector
    sign_steps: int = 0
    max_evaluations: int | None = None


@dataclass(frozen=True)
class Ascent:
    """One search. `value` is the best finite value seen at any of its evaluations, None if there was none."""

    start: str
    value: float | None
    evaluations: int
    iterations: int  # of L-BFGS-B
    status: str  # "stopped", "iterations", "evaluations", "abnormal" (line search failed) or "nonfinite"
    message: str


@dataclass(frozen=True)
class BoxMaximum:
    """The best point of all searches, a lower bound of the maximum; -inf, None, None if none was finite."""

    value: float
    point: Vector | None
    start: str | None
    ascents: tuple[Ascent, ...]


def maximise_in_box(
    objective: Objective, lower: Vector, upper: Vector, starts: Sequence[Start], *, iterations: int = 10
) -> BoxMaximum:
    """max f(y) subject to lower <= y <= upper: from each start sign steps, then L-BFGS-B on -f; a lower
    bound.

    A sign step is y_i <- upper_i where g_i > 0, lower_i where g_i < 0: for a convex f it never descends,
    and a vertex that it maps to itself is a local maximum. L-BFGS-B (Byrd, Lu, Nocedal & Zhu 1995) is
    scipy's, with ftol = gtol = 0, so that only its iterations, a vanishing projected gradient or a failed
    line search end it. The best point ever evaluated counts, not the last one.

    Args:
        objective: y [p] -> (f(y), gradient [p]), float64.
        lower, upper: [p].
        starts: see `Start`.
        iterations: of L-BFGS-B from each start.

    A search that meets a value or gradient that is not finite ends there, with status "nonfinite"; what it
    saw before counts. Raises ValueError if a start lies outside the box.
    """
    best = BoxMaximum(-np.inf, None, None, ())
    ascents: list[Ascent] = []
    for start in starts:
        if np.any(start.point < lower) or np.any(start.point > upper):
            raise ValueError(f"start {start.name!r} lies outside the box: clip it to lower and upper")
        record = _Record(objective, start.max_evaluations)
        ascents.append(_ascend(record, lower, upper, start, iterations))
        if record.value > best.value:
            best = BoxMaximum(record.value, record.point, start.name, ())
    return BoxMaximum(best.value, best.point, best.start, tuple(ascents))


class _NonFiniteError(ArithmeticError):
    pass


class _SpentError(Exception):
    pass


class _Record:
    """The objective, counting its evaluations and remembering the best."""

    def __init__(self, objective: Objective, limit: int | None) -> None:
        self._objective, self._limit = objective, limit
        self.value, self.evaluations = -np.inf, 0
        self.point: Vector | None = None

    def __call__(self, y: Vector) -> tuple[float, Vector]:
        if self.evaluations == self._limit:
            raise _SpentError
        self.evaluations += 1
        value, gradient = self._objective(y)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            raise _NonFiniteError
        if value > self.value:
            self.value, self.point = value, y.copy()
        return value, gradient

    def negative(self, y: Vector) -> tuple[float, Vector]:
        value, gradient = self(y)
        return -value, -gradient


def _ascend(record: _Record, lower: Vector, upper: Vector, start: Start, iterations: int) -> Ascent:
    nit, point = 0, start.point
    try:
        if start.sign_steps:
            point, settled = _vertex_to_vertex(record, lower, upper, start)
            if settled:  # the projected gradient is zero there: L-BFGS-B would stop at once
                return Ascent(start.name, record.value, record.evaluations, 0, "stopped", "a vertex maps to itself")
            if record.evaluations == start.max_evaluations:
                raise _SpentError
        # Every public form of scipy's L-BFGS-B goes through the n bounds in Python: 0.35 s for 1e5 of them in
        # this one, no less by `minimize` with `Bounds`.
        _, _, facts = fmin_l_bfgs_b(
            record.negative, point, bounds=list(zip(lower.tolist(), upper.tolist(), strict=True)),
            maxiter=iterations, factr=0.0, pgtol=0.0,
        )
        nit, message = int(facts["nit"]), str(facts["task"])
        status = ("stopped", "iterations", "abnormal")[min(int(facts["warnflag"]), 2)]
    except _NonFiniteError:
        status, message = "nonfinite", "the function or its gradient is not finite somewhere in the box"
    except _SpentError:
        status, message = "evaluations", "limit of evaluations reached"
    value = record.value if record.point is not None else None
    return Ascent(start.name, value, record.evaluations, nit, status, message)


def _vertex_to_vertex(record: _Record, lower: Vector, upper: Vector, start: Start) -> tuple[Vector, bool]:
    """The last point reached, and whether it is a vertex that the gradient's signs map to itself."""
    y = start.point
    value, gradient = record(y)
    for _ in range(start.sign_steps):
        vertex = np.where(gradient > 0, upper, np.where(gradient < 0, lower, y))
        if np.array_equal(vertex, y):
            return y, True
        new_value, new_gradient = record(vertex)
        if new_value <= value:
            break
        y, value, gradient = vertex, new_value, new_gradient
    return y, False
