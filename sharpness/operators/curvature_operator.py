"""A curvature matrix of a model's mean loss as an operator: `routes` compute its products, `verification` checks them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpness.operators.difference_check import CurvatureCheck
from sharpness.operators.model_state import ModelState
from sharpness.operators.products import Kind, twice_differentiable
from sharpness.operators.replicas import replicas_of, require_same_gradients
from sharpness.operators.routes import MEMORY, Method, Route, Routes
from sharpness.operators.verification import OperatorCheck, Symmetry, check_operator, verified
from sharpness.problem.arguments import check_choice, check_count
from sharpness.problem.problem import Problem
from sharpness.problem.untouched import Mode

Array = TypeVar("Array", Tensor, NDArray[Any])


class CurvatureOperator:
    """A symmetric matrix M [n, n] of the mean loss at the weights the model had at construction: `op @ v`.

    v is a numpy array or a torch tensor, [n] or [n, k] (column by column); the product is of the same kind,
    in float64: each batch's product is computed in the parameters' precision and accumulated over batches
    in float64.

    Attributes: `shape` (n, n); `dtype`, the precision of the products' arithmetic; `matvecs`, Hessian-vector products (HVPs)
        so far; `kind`; `examples`, `mode`, `names` of the parameters; `route`, None before the first product, then
        "graph" (the gradient's graph is kept), after thirty products "replay" (recorded once and replayed),
        "rebuilt" (batch by batch, anew each time), or "differences" (asked for by `method`); `retained_bytes`, the most
        that is kept between products.
    """

    def __init__(
        self,
        problem: Problem,
        kind: Kind = "hessian",
        *,
        sampled: bool = False,
        memory: int = MEMORY,
        devices: Sequence[str] | None = None,
        record_after: int | None = None,
        method: Method = "exact",
    ) -> None:
        check_choice("method", method, ("exact", "differences"))
        check_count("memory", memory, "2**31 (bytes), or 0 to keep nothing", least=0)
        self.method: Method = method
        self.kind: Kind = kind
        self.shape = (problem.n, problem.n)
        self.dtype = problem.dtype
        self.examples = problem.examples
        self.mode: Mode = problem.mode
        self.names = problem.names
        self.semidefinite = kind.startswith("fisher")  # ggn: where the loss is known to be convex
        self._problem, self._sampled = problem, sampled
        self._replicas = [problem] if devices is None else replicas_of(problem, devices)
        self._state = ModelState(problem)
        self._routes = Routes(
            problem, kind, self._replicas, method=method, sampled=sampled, memory=memory, record_after=record_after
        )
        self._symmetry = Symmetry(problem.dtype, by_differences=method == "differences")
        self._check: CurvatureCheck | None = None
        if devices is not None:
            with self._untouched():
                require_same_gradients(problem, self._replicas)

    @property
    def matvecs(self) -> int:
        return self._routes.num_hvps

    @property
    def route(self) -> Route | None:
        return self._routes.route

    @property
    def retained_bytes(self) -> int:
        return self._routes.retained_bytes

    def __matmul__(self, v: Array) -> Array:
        if isinstance(v, Tensor):
            product = self._apply(v.detach().double().cpu())
            return product.to(v.device)  # pyright: ignore[reportReturnType]
        return self._apply(torch.as_tensor(np.asarray(v, dtype=np.float64))).numpy()  # pyright: ignore[reportReturnType]

    def starting_vector(self) -> NDArray[np.float64] | None:
        """A direction [n] with a large part in the leading eigenvectors, for Krylov methods: the gradient.

        It comes for nothing when a product has been made and the graph is kept; None where it does not, or
        vanishes. That gradients lie mostly in the leading eigenspace is Gur-Ari et al. 2018's observation.
        """
        if self.route is None:
            with self._untouched():
                self._prepare()
        gradient = self._routes.gradient
        return gradient if gradient is not None and np.any(gradient) else None

    @property
    def verified(self) -> CurvatureCheck | None:
        """What products were compared with before the first one was given out; None with method "differences".

        Raises ValueError where they are not those of the matrix: see `hessian`.
        """
        if self._check is None and self.method == "exact":
            with self._untouched():
                self._verify()
        return self._check

    @property
    def curvature_check(self) -> float | None:
        """The size of `verified`, for the certificates of results."""
        return None if self.verified is None else self.verified.size

    def check(self, *, seed: int = 0) -> OperatorCheck:
        """Look for non-determinism and asymmetry, at the cost of two gradients and about five products.

        Nothing of the model moves, batch-norm statistics neither; a loader that only shuffles passes.
        """
        with self._untouched():
            return check_operator(self._problem, self._product, self._routes.anew, seed)

    def _apply(self, v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or len(v) != self.shape[0]:
            raise ValueError(f"v has shape {tuple(v.shape)}: the operator needs [{self.shape[0]}] or [{self.shape[0]}, k]")
        if v.ndim == 1:
            return self._checked_product(v)
        columns = [self._checked_product(column) for column in v.T]
        return torch.stack(columns, dim=1) if columns else torch.zeros_like(v)

    def _checked_product(self, v: Tensor) -> Tensor:
        with self._untouched():
            product = self._product(v)
        self._symmetry.require(v, product)
        return product

    def _product(self, v: Tensor) -> Tensor:
        if self.route is None:
            self._prepare()
        return self._routes.product(v)

    def _prepare(self) -> None:
        self._verify()
        self._routes.choose()

    def _verify(self) -> None:
        """Once, before the first product. Products by differences are compared with nothing else."""
        if self._check is None and self.method == "exact":
            self._check = verified(self._problem, self.kind, self._sampled)

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """The context in which everything is computed, at the weights of before."""
        self._state.require_same()
        if self._state.rewritten():
            self._routes.forget()
            self._symmetry.forget()
        with ExitStack() as stack:
            for problem in {id(p): p for p in (self._problem, *self._replicas)}.values():
                stack.enter_context(problem.untouched())
            stack.enter_context(twice_differentiable())
            yield
