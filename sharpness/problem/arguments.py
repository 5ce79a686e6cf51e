"""What arguments must be: each check raises ValueError in one sentence that says what, where and what instead."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Vector = NDArray[np.float64]

_SHOWN = 80  # characters of a wrong value


def shown(value: Any) -> str:
    """A wrong value, as a message names it: never an array's or a model's contents."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{'a tensor' if isinstance(value, torch.Tensor) else 'an array'} of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__} (a module)"
    if isinstance(value, (str, int, float, bool, type(None), tuple, list)) and len(repr(value)) <= _SHOWN:
        return repr(value)
    name = getattr(value, "__name__", None)
    return f"the {type(value).__name__} {name}" if isinstance(name, str) else f"a {type(value).__name__}"


def check_model(model: Any) -> None:
    if isinstance(model, nn.Module):
        return
    remedy = "call it first, to get a module" if callable(model) else "pass a torch.nn.Module, with its weights loaded"
    raise ValueError(f"model is {shown(model)} and not a torch.nn.Module: {remedy}")


def check_positive(name: str, value: Any, example: str) -> None:
    if not is_real(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {shown(value)}: it must be a positive finite number, such as {example}")


def check_count(name: str, value: Any, example: str, least: int = 1) -> None:
    if not is_whole(value) or value < least:
        kind = "a positive integer" if least == 1 else f"an integer of {least} or more"
        raise ValueError(f"{name} is {shown(value)}: it must be {kind}, such as {example}")


def check_fraction(name: str, value: Any, what: str) -> None:
    if not is_real(value) or not 0 < value < 1:
        raise ValueError(f"{name} is {shown(value)}: it is {what} and must lie between 0 and 1")


def check_seed(seed: Any) -> None:
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {shown(seed)}: it must be a non-negative integer")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        *first, last = (repr(choice) for choice in choices)
        listed = f"{', '.join(first)} or {last}" if first else last
        raise ValueError(f"{name} is {shown(value)}: it must be {listed}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {shown(value)}: it must be True or False")


def is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def numbers_of(name: str, value: Any, what: str) -> Vector:
    """`value` as a float64 array, from whatever holds real numbers; `what` says what it must be."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.double() if value.dtype == torch.bfloat16 else value
    elif isinstance(value, (list, tuple)):
        value = [part.detach().cpu() if isinstance(part, torch.Tensor) else part for part in value]
    try:
        found = np.asarray(value)
        if found.dtype.kind in "biuf":
            return np.array(found, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):  # rows of several lengths
        pass
    raise ValueError(f"{name} is {shown(value)}: it must be {what}")
