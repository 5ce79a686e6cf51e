"""A linear map recorded once and replayed: what depends on the vector runs again, everything else is a
constant.

A curvature product computed by forward-over-reverse differentiation spends half of its time on what does not
depend on the vector: activations, their derivatives, the gradient. Recording the primitive operations of one
such product, and dropping those that the vector does not reach, leaves the linear part, which is cheaper than
going backward through the graph of the gradient, and costs nothing to set up: the first product is the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sharpness.operators.recorder import Recorder, Slot, Step

_CONV_BACKWARD = torch.ops.aten.convolution_backward.default  # its last three flat arguments: the output mask


class Replay:
    """The linear map v -> product, at a fixed point; v and the product are lists of tensors.

    Attributes: `nbytes`, the memory of the constants it holds; `first`, the product of the vector that it was
    recorded with.
    """

    def __init__(self, function: Callable[[list[Tensor]], Sequence[Tensor]], v: Sequence[Tensor]) -> None:
        """Run `function(v)` once. Raises ReplayError for what cannot be replayed: a value of v that becomes a
        Python number, or a write into a constant."""
        roots = [part.clone() for part in v]  # clones: nothing else may be taken for the vector
        recorder = Recorder(roots)
        with recorder:
            self.first = list(function(roots))
        self._roots = len(roots)
        self._outputs: list[Any] = [Slot(recorder.slots[t]) if t in recorder.slots else t for t in self.first]
        self._steps = _merge_convolutions(_needed(recorder.steps, self._outputs))
        _mark_frees(self._steps, self._outputs)
        self._count = recorder.count
        self.nbytes = _constant_bytes(self._steps)

    def __call__(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The product with v; tensors shaped as those of the recording."""
        values: list[Any] = [None] * self._count
        values[: self._roots] = v
        if any(step.mutates for step in self._steps):  # a vector's part may be written to through a view
            values[: self._roots] = [part.clone() for part in v]
        with torch.no_grad():
            for step in self._steps:
                flat = [values[a.index] if type(a) is Slot else a for a in step.arguments]
                args, kwargs = tree_unflatten(flat, step.spec)
                found = step.function(*args, **kwargs)
                if type(found) is Tensor:
                    values[step.outputs[0]] = found  # pyright: ignore[reportCallIssue, reportArgumentType]
                else:
                    for slot, part in zip(step.outputs, tree_flatten(found)[0], strict=True):
                        if slot is not None:
                            values[slot] = part
                for index in step.frees:
                    values[index] = None
        return [values[o.index] if type(o) is Slot else o for o in self._outputs]


def _needed(steps: Sequence[Step], outputs: Sequence[Any]) -> list[Step]:
    """Without the steps, and the parts of convolutions' derivatives, that nothing uses.

    A write stays: its target may be seen through another view.
    """
    wanted = {o.index for o in outputs if type(o) is Slot}
    kept = []
    for step in reversed(steps):
        if step.mutates or any(slot in wanted for slot in step.outputs):
            wanted |= {a.index for a in step.arguments if type(a) is Slot}
            if step.function is _CONV_BACKWARD:
                step.outputs = [slot if slot in wanted else None for slot in step.outputs]
                step.arguments[-3:] = [slot is not None for slot in step.outputs]
            kept.append(step)
    return kept[::-1]


def _merge_convolutions(steps: list[Step]) -> list[Step]:
    """Derivatives of the same convolution with respect to input and weight, asked for apart, become one call:
    the kernels share their work."""
    written = {a.index for s in steps if s.mutates for a in s.arguments if type(a) is Slot}
    first: dict[Any, Step] = {}
    kept = []
    for step in steps:
        if step.function is _CONV_BACKWARD:
            tensors = step.arguments[:-3]
            reads = {a.index for a in tensors if type(a) is Slot}
            key = tuple(_identity(a) for a in tensors)
            other = first.setdefault(key, step)
            both = [a is not None and b is not None for a, b in zip(other.outputs, step.outputs, strict=True)]
            if other is not step and not reads & written and not any(both):
                pairs = zip(other.outputs, step.outputs, strict=True)
                other.outputs = [a if a is not None else b for a, b in pairs]
                other.arguments[-3:] = [slot is not None for slot in other.outputs]
                continue
        kept.append(step)
    return kept


def _identity(argument: Any) -> Any:
    """Equal for arguments that are the same for all purposes."""
    if isinstance(argument, Tensor):
        return argument.data_ptr(), argument.shape, argument.stride(), argument.dtype
    return argument if type(argument) is Slot else repr(argument)


def _mark_frees(steps: Sequence[Step], outputs: Sequence[Any]) -> None:
    """Let each step drop the values that no later one uses."""
    kept = {o.index for o in outputs if type(o) is Slot}
    seen = set(kept)
    for step in reversed(steps):
        here = {a.index for a in step.arguments if type(a) is Slot}
        here |= {slot for slot in step.outputs if slot is not None}
        step.frees = tuple(here - seen)
        seen |= here


def _constant_bytes(steps: Sequence[Step]) -> int:
    storages = {}
    for step in steps:
        for a in step.arguments:
            if isinstance(a, Tensor):
                storage = a.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
