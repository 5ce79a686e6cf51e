"""What the functions of an operator ask of it: a shape, a product, and the facts that go into certificates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sharpness.problem.arguments import shown
from sharpness.problem.progress import SILENT, Meter

Vector = NDArray[np.float64]


class Operator(Protocol):
    """Anything symmetric with a shape and a product: a curvature operator, a numpy matrix, a scipy
    LinearOperator."""

    @property
    def shape(self) -> Any: ...

    def __matmul__(self, v: Any, /) -> Any: ...


@dataclass(frozen=True)
class Facts:
    """Of an operator, for the certificates of results; None where it does not say."""

    n: int
    dtype: str
    examples: int | None
    mode: str | None
    semidefinite: bool = False  # whether it is so by construction
    curvature_check: float | None = None  # how far its products are from their definition

    @property
    def eps(self) -> float:
        """Unit of rounding of the operator's products."""
        return float(np.finfo(self.dtype).eps)


def facts_of(op: Operator) -> Facts:
    """Shape [n, n], precision of the products, and what else the operator says of itself.

    Raises ValueError for what is no operator, or one that is not square or empty.
    """
    if isinstance(op, type) or not (hasattr(op, "shape") and hasattr(op, "__matmul__")):
        raise ValueError(f"op is {shown(op)}: pass an operator, as hessian(model, loss, data) makes, or a symmetric matrix")
    shape = tuple(op.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"op has shape {shape}: a square symmetric operator is needed")
    given = np.float64 if isinstance(op, torch.Tensor) else getattr(op, "dtype", None) or np.float64
    dtype = np.dtype(str(given).removeprefix("torch.") if isinstance(given, torch.dtype) else given)
    if dtype.kind not in "biuf" or (isinstance(op, torch.Tensor) and op.is_complex()):
        raise ValueError(f"op is of dtype {dtype}: its entries must be real numbers")
    name = dtype.name if dtype.kind == "f" else "float64"
    semidefinite = bool(getattr(op, "semidefinite", False))
    return Facts(int(shape[0]), name, getattr(op, "examples", None), getattr(op, "mode", None), semidefinite,
                 getattr(op, "curvature_check", None))


def product_of(op: Operator, meter: Meter = SILENT) -> Callable[[Vector], Vector]:
    """v -> op @ v in float64 numpy, whatever the operator computes in; the meter counts the vectors."""

    matrix = op.detach().cpu().double().numpy() if isinstance(op, torch.Tensor) else op

    def once(v: Vector) -> Vector:
        with np.errstate(invalid="ignore"):  # what is not finite shows in the result
            found = np.asarray(matrix @ v, dtype=np.float64)
        meter.tick(1 if v.ndim == 1 else v.shape[1])
        return found

    def product(v: Vector) -> Vector:
        if v.ndim == 1 or not meter.active or isinstance(matrix, np.ndarray):
            return once(v)
        return np.stack([once(column) for column in v.T], axis=1) if v.shape[1] else v  # many may take long

    return product


def contradicts_semidefinite(facts: Facts, v: Vector, image: Vector, scale: float) -> bool:
    """Whether some v_j^T M v_j, of v [n] or [n, k], is negative beyond rounding where M cannot have that; scale: the
    largest ||M v|| / ||v|| seen."""
    forms = (v * image).sum(axis=0)
    return facts.semidefinite and bool(np.any(forms < -np.sqrt(facts.eps) * scale * np.square(v).sum(axis=0)))
