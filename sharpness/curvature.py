"""Exact Hessian-vector products of a model's mean loss, by double backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness.guard import Mode
from sharpness.problem import Data, Loss, Problem, make_problem

Array = TypeVar("Array", Tensor, NDArray[Any])


class HessianOperator:
    """H = d^2 f / dw^2 [n, n] at the weights the model had at construction, as an operator: `op @ v`.

    v is a numpy array or a torch tensor, [n] or [n, k] (column by column); the product is of the same kind,
    in float64: each batch's product is computed in the parameters' precision and accumulated over batches
    in float64.

    Attributes: `shape` (n, n); `dtype`, the precision of the products' arithmetic; `matvecs`, products so
        far; `examples`, `mode`, `names` of the parameters and `retained`, whether the gradient's graph is
        kept between products.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.shape = (problem.n, problem.n)
        self.dtype = problem.dtype
        self.matvecs = 0
        self.examples = problem.examples
        self.mode: Mode = problem.mode
        self.names = problem.names
        self.retained = problem.batches == 1
        self._state = [t.detach().clone() for t in self._live_state()]
        self._stamp = self._present_stamp()
        self._graph: list[Tensor | None] | None = None

    def __matmul__(self, v: Array) -> Array:
        if isinstance(v, Tensor):
            product = self._apply(v.detach().double().cpu())
            return product.to(v.device)  # pyright: ignore[reportReturnType]
        return self._apply(torch.as_tensor(np.asarray(v, dtype=np.float64))).numpy()  # pyright: ignore[reportReturnType]

    def _apply(self, v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or len(v) != self.shape[0]:
            raise ValueError(
                f"v has shape {tuple(v.shape)}: the Hessian needs [{self.shape[0]}] or [{self.shape[0]}, k]"
            )
        if v.ndim == 2:
            columns = [self._product(column) for column in v.T]
            return torch.stack(columns, dim=1) if columns else torch.zeros_like(v)
        return self._product(v)

    def _product(self, v: Tensor) -> Tensor:
        self._require_same_weights()
        self.matvecs += 1
        problem = self._problem
        # Only the plain attention kernel has a second derivative.
        with problem.guard(), sdpa_kernel(SDPBackend.MATH):
            parts = problem.split(v)
            if self.retained:
                if self._graph is None:
                    inputs, targets, _ = next(iter(problem.passes()))
                    self._graph = _gradient_graph(problem, inputs, targets)
                return problem.flatten(_differentiate(self._graph, problem, parts, retain=True)).cpu()
            total = torch.zeros(problem.n, dtype=torch.float64, device=problem.parameters[0].device)
            for inputs, targets, weight in problem.passes():
                gradient = _gradient_graph(problem, inputs, targets)
                total += weight * problem.flatten(_differentiate(gradient, problem, parts, retain=False))
            return total.cpu()

    def _live_state(self) -> list[Tensor]:
        return [*self._problem.model.parameters(), *self._problem.model.buffers()]

    def _present_stamp(self) -> list[tuple[int, int]]:
        return [(t.data_ptr(), t._version) for t in self._live_state()]

    def _require_same_weights(self) -> None:
        """Compare values: writes through `.data` raise no version. Rewritten tensors need a new graph."""
        now = self._live_state()
        same = len(now) == len(self._state) and all(
            _identical(a, b) for a, b in zip(now, self._state, strict=True)
        )
        if not same:
            raise ValueError(
                "model changed since hessian(...) was called: call hessian again for the new weights"
            )
        stamp = self._present_stamp()
        if stamp != self._stamp:
            self._graph, self._stamp = None, stamp


def hessian(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
) -> HessianOperator:
    """The Hessian of f(w) = mean over `data` of `loss(model(inputs), targets)`, as an operator.

    Products are exact (Pearlmutter 1994, by automatic differentiation), never finite differences, and
    linear in v to rounding. When the data are one batch, the graph of the gradient is built at the first
    product and kept, activations included; otherwise it is rebuilt for each batch, and memory is that of
    one batch.

    Args:
        model: any module; its weights must stay as they are while the operator is in use.
        loss: `loss(outputs, targets)`, the mean over the batch.
        data: a pair of tensors, or any re-iterable of (inputs, targets) pairs such as a list or a DataLoader.
        params: names of the parameters w; None means all with `requires_grad`.
        batch_size: splits a pair of tensors into batches. In train mode batch normalisation couples the
            examples of a batch, so that the function itself depends on it.
        mode: "eval" or "train". In train mode dropout masks are the same at each product.

    Raises:
        ValueError: for wrong input (see `make_problem`), and from a product when the model was changed in
            between.
    """
    return HessianOperator(make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode))


def _gradient_graph(problem: Problem, inputs: Any, targets: Tensor) -> list[Tensor | None]:
    loss = problem.batch_loss(inputs, targets)
    if not loss.requires_grad:
        return [None] * len(problem.parameters)
    return list(torch.autograd.grad(loss, problem.parameters, create_graph=True, allow_unused=True))


def _differentiate(
    gradient: Sequence[Tensor | None], problem: Problem, v: Sequence[Tensor], *, retain: bool
) -> Sequence[Tensor | None]:
    """d(gradient . v)/dw; components of the gradient that do not depend on w contribute nothing."""
    pairs = [(g, part) for g, part in zip(gradient, v, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return [None] * len(problem.parameters)
    outputs, directions = zip(*pairs, strict=True)
    return torch.autograd.grad(
        outputs, problem.parameters, directions, retain_graph=retain, allow_unused=True
    )


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
