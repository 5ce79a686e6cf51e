"""How a result prints: value and error, status and cost first, and the rest as far as a few lines hold it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

_FIRST = ("value", "standard_error", "status")
_COST = ("matvecs", "evaluations", "hessian_products", "measurements")
_ARRAY, _LENGTH = 4, 300  # entries of an array, characters of a result


def short(result: Any) -> str:
    """One line of at most some 300 characters; fields that find no room are counted, not dropped in silence."""
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
