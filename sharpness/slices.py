"""The loss along a line or an arc between two minima (Keskar et al. 2017, figures 3 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sharpness.guard import Mode
from sharpness.problem import Data, Loss, Problem, make_problem

Curve = Literal["linear", "arc"]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Slice1D:
    """f along a path x(alpha).

    Attributes:
        alphas, losses: [m] float64; a loss that is not finite stays so.
        accuracies: [m], fractions in [0, 1], or None when outputs are not logits [b, classes] with targets
            [b] of indices.
        curve, mode: as asked; recalibrated: whether `recalibrate` set the buffers at each point.
        examples: number of examples behind each point.
        dtype: of the parameters.
        status: "ok", or "nonfinite" when a loss is not finite.
    """

    alphas: Vector
    losses: Vector
    accuracies: Vector | None
    curve: Curve
    mode: Mode
    recalibrated: bool
    examples: int
    dtype: str
    status: str

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; what is not finite is None."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("alphas", "losses", "accuracies"):
            array = facts[name]
            facts[name] = None if array is None else [float(v) if np.isfinite(v) else None for v in array]
        return facts


def slice_1d(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    alphas: Sequence[float] | Vector,
    curve: Curve = "linear",
    recalibrate: Callable[[nn.Module], object] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
) -> Slice1D:
    """Loss and accuracy of `model` over `data` at x(alpha) between two sets of weights.

    linear: x = (1 - alpha) start + alpha end. arc: x = cos(alpha pi / 2) start + sin(alpha pi / 2) end.
        Every parameter moves, frozen ones too, computed in float64 and rounded once.

    Buffers (such as running statistics of batch normalisation) are not on the path: they belong to the
    weights. With `recalibrate`, the function is called with the model at each point, in `mode`, after the
    weights have moved, to compute them anew. Without, floating-point buffers found in both `start` and
    `end` are interpolated linearly with alpha clipped to [0, 1] (extrapolated variances could be negative),
    others come from the nearer end, and buffers in neither are the model's own. Interpolated statistics are
    wrong between two distant minima: recalibrate where the claim depends on it.

    Args:
        start, end: state dicts, or mappings with at least all parameters.
        alphas: [m]; Keskar's figure 3 has 25 points in [-1, 2].
        data, loss, batch_size, mode: as in `hessian`. The model itself is left as it came.

    Raises:
        ValueError: wrong input, unknown or missing names, shapes that differ, or ends that are not finite.
    """
    if curve not in ("linear", "arc"):
        raise ValueError(f"curve is {curve!r}: it must be 'linear' or 'arc'")
    points = np.asarray(alphas, dtype=np.float64)
    if points.ndim != 1 or not len(points) or not np.isfinite(points).all():
        raise ValueError("alphas must be a non-empty one-dimensional sequence of finite numbers")
    _check_ends(model, start, end)
    every = [name for name, _ in model.named_parameters()]
    problem = make_problem(model, loss, data, params=every, batch_size=batch_size, mode=mode)
    losses, accuracies = np.empty(len(points)), np.empty(len(points))
    with problem.guard(), problem.movable(), torch.no_grad():
        for i, alpha in enumerate(points):
            _move(problem, start, end, float(alpha), curve)
            if recalibrate is not None:
                recalibrate(model)
                model.train(mode == "train")
            losses[i], accuracies[i] = _evaluate(problem)
    return Slice1D(
        alphas=points,
        losses=losses,
        accuracies=None if np.isnan(accuracies).any() else accuracies,
        curve=curve,
        mode=mode,
        recalibrated=recalibrate is not None,
        examples=problem.examples,
        dtype=problem.dtype.name,
        status="ok" if np.isfinite(losses).all() else "nonfinite",
    )


def _move(
    problem: Problem, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float, curve: Curve
) -> None:
    if curve == "linear":
        at_start, at_end = 1.0 - alpha, alpha
    else:
        at_start, at_end = float(np.cos(alpha * np.pi / 2)), float(np.sin(alpha * np.pi / 2))
    for name, parameter in zip(problem.names, problem.parameters, strict=True):
        device = parameter.device
        parameter.data.copy_(
            at_start * start[name].to(device).double() + at_end * end[name].to(device).double()
        )
    inside = min(max(alpha, 0.0), 1.0)
    for name, buffer in problem.model.named_buffers():
        if name in start and name in end:
            a, b = start[name].to(buffer.device), end[name].to(buffer.device)
            between = (
                (1.0 - inside) * a.double() + inside * b.double() if buffer.is_floating_point() else None
            )
            buffer.copy_((a if inside < 0.5 else b) if between is None else between)


def _evaluate(problem: Problem) -> tuple[float, float]:
    """Mean loss, and accuracy (NaN where outputs are no logits) over one pass."""
    loss, accuracy = 0.0, 0.0
    for inputs, targets, weight in problem.passes():
        outputs = problem.model(inputs)
        loss += weight * float(problem.loss(outputs, targets))
        accuracy += weight * _batch_accuracy(outputs, targets)
    return loss, accuracy


def _batch_accuracy(outputs: Any, targets: Tensor) -> float:
    indices = targets.ndim == 1 and not targets.is_floating_point() and not targets.is_complex()
    if not indices or not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(targets):
        return float("nan")
    return float((outputs.argmax(dim=1) == targets).double().mean())


def _check_ends(model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
    shapes = {
        name: t.shape for name, t in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    }
    needed = {name for name, _ in model.named_parameters()}
    for label, weights in (("start", start), ("end", end)):
        missing, unknown = (
            sorted(needed - weights.keys()),
            sorted(weights.keys() - model.state_dict().keys() - shapes.keys()),
        )
        if missing or unknown:
            raise ValueError(
                f"{label} lacks {missing[:4]} and has the unknown {unknown[:4]}: pass this model's weights"
            )
        for name in weights.keys() & shapes.keys():
            if weights[name].shape != shapes[name]:
                raise ValueError(
                    f"{label}[{name!r}] has shape {tuple(weights[name].shape)} and the model "
                    f"{tuple(shapes[name])}: pass weights of this very model"
                )
            if not torch.isfinite(weights[name]).all():
                raise ValueError(f"{label}[{name!r}] contains NaN or infinity: pass finite weights")
