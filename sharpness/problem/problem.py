"""What every measurement shares: a model, a loss, data, the parameters that count, and the average."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sharpness.problem.batches import Batches, TensorBatches
from sharpness.problem.calls import Call, as_pair, length_of, refusal, with_weights
from sharpness.problem.means import Weight, share_of
from sharpness.problem.module_state import Attributes, Buffers, modules_of
from sharpness.problem.nested import cloned, fingerprint, to_device
from sharpness.problem.untouched import Mode, generator_states, movable_weights, restore_generators, seed_generators, untouched

Loss = Callable[..., Tensor]
Vector = NDArray[np.float64]
Found = TypeVar("Found")


_REMEDY = "pass a list of the batches to measure on, or seed the data's own generators for each pass"


class DataChangedError(ValueError):
    """Data are not those of the first pass."""


@dataclass(frozen=True)
class Problem:
    """f(w) = sum_b (s_b / S) loss(model_w(inputs_b), targets_b), with w the selected parameters, flattened
    in order, and s_b the share of batch b: its number of examples, unless the loss or the caller says otherwise.

    A pass is a deterministic function of w: each one starts from the same seed of the global generators (which
        `untouched` restores), so that dropout masks and a shuffling DataLoader without its own generator
        repeat themselves, and each batch meets the model with the buffers and attributes that it came with.
    """

    model: nn.Module
    criterion: Loss  # as given
    data: Batches
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    mode: Mode
    seed: int
    examples: int  # N
    batches: int
    total: float  # S
    weight: Weight
    call: Call
    copies: bool = False  # whether model or loss write into inputs or targets, so that they must get copies
    writes: bool = False  # whether it writes into its parameters
    observed: bool = True  # whether forward hooks take part
    differentiates: bool = False  # whether the model takes derivatives itself, so that gradients must be on
    prints: tuple[Any, ...] | None = None  # of each batch, where data are read anew at each pass

    @property
    def n(self) -> int:
        """Number of selected scalars."""
        return sum(p.numel() for p in self.parameters)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The coarsest precision among the selected parameters."""
        coarse = any(p.dtype == torch.float32 for p in self.parameters)
        return np.dtype(np.float32 if coarse else np.float64)

    @property
    def device(self) -> torch.device:
        """Where the first selected parameter is."""
        return self.parameters[0].device

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """The context in which everything is computed, and after which the model is as before.

        Raises ValueError, in one sentence, for what torch or the model raises inside.
        """
        try:
            with untouched(
                self.model, self.parameters, self.mode, loss=self.criterion, writes=self.writes, observed=self.observed
            ):
                yield
        except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError) as error:
            raise refusal(error, "model or loss fails while it is measured") from error

    def movable(self) -> AbstractContextManager[None]:
        """The context, inside `untouched`, in which `move_to` may be called."""
        return movable_weights(self.parameters)

    def without_gradients(self) -> AbstractContextManager[Any]:
        """`torch.no_grad`, unless the model itself needs gradients."""
        return contextlib.nullcontext() if self.differentiates else torch.no_grad()

    def weights(self) -> Vector:
        """w, flattened, float64 [n]."""
        return vector_of(self.parameters)

    def move_to(self, w: Vector) -> None:
        """Write w [n] into the parameters, rounded to their dtype; only inside `movable`."""
        for parameter, part in zip(self.parameters, self.split(torch.from_numpy(w)), strict=True):
            parameter.data.copy_(part)

    def split(self, v: Tensor) -> list[Tensor]:
        """A flat [n] vector as tensors of the parameters' shapes, dtypes and devices."""
        parts = torch.split(v, [p.numel() for p in self.parameters])
        return [q.reshape(p.shape).to(p) for q, p in zip(parts, self.parameters, strict=True)]

    def on(self, batches: list[tuple[Any, Any]] | TensorBatches, *, seed: int | None = None) -> Problem:
        """The same model and loss on other batches, or some of them."""
        share, sizes = share_of(self.weight), [length_of(*batch) for batch in batches]
        return replace(self, data=batches, examples=sum(sizes),
                       batches=sum(n > 0 for n in sizes), total=sum(share(*batch) for batch in batches), prints=None,
                       seed=self.seed if seed is None else seed)

    def passes(self, *, restore: bool = True) -> Iterator[tuple[Any, Any, float]]:
        """One pass: (inputs, targets, weight s_b / S) on the model's device. Inside `untouched` only. A batch without
        share is left out.

        With `restore`, what forward writes to buffers and attributes is dropped after each batch.
        Raises ValueError where data read anew are not those of the first pass.
        """
        seen = 0
        for _, inputs, targets, share in self.walk(restore=restore):
            seen += length_of(inputs, targets)
            if share:
                yield inputs, targets, share / self.total
        if seen != self.examples:
            raise ValueError(f"data gave {self.examples} examples at first and {seen} in a later pass: pass what gives "
                             "the same examples each time it is iterated, such as a list or a DataLoader")

    def walk(self, *, restore: bool = True) -> Iterator[tuple[int, Any, Any, float]]:
        """All batches that are not empty: (index, inputs, targets, s_b), as in `passes`.

        Raises DataChangedError where data read anew are not those of the first pass.
        """
        share = share_of(self.weight)
        modules = modules_of([self.model, self.criterion]) if restore else []
        buffers, attributes = Buffers(modules), Attributes(modules)
        still = isinstance(self.data, (list, tuple, TensorBatches))  # such data draw nothing between batches
        index = -1
        seed_generators(self.parameters, self.seed)
        try:
            for index, batch in enumerate(self.data):
                inputs, targets = as_pair(batch)
                if self.prints is not None and self.prints[index : index + 1] != (fingerprint((inputs, targets)),):
                    raise DataChangedError(f"data changes between passes, first at batch {index}: {_REMEDY}")
                if not length_of(inputs, targets):
                    continue
                size = share(inputs, targets)
                buffers.replace(torch.clone)  # each batch finds the same, whatever forward writes to them
                if self.copies or self.prints is not None:  # a loader may write the next batch into the same tensors
                    inputs, targets = cloned(inputs), cloned(targets)
                # The model draws from a stream of its own for each batch, so that what the data draw next
                # does not depend on whether, and how, the model was run.
                state = None if still else generator_states(self.parameters)
                seed_generators(self.parameters, self.seed + 7919 * (index + 1))
                yield index, to_device(inputs, self.device), to_device(targets, self.device), size
                if state is not None:
                    restore_generators(self.parameters, state)
                attributes.restore()
        finally:
            buffers.restore()
            attributes.restore()
        if self.prints is not None and index + 1 != len(self.prints):
            raise DataChangedError(f"data gives {len(self.prints)} batches in one pass and {index + 1} in another: {_REMEDY}")

    def on_first(self, function: Callable[[Any, Any], Found]) -> Found:
        """`function` of the first batch's inputs and targets, as in a pass of its own. Inside `untouched` only."""
        for inputs, targets, _ in self.passes():
            return function(inputs, targets)
        raise ValueError("data have no batch with a share in the mean: pass at least one")

    def outputs(self, inputs: Any) -> Any:
        """What the loss gets of the model's answer."""
        return self.call(self.model, inputs)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of outputs that are there."""
        return with_weights(self.criterion)(outputs, targets)

    def batch_loss(self, inputs: Any, targets: Any) -> Tensor:
        """The loss of one batch, checked to be a scalar."""
        return scalar(self.loss(self.outputs(inputs), targets))

    def mean_loss(self) -> float:
        """f(w) at the present weights, accumulated in float64. Inside `untouched` only."""
        value = 0.0
        with self.without_gradients():
            for inputs, targets, weight in self.passes():
                value += weight * self.batch_loss(inputs, targets).item()
        return value

    def mean_loss_and_gradient(self) -> tuple[float, Vector]:
        """f(w) and its gradient [n] at the present weights, accumulated in float64. Inside `untouched` only."""
        value = 0.0
        gradient = torch.zeros(self.n, dtype=torch.float64, device=self.device)
        for inputs, targets, weight in self.passes():
            loss = self.batch_loss(inputs, targets)
            value += weight * loss.item()
            if loss.requires_grad:
                gradient += weight * self.flatten(torch.autograd.grad(loss, self.parameters, allow_unused=True))
        return value, gradient.cpu().numpy()

    def flatten(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Tensors shaped like the parameters as one float64 vector [n]; None stands for zeros."""
        pairs = zip(tensors, self.parameters, strict=True)
        full = [torch.zeros_like(p) if t is None else t.to_dense() if t.is_sparse else t for t, p in pairs]
        return torch.cat([t.detach().reshape(-1).double() for t in full])


def scalar(loss: Any) -> Tensor:
    """A loss, checked to be one number."""
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss returned {shape} instead of a scalar tensor: use the batch mean (reduction='mean')")
    return loss


def vector_of(tensors: Sequence[Tensor]) -> Vector:
    """Tensors, on whatever devices, flattened in order: float64 [n]."""
    return torch.cat([t.detach().reshape(-1).double().cpu() for t in tensors]).numpy()
