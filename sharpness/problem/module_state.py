"""What modules hold besides parameters, buffers and submodules: remembered, and put back as it came."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OWN = frozenset(
    {
        "_parameters", "_buffers", "_modules", "training", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks",
        "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
        "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
        "_non_persistent_buffers_set",
    }
)
"""attributes of torch's own, kept by `untouched` or by `Buffers`"""
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_FIXED = (*_PLAIN, type, FunctionType, MethodType, ModuleType, nn.Module, nn.Parameter)
_MISSING = object()
_DEEP, _LONG = 3, 1000  # objects within objects, and entries of a container that are looked into

Undo = Callable[[bool], None]


class Attributes:
    """The attributes of modules at the time it is made, numbers in tensors, lists, dicts and objects included, and the
    states of generators: a network's memory of what it has seen."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._undo: list[Undo] = []
        seen: set[int] = set()
        for module in modules:
            self._undo += [_mapping(module._modules), _set(module._non_persistent_buffers_set)]
            _remember_fields(vars(module), self._undo, seen, 0, _OWN)

    def restore(self, *, thorough: bool = False) -> None:
        """Put everything back. `thorough` also finds writes that torch does not count (through `.data`)."""
        for undo in self._undo:
            undo(thorough)


class Buffers:
    """The buffers of modules at the time it is made. A buffer that several modules share stays shared."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._places: list[tuple[dict[str, Any], dict[str, Any]]] = [(m._buffers, dict(m._buffers)) for m in modules]

    def replace(self, function: Callable[[Tensor], Tensor]) -> None:
        """Put `function` of each in its place, and leave out what came since."""
        made = {id(b): function(b) for _, saved in self._places for b in saved.values() if b is not None}
        for held, saved in self._places:
            refill(held, {name: None if b is None else made[id(b)] for name, b in saved.items()})

    def restore(self) -> None:
        """Put everything back."""
        for held, saved in self._places:
            refill(held, saved)


def refill(held: dict[str, Any], saved: dict[str, Any]) -> None:
    """Let a dict hold what another holds."""
    if held or saved:
        held.clear()
        held.update(saved)


def _remember_fields(held: dict[str, Any], undo: list[Undo], seen: set[int], depth: int, left: frozenset[str]) -> None:
    saved, count = {key: value for key, value in held.items() if key not in left}, len(held)

    def back(thorough: bool) -> None:
        for key, value in saved.items():
            if held.get(key, _MISSING) is not value:
                held[key] = value
        if len(held) != count:
            for key in [key for key in held if key not in saved and key not in left]:
                del held[key]

    undo.append(back)
    for value in saved.values():
        _remember(value, undo, seen, depth)


def _remember(value: Any, undo: list[Undo], seen: set[int], depth: int) -> None:
    if isinstance(value, _FIXED) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        undo.append(_tensor(value))
    elif isinstance(value, np.ndarray):
        undo.append(_array(value))
    elif isinstance(value, (list, deque)):
        undo.append(_sequence(value))
        _remember_all(value, undo, seen, depth)
    elif isinstance(value, dict):
        undo.append(_mapping(value))
        _remember_all(value.values(), undo, seen, depth)
    elif isinstance(value, set):
        undo.append(_set(value))
    elif isinstance(value, tuple):
        _remember_all(value, undo, seen, depth)
    elif isinstance(value, torch.Generator):
        state = value.get_state()
        undo.append(lambda _: void(value.set_state(state)))
    elif isinstance(value, random.Random):
        inner = value.getstate()
        undo.append(lambda _: value.setstate(inner))
    elif isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        undo.append(lambda _: value.set_state(legacy))
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        undo.append(lambda _: setattr(value.bit_generator, "state", bits))
    elif depth < _DEEP and isinstance(getattr(value, "__dict__", None), dict):
        _remember_fields(value.__dict__, undo, seen, depth + 1, frozenset())


def void(_: Any) -> None:
    """The result of a call is not wanted."""


def _remember_all(values: Iterable[Any], undo: list[Undo], seen: set[int], depth: int) -> None:
    parts = list(values)
    for part in parts if len(parts) <= _LONG else ():
        _remember(part, undo, seen, depth)


def _tensor(value: Tensor) -> Undo:
    if value.is_meta or value.is_inference():
        return void
    copy, leaf, needs = value.detach().clone(), value.grad_fn is None, value.requires_grad
    version = value._version

    def back(thorough: bool) -> None:
        nonlocal version
        if value._version == version and not (thorough and not _equal(value, copy)):
            return
        if leaf and value.grad_fn is not None:
            value.detach_()
        if value.shape == copy.shape and value.layout == torch.strided:
            value.data.copy_(copy)
        else:
            value.data = copy.clone()
        if leaf and value.requires_grad != needs:
            value.requires_grad_(needs)
        version = value._version

    return back


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.layout != torch.strided or torch.equal(a.detach(), b))


def _array(value: np.ndarray) -> Undo:
    copy = value.copy()

    def back(_: bool) -> None:
        if value.shape == copy.shape and value.flags.writeable and value.dtype != object:
            value[...] = copy

    return back


def _sequence(value: list[Any] | deque[Any]) -> Undo:
    saved = list(value)

    def back(_: bool) -> None:
        if len(value) != len(saved) or any(a is not b for a, b in zip(value, saved, strict=True)):
            value.clear()
            value.extend(saved)

    return back


def _mapping(value: dict[Any, Any]) -> Undo:
    saved = dict(value)

    def back(_: bool) -> None:
        if len(value) != len(saved) or any(value.get(k, _MISSING) is not v for k, v in saved.items()):
            value.clear()
            value.update(saved)

    return back


def _set(value: set[Any]) -> Undo:
    saved = set(value)

    def back(_: bool) -> None:
        if value != saved:
            value.clear()
            value.update(saved)

    return back


def modules_of(roots: Sequence[Any]) -> list[nn.Module]:
    """All modules in `roots`, each once."""
    found = {id(m): m for root in roots if isinstance(root, nn.Module) for m in root.modules()}
    return list(found.values())
