"""The same problem in float64, for a while: differences need steps so small that float32 rounds them away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from sharpness.problem.module_state import Buffers, modules_of
from sharpness.problem.problem import Problem


@contextmanager
def in_double(problem: Problem) -> Iterator[Problem]:
    """The problem with parameters and buffers of model and loss in float64, inside `untouched`.

    The modules get other parameters meanwhile: the caller's own, their place in graphs and what hangs on it stay untouched.
    """
    modules = modules_of([problem.model, problem.criterion])
    saved = [(m, dict(m._parameters)) for m in modules]
    buffers = Buffers(modules)
    every = {id(p): p for _, own in saved for p in own.values() if p is not None}
    doubles = {key: nn.Parameter(wide(p.detach()), requires_grad=p.requires_grad) for key, p in every.items()}
    try:
        for module, own in saved:
            module._parameters.update({name: doubles[id(p)] for name, p in own.items() if p is not None})
        buffers.replace(wide)
        yield replace(problem, parameters=tuple(doubles[id(p)] for p in problem.parameters))
    finally:
        for module, own in saved:
            module._parameters.update(own)
        buffers.restore()


def wide(t: Tensor) -> Tensor:
    """Numbers that are not whole, in float64."""
    return t.double() if t.is_floating_point() else t
