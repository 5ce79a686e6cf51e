"""How a curvature operator is verified: before its first product, with each later one, and by `CurvatureOperator.check`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpness.operators.difference_check import CurvatureCheck, curvature_check, suspects
from sharpness.operators.products import Kind, drawn_targets
from sharpness.problem.calls import exhausted, is_own, said
from sharpness.problem.problem import Problem
from sharpness.problem.result import Result
from sharpness.problem.untouched import Mode

AGREEMENT = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-8}
"""relative difference up to which two ways to one product agree"""


@dataclass(frozen=True, repr=False)
class OperatorCheck(Result):
    """Whether an operator is the same linear, symmetric map each time.

    Attributes:
        passed: no difference exceeds `tolerance`.
        loss, gradient: relative differences between two passes over the data; they show data or a model that
            draws anew each time.
        product: relative difference between the operator's product and one by double backward through a new
            pass.
        asymmetry: |u^T M v - v^T M u| / (||M u|| + ||M v||) for random unit u, v.
        tolerance: of the operator's precision; examples, dtype, mode, seed: as in other results.
        status: "ok", or the name of the worst difference.
    """

    passed: bool
    loss: float
    gradient: float
    product: float
    asymmetry: float
    tolerance: float
    examples: int
    dtype: str
    mode: Mode
    seed: int
    status: str


def verified(problem: Problem, kind: Kind, sampled: bool) -> CurvatureCheck:
    """Products and gradients of the first batch, compared with differences. Inside the operator's `untouched`.

    Raises ValueError where derivatives are wrong, or do not exist.
    """

    def compared(inputs: Any, targets: Any) -> tuple[CurvatureCheck, str]:
        if sampled:
            with problem.without_gradients():
                targets = drawn_targets(problem.outputs(inputs), targets)
        try:
            found = curvature_check(problem, kind, inputs, targets)
        except Exception as error:
            raise without_derivative(error) from error
        wrong = found.status in ("product", "gradient")
        return found, suspects(problem, inputs, targets) if wrong else ""

    found, where = problem.on_first(compared)
    named = f"; {where} may be why" if where else ""
    if found.status == "product":
        raise ValueError(
            f"second derivatives are off by {found.size:.2g} (relative) from differences of gradients{named}: a function "
            "written by hand needs a differentiable backward; hessian, ggn, fisher with method='differences' do without it"
        )
    if found.status == "gradient":
        raise ValueError(
            f"the gradient is off by {found.gradient:.2g} (relative) from differences of the loss{named} (detached parts, "
            "straight-through or reversed gradients): no curvature of one function belongs to it"
        )
    return found


def without_derivative(error: Exception) -> Exception:
    """torch's word that a derivative does not exist as one sentence; anything else as it is."""
    if is_own(error) or exhausted(error) or not isinstance(error, (RuntimeError, NotImplementedError)):
        return error
    remedy = "checkpoint with use_reentrant=False" if "heckpoint" in str(error) else "pass method='differences'"
    return ValueError(f"an operation has no second derivative in torch ({said(error)}): {remedy}")


class Symmetry:
    """u^T M v = v^T M u for the first product and each later one: free, and false for second derivatives
    that torch computes wrongly or drops in silence (functions that may be differentiated once)."""

    def __init__(self, dtype: np.dtype[Any], by_differences: bool) -> None:
        self._dtype, self._by_differences = dtype, by_differences
        self._first: tuple[Tensor, Tensor] | None = None  # vector and product

    def forget(self) -> None:
        """The next product is the first again."""
        self._first = None

    def require(self, v: Tensor, product: Tensor) -> None:
        """Raise ValueError where M v does not fit the first product."""
        if self._first is None:
            self._first = (v.clone(), product)
            return
        u, image = self._first
        size = float(u.norm() * product.norm() + v.norm() * image.norm())
        floor = 100 * np.finfo(self._dtype).eps  # curvature below it is rounding, which need not be symmetric
        noise = float(product.norm()) <= floor * float(v.norm()) or float(image.norm()) <= floor * float(u.norm())
        if noise or abs(float(u @ product - v @ image)) <= 10 * AGREEMENT[self._dtype] * size:
            return
        if self._by_differences:
            raise ValueError(
                "products are not symmetric: a step of the differences crosses a kink (ReLU, max-pooling, clamp), or the "
                "data or the model draw anew each time: measure on fewer examples, in float64, or with smooth activations"
            )
        raise ValueError(
            "products are not symmetric: the data or the model draw anew each time, or an operation of the model "
            "has no second derivative (such as a function that may be differentiated once): see op.check()"
        )


def check_operator(
    problem: Problem, product: Callable[[Tensor], Tensor], anew: Callable[[Tensor], Tensor], seed: int
) -> OperatorCheck:
    """Whether passes over the data repeat themselves, and `product` is symmetric and the same as one computed `anew`. Inside
    the operator's `untouched`."""
    rng, n, tolerance = np.random.default_rng(seed), problem.n, 10 * AGREEMENT[problem.dtype]
    u, v = rng.standard_normal((2, n)) / np.sqrt(n)
    mu, mv = (product(torch.from_numpy(x)).numpy() for x in (u, v))
    (f1, g1), (f2, g2) = (problem.mean_loss_and_gradient() for _ in range(2))
    again = anew(torch.from_numpy(v)).numpy()
    size = float(np.linalg.norm(mu) + np.linalg.norm(mv))
    found = {
        "loss": relative(f1, f2),
        "gradient": relative(g1, g2),
        "product": relative(mv, again),
        "asymmetry": abs(float(u @ mv - v @ mu)) / size if size else 0.0,
    }
    worst = max(found, key=lambda name: found[name])
    passed = bool(found[worst] <= tolerance)
    return OperatorCheck(
        passed, **found, tolerance=tolerance, examples=problem.examples, dtype=problem.dtype.name,
        mode=problem.mode, seed=seed, status="ok" if passed else worst,
    )


def relative(a: Any, b: Any) -> float:
    """||a - b|| over the larger norm; 0 for two zeros, infinite where either is not finite."""
    a, b = np.asarray(a), np.asarray(b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    size = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / size if size else 0.0
