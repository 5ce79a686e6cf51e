"""What is right: a model's mean loss in float64 by plain operations, one batch after the other, and its dense derivatives.

Nothing of the library is used here, except its searches as pure functions of a function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Batch = tuple[Any, Any, float]  # inputs, targets, share of the mean


def double(value: Any) -> Any:
    """Floating-point tensors in float64, wherever they are."""
    if isinstance(value, Tensor):
        return value.detach().double().clone() if value.is_floating_point() else value.clone()
    if isinstance(value, dict):
        return {key: double(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(double(part) for part in value)
    return value


def by_rows(pairs: Sequence[tuple[Any, Tensor]]) -> list[Batch]:
    """Batches weighted by their numbers of rows: the mean that the library documents."""
    total = sum(len(targets) for _, targets in pairs)
    return [(inputs, targets, len(targets) / total) for inputs, targets in pairs if len(targets)]


def singles(pairs: Sequence[tuple[Any, Tensor]]) -> list[tuple[Any, Tensor]]:
    """One batch per example."""
    return [(row_of(inputs, i), targets[i : i + 1]) for inputs, targets in pairs for i in range(len(targets))]


def row_of(inputs: Any, i: int) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[i : i + 1]
    if inputs is None:
        return None
    if isinstance(inputs, dict):
        return {key: row_of(part, i) for key, part in inputs.items()}
    return tuple(row_of(part, i) for part in inputs)


@dataclass(frozen=True)
class Oracle:
    """f(w) = sum_b share_b loss(model_w(inputs_b), targets_b), all in float64.

    examples: batches of one whose mean is f; None where examples depend on each other, and have no gradients.
    outputs: what of the model's result is its output z, for ggn and Fisher.
    call: how inputs go into the model.
    order: of the model's parameters, where the model under test has them in another one.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    batches: list[Batch]
    examples: list[tuple[Any, Any]] | None = None
    outputs: Callable[[Any], Tensor] = lambda z: z
    call: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs)

    order: Sequence[int] | None = None

    @property
    def every(self) -> list[nn.Parameter]:
        found = list(self.model.parameters())
        return found if self.order is None else [found[i] for i in self.order]

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.every if p.requires_grad]

    @cached_property
    def w(self) -> np.ndarray:
        return self._flat(self.parameters).numpy()

    @property
    def n(self) -> int:
        return len(self.w)

    def objective(self, model: nn.Module | None = None) -> Tensor:
        model = model or self.model
        parts = [share * self.loss(self.result(inputs, model), targets) for inputs, targets, share in self.batches]
        return torch.stack(parts).sum()

    def result(self, inputs: Any, model: nn.Module | None = None) -> Any:
        with sdpa_kernel(SDPBackend.MATH):  # the only one with second derivatives
            return self.call(model or self.model, inputs)

    def at(self, w: np.ndarray, parameters: Sequence[Tensor] | None = None) -> float:
        """f at other weights."""
        return self.slope_at(w, parameters)[0]

    def slope_at(self, w: np.ndarray, parameters: Sequence[Tensor] | None = None) -> tuple[float, np.ndarray]:
        """f and its gradient at other weights; of `parameters`, by default those that require gradients."""
        moved = self.parameters if parameters is None else parameters
        before = [p.detach().clone() for p in moved]
        for p, part in zip(moved, torch.from_numpy(w).split([p.numel() for p in moved]), strict=True):
            p.data.copy_(part.reshape(p.shape))
        value = self.objective()
        slope = self._flat(self._grad(value, False)).detach().numpy()
        for p, old in zip(moved, before, strict=True):
            p.data.copy_(old)
        return float(value), slope

    @cached_property
    def gradient(self) -> np.ndarray:
        return self._flat(self._grad(self.objective(), False)).detach().numpy()

    @cached_property
    def hessian(self) -> np.ndarray:
        return self._rows(self._flat(self._grad(self.objective(), True)))

    @cached_property
    def ggn(self) -> np.ndarray:
        total = np.zeros((self.n, self.n))
        for inputs, targets, share in self.batches:
            z = self.outputs(self.result(inputs))
            jacobian = self._rows(z.reshape(-1))
            inner = torch.autograd.functional.hessian(lambda outputs, t=targets: self.loss(outputs, t), z.detach())
            middle = inner.reshape(z.numel(), z.numel()).numpy()  # pyright: ignore[reportAttributeAccessIssue]
            total += share * jacobian.T @ middle @ jacobian
        return total

    @cached_property
    def example_gradients(self) -> np.ndarray:
        """[N, n]"""
        assert self.examples is not None
        rows = [self.loss(self.result(inputs), targets) for inputs, targets in self.examples]
        return np.stack([self._flat(self._grad(value, False)).detach().numpy() for value in rows])

    @property
    def fisher(self) -> np.ndarray:
        """The empirical one."""
        g = self.example_gradients
        return g.T @ g / len(g)

    def twin(self) -> nn.Module:
        """f as a model that is a plain module for the library, in float32: one output, one example, its own mean."""
        return Whole(copy.deepcopy(self).single())

    def single(self) -> Oracle:
        """In float32."""
        batches = [(float32(inputs), float32(targets), share) for inputs, targets, share in self.batches]
        return Oracle(self.model.float(), self.loss, batches, None, self.outputs, self.call, self.order)

    def _grad(self, value: Tensor, create_graph: bool) -> list[Tensor]:
        if not value.requires_grad:
            return [p * 0 for p in self.parameters]
        found = torch.autograd.grad(value, self.parameters, create_graph=create_graph, allow_unused=True)
        return [p * 0 if g is None else g for g, p in zip(found, self.parameters, strict=True)]

    def _rows(self, values: Tensor) -> np.ndarray:
        rows = []
        for value in values:
            if not value.requires_grad:
                rows.append(np.zeros(self.n))
                continue
            found = torch.autograd.grad(value, self.parameters, retain_graph=True, allow_unused=True)
            full = [p * 0 if g is None else g for g, p in zip(found, self.parameters, strict=True)]
            rows.append(self._flat(full).detach().numpy())
        return np.stack(rows)

    @staticmethod
    def _flat(tensors: Sequence[Tensor]) -> Tensor:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        return flat.detach() if isinstance(tensors[0], nn.Parameter) else flat


class Whole(nn.Module):
    """An objective as a plain model: its only output is f(w)."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.all, self._oracle = nn.ParameterList(oracle.every), (oracle,)

    def forward(self, x: Tensor) -> Tensor:
        return self._oracle[0].objective() + 0 * x


def float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.float64 else value
    if isinstance(value, dict):
        return {key: float32(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(float32(part) for part in value)
    return value
