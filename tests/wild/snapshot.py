"""Whether a model, and the world's random generators, are as they were: every attribute of every module, bit by bit."""

from __future__ import annotations

import copy
import random
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_NOISE = {"_modules", "_parameters", "_buffers"}  # looked at one by one


def snapshot(model: nn.Module, *others: Any) -> dict[str, Any]:
    """All there is to see of a model, of other things of its owner (a loss, data), and of global generators."""
    found: dict[str, Any] = {
        "torch's generator": torch.get_rng_state().clone(),
        "numpy's generator": np.random.get_state(),
        "Python's generator": random.getstate(),
        "gradients enabled": torch.is_grad_enabled(),
        "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
        "deepcopy": _copies(model),
    }
    found |= _module(model, "model")
    for index, other in enumerate(others):
        found |= _module(other, "loss") if isinstance(other, nn.Module) else {f"other {index}": frozen(other, set())}
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    return [name for name in before | after if name not in before or name not in after or not same(before[name], after[name])]


def _module(model: nn.Module, root: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        where = f"{root}.{path}" if path else root
        found[f"{where}.training"] = module.training
        for name, p in module._parameters.items():
            found[f"{where}.{name}"] = None if p is None else _parameter(p)
        for name, b in module._buffers.items():
            found[f"{where}.{name}"] = None if b is None else (id(b), frozen(b, set()))
        found[f"{where} children"] = [(name, id(m)) for name, m in module._modules.items()]
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, value in vars(module).items():
            if name not in _NOISE:
                found[f"{where}.{name}"] = frozen(value, set())
    return found


def _parameter(p: Any) -> Any:
    lazy = torch.nn.parameter.is_lazy(p)
    hooks = len(p._backward_hooks or ()), len(getattr(p, "_post_accumulate_grad_hooks", None) or ())
    grad = None if p.grad is None else (id(p.grad), frozen(p.grad, set()))
    return id(p), "lazy" if lazy else frozen(p.data, set()), p.requires_grad, grad, hooks, type(p).__name__


def frozen(value: Any, seen: set[int]) -> Any:
    """A copy to compare with: values where they can be compared, identities and what is inside where not."""
    if id(value) in seen:
        return "seen"
    if isinstance(value, Tensor):
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            return "escaped from a transform"
        if value.is_nested:
            return [frozen(part, seen) for part in value.unbind()]
        plain = value.detach()
        if plain.layout != torch.strided:
            return (str(plain.layout), plain.to_dense().clone())
        return ("meta", plain.shape) if plain.is_meta else (str(value.dtype), value.requires_grad, plain.clone())
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.Generator):
        return value.get_state().clone()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)):
        return value
    if isinstance(value, nn.Module):
        return ("module", id(value))
    if isinstance(value, weakref.ref):
        return ("reference", id(value()))
    seen = seen | {id(value)}
    if isinstance(value, dict):
        return [(key if isinstance(key, (str, int)) else id(key), frozen(part, seen)) for key, part in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [type(value).__name__, *(frozen(part, seen) for part in value)]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    inside = getattr(value, "__dict__", None)
    own = type(value).__module__.startswith(("wild", "tests"))  # an object of a situation's
    return (id(value), frozen(inside, seen) if own and inside else None)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def _copies(model: nn.Module) -> bool:
    try:
        copy.deepcopy(model)
    except Exception:  # copying runs whatever code the model holds, and any failure of it is the answer
        return False
    return True
