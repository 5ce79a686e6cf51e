"""Whether a model is still what it was: an operator's products belong to the weights at which it was made."""

from __future__ import annotations

import torch
from torch import Tensor

from sharpness.problem.module_state import modules_of
from sharpness.problem.nested import identical
from sharpness.problem.problem import Problem


class ModelState:
    """The parameters and buffers of model and loss at the time it is made."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._values = [t.detach().clone() for t in self._live()]
        self._stamp = self._present_stamp()

    def require_same(self) -> None:
        """Raise ValueError where a value is another one: writes through `.data` raise no version, so values are compared."""
        now = self._live()
        if len(now) != len(self._values) or not all(identical(a, b) for a, b in zip(now, self._values, strict=True)):
            raise ValueError("model changed since the operator was made: make it again for the new weights")

    def rewritten(self) -> bool:
        """Whether tensors were written or replaced since the last call: graphs that saved them are stale, whatever the values."""
        before, self._stamp = self._stamp, self._present_stamp()
        return self._stamp != before

    def _live(self) -> list[Tensor]:
        modules = modules_of([self._problem.model, self._problem.criterion])
        held = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        return list({id(t): t for t in held}.values())

    def _present_stamp(self) -> list[tuple[int, int]]:
        return [(_place(t), 0 if t.is_inference() else t._version) for t in self._live()]


def _place(t: Tensor) -> int:
    return t.data_ptr() if t.layout == torch.strided else id(t)
