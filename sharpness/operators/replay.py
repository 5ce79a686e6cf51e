"""A linear map recorded once and replayed: what depends on the vector runs again, everything else is a
constant.

A curvature product computed by forward-over-reverse differentiation spends half of its time on what does not
depend on the vector: activations, their derivatives, the gradient. Recording the primitive operations of one
such product, and dropping those that the vector does not reach, leaves the linear part, which is cheaper than
going backward through the graph of the gradient, and costs nothing to set up: the first product is the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

_CONV_BACKWARD = torch.ops.aten.convolution_backward.default  # its last three flat arguments: the output mask

_ABOUT_SHAPE = {torch.ops.aten.is_same_size.default, torch.ops.aten._has_same_storage_numel.default}
"""give a Python value that does not depend on the vector's"""


class TapeError(RuntimeError):
    """This computation cannot be replayed: use another route to the product."""


@dataclass(frozen=True)
class _Slot:
    """A place for a tensor that depends on the vector."""

    index: int


@dataclass
class _Step:
    function: Any
    arguments: list[Any]  # flat; a _Slot, or a constant
    spec: TreeSpec
    outputs: list[int | None]
    mutates: bool
    frees: tuple[int, ...] = ()


class Tape:
    """The linear map v -> product, at a fixed point; v and the product are lists of tensors.

    Attributes: `nbytes`, the memory of the constants it holds; `first`, the product of the vector that it was
    recorded with.
    """

    def __init__(self, function: Callable[[list[Tensor]], Sequence[Tensor]], v: Sequence[Tensor]) -> None:
        """Run `function(v)` once. Raises TapeError for what cannot be replayed: a value of v that becomes a
        Python number, or a write into a constant."""
        roots = [part.clone() for part in v]  # clones: nothing else may be taken for the vector
        recorder = _Recorder(roots)
        with recorder:
            self.first = list(function(roots))
        self._roots = len(roots)
        self._outputs: list[Any] = [_Slot(recorder.slots[t]) if t in recorder.slots else t for t in self.first]
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
                flat = [values[a.index] if type(a) is _Slot else a for a in step.arguments]
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
        return [values[o.index] if type(o) is _Slot else o for o in self._outputs]


class _Recorder(TorchDispatchMode):
    """Sees every primitive operation, below automatic differentiation, and keeps those the vector reaches."""

    def __init__(self, roots: Sequence[Tensor]) -> None:
        super().__init__()
        self.slots: Any = WeakTensorKeyDictionary()  # dependent tensors, while they live
        for index, root in enumerate(roots):
            self.slots[root] = index
        self.count = len(roots)
        self.steps: list[_Step] = []
        self._captured: set[int] = set()  # storages of the constants

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and shielding the mode from the compiler imports it, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._efficientzerotensor.default:  # few kernels below this level accept one
            return torch.zeros(*args, **kwargs)
        flat, spec = tree_flatten((args, kwargs))
        slots = [self.slots.get(a) if isinstance(a, Tensor) else None for a in flat]
        depends = any(slot is not None for slot in slots)
        written = _written(func, args, kwargs) if func._schema.is_mutable else []
        self._check_writes(written, depends)
        result = func(*args, **kwargs)
        if not depends or func in _ABOUT_SHAPE:
            return result
        outputs = []
        for part in tree_flatten(result)[0]:
            if part is not None and not isinstance(part, Tensor):
                raise TapeError(f"{func} turns the vector into a Python value")
            outputs.append(None if part is None else self._slot(part))
        arguments = [a if slot is None else _Slot(slot) for a, slot in zip(flat, slots, strict=True)]
        self._captured |= {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, Tensor)}
        self.steps.append(_Step(func, arguments, spec, outputs, bool(written)))
        return result

    def _slot(self, tensor: Tensor) -> int:
        found = self.slots.get(tensor)
        if found is None:
            found = self.slots[tensor] = self.count
            self.count += 1
        return found

    def _check_writes(self, written: Sequence[Tensor], depends: bool) -> None:
        """A constant must stay what it was when it was captured, and must not become dependent."""
        for target in written:
            if target in self.slots:
                continue
            if depends or target.untyped_storage().data_ptr() in self._captured:
                raise TapeError("an operation writes into a tensor that is a constant of the product")


def _written(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    found = []
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_flatten(value)[0] if isinstance(t, Tensor)]
    return found


def _needed(steps: Sequence[_Step], outputs: Sequence[Any]) -> list[_Step]:
    """Without the steps, and the parts of convolutions' derivatives, that nothing uses.

    A write stays: its target may be seen through another view.
    """
    wanted = {o.index for o in outputs if type(o) is _Slot}
    kept = []
    for step in reversed(steps):
        if step.mutates or any(slot in wanted for slot in step.outputs):
            wanted |= {a.index for a in step.arguments if type(a) is _Slot}
            if step.function is _CONV_BACKWARD:
                step.outputs = [slot if slot in wanted else None for slot in step.outputs]
                step.arguments[-3:] = [slot is not None for slot in step.outputs]
            kept.append(step)
    return kept[::-1]


def _merge_convolutions(steps: list[_Step]) -> list[_Step]:
    """Derivatives of the same convolution with respect to input and weight, asked for apart, become one call:
    the kernels share their work."""
    written = {a.index for s in steps if s.mutates for a in s.arguments if type(a) is _Slot}
    first: dict[Any, _Step] = {}
    kept = []
    for step in steps:
        if step.function is _CONV_BACKWARD:
            tensors = step.arguments[:-3]
            reads = {a.index for a in tensors if type(a) is _Slot}
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
    return argument if type(argument) is _Slot else repr(argument)


def _mark_frees(steps: Sequence[_Step], outputs: Sequence[Any]) -> None:
    """Let each step drop the values that no later one uses."""
    kept = {o.index for o in outputs if type(o) is _Slot}
    seen = set(kept)
    for step in reversed(steps):
        here = {a.index for a in step.arguments if type(a) is _Slot}
        here |= {slot for slot in step.outputs if slot is not None}
        step.frees = tuple(here - seen)
        seen |= here


def _constant_bytes(steps: Sequence[_Step]) -> int:
    storages = {}
    for step in steps:
        for a in step.arguments:
            if isinstance(a, Tensor):
                storage = a.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
