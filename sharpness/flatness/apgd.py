"""Maximise a differentiable function over a ball by gradient ascent: a pure function of a function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["l2", "linf"]
Objective = Callable[[Tensor, bool], tuple[float, Tensor | None]]

_FIRST_CHECKPOINT, _SHRINKAGE, _SHORTEST = 0.22, 0.03, 0.06  # Croce & Hein 2020, section 3.3, in steps / N
_SUCCESSES = 0.75  # share of ascending steps below which the step size is halved
_MOMENTUM = 0.75  # weight of the new step; the inertia has the rest
_SAFE = (1e-200, 1e200)  # sums of squares that neither underflow nor overflow


@dataclass(frozen=True)
class BallMaximum:
    """The largest value seen, a lower bound of the maximum.

    Attributes:
        value: the largest f seen, f at the start included; NaN if the status is "nonfinite".
        start_value: f at the start.
        evaluations: of f, all but the last of a search with its gradient.
        status: "ok"; "stationary" when the gradient was exactly zero at the start, so that the search went
            on from the escape point (or ended, without one); "nonfinite" when a value or a gradient was not
            finite, which ends the search.
    """

    value: float
    start_value: float
    evaluations: int
    status: str


def maximise_in_ball(
    objective: Objective,
    start: Tensor,
    *,
    rho: float,
    norm: Norm,
    steps: int,
    escape: Callable[[], Tensor] | None = None,
) -> BallMaximum:
    """max f(x) subject to ||x||_p <= rho by APGD, from `start`; a lower bound.

    With P the projection, s(g) = g / ||g||_2 (l2) or sign(g) (linf) and step size a = 2 rho at first:
    x_1 = P(x_0 + a s(g_0)), then z = P(x_k + a s(g_k)), x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k -
    x_{k-1})). At checkpoints the search returns to the best point seen and a is halved, if fewer than 3/4
    of the steps since the last checkpoint ascended, or if neither a nor the best value has changed since
    then (Croce & Hein 2020, arXiv 2003.01690, algorithm 1). From the centre of the ball x_1 is the one-step
    maximiser of the linearised f, so that the result is at least f there.

    Args:
        objective: (x [p], whether the gradient is needed) -> (f(x), gradient [p] or None). The gradient is
            overwritten.
        start: [p] float64, inside the ball.
        rho, norm: of the ball.
        steps: number of steps, so that f is evaluated steps + 1 times.
        escape: gives a point of the ball to go to as the first step where the gradient is exactly zero.
    """
    x = previous = start
    start_value, gradient = objective(x, True)
    direction = _direction(gradient, norm)
    if not math.isfinite(start_value) or direction is None:
        return BallMaximum(math.nan, start_value, 1, "nonfinite")
    stationary = not bool(direction.any())
    if stationary and escape is None:
        return BallMaximum(start_value, start_value, 1, "stationary")
    marks = checkpoints(steps)
    size, size_then = 2.0 * rho, 2.0 * rho
    value = best = best_then = start_value
    best_x, best_direction = x, direction
    ascents, last_mark = 0, 0
    for step in range(1, steps + 1):
        if step > 1:
            z = project(torch.add(x, direction, alpha=size), rho, norm)
            moved = z.lerp_(x, 1.0 - _MOMENTUM)  # x + 0.75 (z - x)
            moved = moved.add_(x, alpha=1.0 - _MOMENTUM).sub_(previous, alpha=1.0 - _MOMENTUM)
            moved = project(moved, rho, norm)
        elif stationary and escape is not None:
            moved = escape()
        else:
            moved = project(torch.add(x, direction, alpha=size), rho, norm)
        new_value, gradient = objective(moved, step < steps)
        new_direction = _direction(gradient, norm) if step < steps else direction
        if not math.isfinite(new_value) or new_direction is None:
            return BallMaximum(math.nan, start_value, step + 1, "nonfinite")
        ascents += new_value > value
        previous, x, value, direction = x, moved, new_value, new_direction
        if value > best:
            best, best_x, best_direction = value, x, direction
        if step in marks:
            few = ascents < _SUCCESSES * (step - last_mark)
            stuck = size == size_then and best == best_then
            size_then, best_then, last_mark, ascents = size, best, step, 0
            if few or stuck:
                size /= 2.0
                x, value, direction = best_x, best, best_direction
    return BallMaximum(best, start_value, steps + 1, "stationary" if stationary else "ok")


def one_step(objective: Objective, start: Tensor, *, rho: float, norm: Norm) -> BallMaximum:
    """f at start + rho s(g), which maximises the linearised f over the ball around `start`.

    `value` is f there, not the larger one of the two seen; f(start) if the gradient is exactly zero.
    """
    start_value, gradient = objective(start, True)
    direction = _direction(gradient, norm)
    if not math.isfinite(start_value) or direction is None:
        return BallMaximum(math.nan, start_value, 1, "nonfinite")
    if not bool(direction.any()):
        return BallMaximum(start_value, start_value, 1, "stationary")
    value, _ = objective(torch.add(start, direction, alpha=rho), False)
    if not math.isfinite(value):
        return BallMaximum(math.nan, start_value, 2, "nonfinite")
    return BallMaximum(value, start_value, 2, "ok")


def checkpoints(steps: int) -> frozenset[int]:
    """ceil(p_j N) with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    marks, before, now = set[int](), 0.0, _FIRST_CHECKPOINT
    while (mark := math.ceil(round(now * steps, 9))) <= steps:  # rounded, as 0.41 * 100 is not 41
        marks.add(mark)
        before, now = now, now + max(now - before - _SHRINKAGE, _SHORTEST)
    return frozenset(marks)


def project(x: Tensor, rho: float, norm: Norm) -> Tensor:
    """The nearest point of the ball, in place."""
    if norm == "linf":
        return x.clamp_(-rho, rho)
    length = math.sqrt(float(torch.dot(x, x)))
    return x.mul_(rho / length) if length > rho else x


def _direction(gradient: Tensor | None, norm: Norm) -> Tensor | None:
    """s(g) in place of g, zero for a zero gradient; None for one that is not finite."""
    assert gradient is not None
    square = float(torch.dot(gradient, gradient))
    if not _SAFE[0] < square < _SAFE[1]:  # also what is zero or not finite
        largest = float(gradient.abs().max())
        if not math.isfinite(largest):
            return None
        if largest == 0.0:
            return gradient
        square = float(gradient.div_(largest).square().sum())
    return gradient.sign_() if norm == "linf" else gradient.div_(math.sqrt(square))
