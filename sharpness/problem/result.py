"""What every result type shares: plain data for JSON, and a repr that a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, TypedDict

import numpy as np

from sharpness.problem.problem import Problem
from sharpness.problem.untouched import Mode

_FIRST = ("value", "standard_error", "status")
_COST = ("matvecs", "evaluations", "hessian_products", "measurements")
_ARRAY, _LENGTH = 4, 300  # entries of an array, characters of a result


class Result:
    """Base of the frozen dataclasses that measurements return; declare them with `repr=False`.

    `left_out` names the fields that are too large for JSON (basis vectors, directions): `to_dict` omits
    them.
    """

    left_out: ClassVar[frozenset[str]] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON: arrays as lists, results as dicts, what is not a finite number as
        None."""
        assert is_dataclass(self)
        return {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in self.left_out}

    def __repr__(self) -> str:
        assert is_dataclass(self)
        return _short(self)


class Certificate(TypedDict):
    """What a result says of the problem it was measured on."""

    examples: int
    dtype: str
    mode: Mode
    seed: int


def certificate(problem: Problem) -> Certificate:
    """For the constructor of a result; n is not among it, since not all parameters need to have moved."""
    return {"examples": problem.examples, "dtype": problem.dtype.name, "mode": problem.mode, "seed": problem.seed}


def plain(value: Any) -> Any:
    """Any field as JSON would hold it."""
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def _short(result: Any) -> str:
    """The repr: value and error, status and cost first, in at most some 300 characters; what finds no room is counted."""
    values = {f.name: getattr(result, f.name) for f in fields(result) if f.repr}
    error = values.get("standard_error")
    parts = []
    if "value" in values:
        parts.append(f"value={_value(values['value'])}" + (f" ± {error:.2g}" if isinstance(error, float) else ""))
    elif "values" in values:
        parts.append(f"values={_value(values['values'])}")
    parts += [f"status={values['status']!r}"] if "status" in values else []
    parts += [f"{name}={_value(values[name])}" for name in _COST if values.get(name) is not None]
    rest = [name for name in values if name not in (*_FIRST, *_COST, "values" if "value" not in values else "")]
    head = f"{type(result).__name__}({', '.join(parts)}"
    kept = 0
    for name in rest:
        part = f", {name}={_value(values[name])}"
        if len(head) + len(part) > _LENGTH - 20:
            break
        head, kept = head + part, kept + 1
    left = len(rest) - kept
    return f"{head}, and {left} more)" if left else f"{head})"


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or len(value) > 1000:
            return f"array{list(value.shape)}"
        parts = [_value(v) for v in value[:_ARRAY].tolist()]
        return f"[{', '.join(parts)}{', ...' if len(value) > _ARRAY else ''}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return f"dict of {len(value)}"
    if isinstance(value, (list, tuple)) and len(repr(value)) > 60:
        return f"{type(value).__name__} of {len(value)}"
    found = repr(value)
    return found if len(found) <= 80 else f"{found[:77]}..."
