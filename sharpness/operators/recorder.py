"""The primitive operations of a computation, seen below automatic differentiation and vmap, and written down: for replays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

_ABOUT_SHAPE = {torch.ops.aten.is_same_size.default, torch.ops.aten._has_same_storage_numel.default}
"""give a Python value that does not depend on the values of tensors"""


class ReplayError(RuntimeError):
    """This computation cannot be replayed: compute it anew each time."""


@dataclass(frozen=True)
class Slot:
    """A place for a tensor that is another one in each replay."""

    index: int


@dataclass
class Step:
    """One operation. `arguments`, flat, are slots and constants; `outputs`, flat, slots or None for what is no tensor;
    `single`, whether the operation returns a tensor itself; `mutates`, whether it writes into an argument."""

    function: Any
    arguments: list[Any]
    spec: TreeSpec
    outputs: list[int | None]
    single: bool
    mutates: bool
    frees: tuple[int, ...] = ()  # slots that no later step reads


class Recorder(TorchDispatchMode):
    """Writes operations down as `steps`.

    By default those that `roots` reach: every other tensor is a constant, which must stay what it was when it was captured.
    With `whole` all of them, with a slot for each tensor: `values` are these, and `foreign` says that an argument came from
    somewhere else. `slots` are the tensors' numbers, the roots' first.

    Raises ReplayError, without `whole`, for a root's value that becomes a Python number, or a write into a constant.
    """

    def __init__(self, roots: Sequence[Tensor], *, whole: bool = False) -> None:
        super().__init__()
        self.slots: Any = WeakTensorKeyDictionary()  # while the tensors live
        for index, root in enumerate(roots):
            self.slots[root] = index
        self.count = len(roots)
        self.steps: list[Step] = []
        self.values: list[Tensor] = list(roots) if whole else []
        self.foreign = False
        self._whole = whole
        self._captured: set[int] = set()  # storages of the constants

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and shielding the mode from the compiler imports it, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._efficientzerotensor.default:  # few kernels below this level accept one
            func = torch.ops.aten.zeros.default
        flat, spec = tree_flatten((args, kwargs))
        slots = [self.slots.get(a) if isinstance(a, Tensor) else None for a in flat]
        depends = self._whole or any(slot is not None for slot in slots)
        written = _written(func, args, kwargs) if func._schema.is_mutable else []
        if not self._whole:
            self._check_writes(written, depends)
        result = func(*args, **kwargs)
        if not depends or func in _ABOUT_SHAPE:
            return result
        outputs = [self._output(func, part) for part in tree_flatten(result)[0]]
        arguments = [a if slot is None else Slot(slot) for a, slot in zip(flat, slots, strict=True)]
        constants = [a for a in arguments if isinstance(a, Tensor)]
        if self._whole:
            self.foreign |= bool(constants)
        else:
            self._captured |= {a.untyped_storage().data_ptr() for a in constants}
        self.steps.append(Step(func, arguments, spec, outputs, isinstance(result, Tensor), bool(written)))
        return result

    def _output(self, function: Any, part: Any) -> int | None:
        if isinstance(part, Tensor):
            return self._slot(part)
        if part is not None and not self._whole:
            raise ReplayError(f"{function} turns the vector into a Python value")
        return None

    def _slot(self, tensor: Tensor) -> int:
        found = self.slots.get(tensor)
        if found is None:
            found = self.slots[tensor] = self.count
            self.count += 1
            if self._whole:
                self.values.append(tensor)
        return found

    def _check_writes(self, written: Sequence[Tensor], depends: bool) -> None:
        """A constant must stay what it was when it was captured, and must not become dependent."""
        for target in written:
            if target in self.slots:
                continue
            if depends or target.untyped_storage().data_ptr() in self._captured:
                raise ReplayError("an operation writes into a tensor that is a constant of the product")


def _written(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    found = []
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_flatten(value)[0] if isinstance(t, Tensor)]
    return found
