"""Gradients of single examples, streamed: all at once where torch can map over examples, else one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad_and_value, jvp, vmap

from sharpness.problem.calls import exhausted, is_own, length_of, said
from sharpness.problem.functional import Functional
from sharpness.problem.nested import take
from sharpness.problem.problem import Problem
from sharpness.problem.progress import SILENT, Meter

Vector = NDArray[np.float64]
Weights = dict[str, Tensor]
Single = Callable[[Weights, Tensor], Tensor]

CHUNK_BYTES = 2**26  # of gradients held at a time, in both precisions; more is slower on a CPU
_CHUNK_EXAMPLES = 256  # more gains nothing: the products are large enough by then


@dataclass(frozen=True)
class Spread:
    """How the gradients g_i [n] of N examples lie around their mean G; all float64.

    Attributes:
        loss: mean of the examples' losses.
        gradient: [n] G, from ordinary batch gradients.
        deviations: [N] ||g_i - G||^2.
        slopes: [N] (g_i - G) . G.
        projections: [N, k] (g_i - G) . v_j.
        mixtures: [m, n] sum_i s_ji (g_i - G) for the signs asked for.
    """

    loss: float
    gradient: Vector
    deviations: Vector
    slopes: Vector
    projections: Vector
    mixtures: Vector


def gradient_spread(
    problem: Problem, vectors: Vector | None = None, signs: Vector | None = None, meter: Meter = SILENT
) -> Spread:
    """Two passes: the mean gradient first, then each example's deviation from it, which loses no digits
    where the mean is much larger than the spread. Holds N (2 + k) + m n numbers, and gradients of
    CHUNK_BYTES at a time. vectors: v_j, [k, n]; signs: s, [m, N]; the meter counts examples.

    Inside `untouched` only. Raises ValueError as `example_gradients`.
    """
    loss, mean = problem.mean_loss_and_gradient()
    device = problem.parameters[0].device
    center = torch.from_numpy(mean).to(device)
    across = torch.from_numpy(np.zeros((0, problem.n)) if vectors is None else vectors).to(device).T
    mixing = torch.from_numpy(np.zeros((0, problem.examples)) if signs is None else signs).to(device)
    mixtures = center.new_zeros((len(mixing), problem.n))
    parts: list[Tensor] = []
    total, seen = torch.zeros_like(center), 0
    for _, rows in example_gradients(problem):
        rows -= center
        total += rows.sum(dim=0)
        mixtures += mixing[:, seen : seen + len(rows)] @ rows
        seen += len(rows)
        meter.tick(len(rows))
        lengths = torch.linalg.vector_norm(rows, dim=1) ** 2
        parts.append(torch.cat([lengths[:, None], (rows @ center)[:, None], rows @ across], dim=1).cpu())
    table = torch.cat(parts).numpy()
    rms = float(np.sqrt(table[:, 0].mean() + mean @ mean))
    off = float(torch.linalg.vector_norm(total)) / problem.examples
    eps = float(np.finfo(problem.dtype).eps)
    if rms > 1e3 * eps and off > 30 * np.sqrt(eps) * rms:
        raise ValueError(_coupled(f"gradients of single examples average to {off / rms:.1e} off the whole's"))
    return Spread(loss, mean, table[:, 0], table[:, 1], table[:, 2:], mixtures.cpu().numpy())


def example_gradients(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """Losses [c] and gradients [c, n] of successive examples in float64, on the model's device, from
    products in the parameters' precision: at most CHUNK_BYTES (or one gradient) at a time.

    The gradient of example i is that of `loss(model(inputs_i), targets_i)` on a batch of one. torch.func
    maps over examples; models it cannot map (control flow that depends on data, custom functions, a list of
    inputs of various shapes) are differentiated one example at a time, with the same result.

    Inside `untouched` only. Raises ValueError where no such gradient exists: batch statistics, or a batch loss
    that is not the mean of its examples' losses.
    """
    size = max(1, min(_CHUNK_EXAMPLES, CHUNK_BYTES // (16 * problem.n)))

    def fast(single: Single, weights: Weights, index: Tensor) -> tuple[Tensor, Tensor]:
        parts, losses = vmap(grad_and_value(single), in_dims=(None, 0))(weights, index)
        rows = [parts[name].reshape(len(index), -1).double() for name in problem.names]
        return losses.double(), torch.cat(rows, dim=1)

    return _per_example(problem, fast, lambda gradient: gradient, size)


def example_slopes(problem: Problem, v: Vector, meter: Meter = SILENT) -> tuple[Vector, Vector]:
    """Losses [N] and directional derivatives g_i . v [N] of all examples, in order, by one forward-mode pass.

    Inside `untouched` only. Raises ValueError as `example_gradients`.
    """
    direction = torch.from_numpy(v)
    tangents = dict(zip(problem.names, problem.split(direction), strict=True))
    on_device = direction.to(problem.parameters[0].device)

    def fast(single: Single, weights: Weights, index: Tensor) -> tuple[Tensor, Tensor]:
        def along(i: Tensor) -> Any:
            return jvp(lambda w: single(w, i), (weights,), (tangents,))

        losses, slopes = vmap(along)(index)
        return losses.double(), slopes.double()

    chunks = []
    for chunk in _per_example(problem, fast, lambda gradient: gradient @ on_device, _CHUNK_EXAMPLES):
        chunks.append(chunk)
        meter.tick(len(chunk[0]))
    losses, slopes = (torch.cat([chunk[j].detach() for chunk in chunks]).cpu().numpy() for j in (0, 1))
    return losses, slopes


def _per_example(
    problem: Problem,
    fast: Callable[[Single, Weights, Tensor], tuple[Tensor, Tensor]],
    from_gradient: Callable[[Tensor], Tensor],
    size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    refuse_batch_statistics(problem)
    weights = {k: p.detach() for k, p in zip(problem.names, problem.parameters, strict=True)}
    mappable = True
    for inputs, targets, _ in problem.passes():
        length, total = length_of(inputs, targets), 0.0
        single = _single_loss(problem, inputs, targets)
        for index in torch.arange(length, device=problem.device).split(size):
            chunk = None
            if mappable:
                try:
                    chunk = fast(single, weights, index)
                except Exception as error:  # whatever torch cannot map; an error of the model's own comes again below
                    if exhausted(error):
                        raise
                    mappable = False
            if chunk is None:
                chunk = _one_by_one(problem, inputs, targets, index, from_gradient)
            total += float(chunk[0].sum())
            yield chunk
        _require_mean(problem, inputs, targets, total / length)


def _single_loss(problem: Problem, inputs: Any, targets: Any) -> Single:
    """(weights, i) -> loss of example i; what forward assigns to buffers is dropped."""
    function, length = Functional(problem), length_of(inputs, targets)

    def single(weights: Weights, i: Tensor) -> Tensor:
        i = i.reshape(1)
        return function.loss(weights, take(inputs, i, length), take(targets, i, length))

    return single


def _one_by_one(
    problem: Problem, inputs: Any, targets: Any, index: Tensor, from_gradient: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    losses, results = [], []
    length = length_of(inputs, targets)
    for i in index.split(1):
        try:
            loss = problem.batch_loss(take(inputs, i, length), take(targets, i, length))
        except Exception as error:
            if is_own(error) or exhausted(error) or length == 1:
                raise
            raise ValueError(_coupled(f"one example alone does not go through ({said(error)})")) from error
        gradient: Any = [None] * len(problem.parameters)
        if loss.requires_grad:
            gradient = torch.autograd.grad(loss, problem.parameters, allow_unused=True)
        losses.append(loss.detach().double())
        results.append(from_gradient(problem.flatten(gradient)))
    return torch.stack(losses), torch.stack(results)


def refuse_batch_statistics(problem: Problem) -> None:
    """Raise ValueError where a layer normalises with statistics of the batch: its examples are coupled."""
    for name, module in problem.model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"module {name!r} normalises with batch statistics, so that per-example gradients do not "
                "exist: use mode='eval' and layers with running statistics"
            )


def _require_mean(problem: Problem, inputs: Any, targets: Any, mean: float) -> None:
    """A batch's loss must be the mean of its examples' losses, up to rounding (also that of small losses)."""
    with problem.without_gradients():
        whole = problem.batch_loss(inputs, targets).item()
    eps = float(np.finfo(problem.dtype).eps)
    near = abs(whole - mean) <= np.sqrt(eps) * max(abs(whole), abs(mean)) + 1e3 * eps
    if not near and np.isfinite(whole):
        raise ValueError(_coupled(f"loss of a batch is {whole:.6g} and its examples' mean {mean:.6g}"))


def _coupled(seen: str) -> str:
    return (
        f"{seen}: per-example gradients need examples that do not influence each other (no batch statistics, "
        "no random layers, no class weights, padding or pairs in the loss)"
    )
