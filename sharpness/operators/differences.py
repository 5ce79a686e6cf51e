"""Products of curvature matrices by differences: for models and losses without a second derivative of torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpness.operators.products import Kind, drawn_targets, on_outputs
from sharpness.problem.nested import mapped
from sharpness.problem.precision import in_double, wide
from sharpness.problem.problem import Problem

# Relative to ||w||, for a step along v. In float64 so short that it crosses next to no kinks (of ReLU, of max-pooling): a
# kink on the way is an error of the order of 1 / step, and rounding, of the order of 1e-16 / step, is no matter.
_STEP = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 3e-3}


def difference_product(kind: Kind, problem: Problem, v: Tensor, sampled: bool) -> Tensor:
    """M v [n] in float64 by central differences along v. Inside the operator's `untouched`.

    hessian: (grad f(w + h v) - grad f(w - h v)) / 2h; the others: J v from outputs at w + h v and w - h v, the loss's part
    as in `products` (ggn: by differences too), and J^T by one backward pass. h ||v|| is 1e-8 ||w|| in float64, to which the
    model is moved if it can be computed in it, and 3e-3 ||w|| in float32, where results have three digits.
    """
    if not bool(v.any()):
        return torch.zeros_like(v)
    if problem.dtype == np.float32:
        with contextlib.suppress(RuntimeError, TypeError, NotImplementedError), in_double(problem) as doubled:
            return _product(kind, doubled, v, sampled, double=True)
    return _product(kind, problem, v, sampled, double=False)


def _product(kind: Kind, problem: Problem, v: Tensor, sampled: bool, *, double: bool) -> Tensor:
    w = torch.from_numpy(problem.weights())
    step = _STEP[problem.dtype] * (float(w.norm()) or 1.0) / float(v.norm())
    total = torch.zeros(problem.n, dtype=torch.float64)
    with problem.movable():

        def move(sign: float) -> None:
            problem.move_to((w + sign * step * v).numpy())

        for inputs, targets, weight in problem.passes():
            x, t = (mapped(wide, inputs), mapped(wide, targets)) if double else (inputs, targets)
            total.add_(_of_batch(kind, problem, x, t, move, step, sampled).cpu(), alpha=weight)
            move(0.0)
    return total


def _of_batch(
    kind: Kind, problem: Problem, inputs: Any, targets: Any, move: Callable[[float], None], step: float, sampled: bool
) -> Tensor:
    sides: list[Tensor] = []
    for sign in (1.0, -1.0):
        move(sign)
        if kind == "hessian":
            loss, slopes = problem.batch_loss(inputs, targets), [None] * len(problem.parameters)
            if loss.requires_grad:
                slopes = torch.autograd.grad(loss, problem.parameters, allow_unused=True)
            sides.append(problem.flatten(slopes))
        else:
            with problem.without_gradients():
                sides.append(problem.outputs(inputs).detach())
    along = (sides[0] - sides[1]) / (2 * step)
    if kind == "hessian":
        return along
    move(0.0)
    z = problem.outputs(inputs)
    if sampled:
        targets = drawn_targets(z.detach(), targets)
    if kind == "ggn":
        size = 1e-5 * (float(z.detach().norm()) or 1.0) / (float(along.norm()) or 1.0)
        ends = [(z.detach() + sign * size * along).requires_grad_() for sign in (1.0, -1.0)]
        first, second = (torch.autograd.grad(problem.loss(end, targets), end)[0] for end in ends)
        image = (first - second) / (2 * size)
    else:
        image = on_outputs(kind, problem.loss, z.detach(), along, targets)
    return problem.flatten(torch.autograd.grad(z, problem.parameters, image, allow_unused=True))
