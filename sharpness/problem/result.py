"""What every result type shares: plain data for JSON, and a repr that a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, TypedDict

import numpy as np

from sharpness.problem.problem import Problem
from sharpness.problem.shown import short
from sharpness.problem.untouched import Mode


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
        return short(self)


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
