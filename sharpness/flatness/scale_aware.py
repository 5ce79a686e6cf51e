"""Scale-aware quantities: the Fisher-Rao norm, and curvature times the weights it is measured in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sharpness.gradients.per_example import example_slopes, refuse_batch_statistics
from sharpness.linalg.eigen import Eigenvalues
from sharpness.operators.curvature import hessian
from sharpness.problem.arguments import check_choice, check_count, check_model, check_seed, numbers_of
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.nested import take
from sharpness.problem.parameters import select_parameters
from sharpness.problem.problem import Loss, Problem
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

Vector = NDArray[np.float64]
Labels = Literal["data", "model"]
Scale = Literal["element", "filter", "tensor"]


@dataclass(frozen=True, repr=False)
class FisherRaoNorm(Result):
    """||w||_fr = sqrt(E <w, grad l>^2).

    Attributes:
        value: the norm. squared: its square, the mean over examples.
        standard_error, squared_error: from the spread over examples, as draws from a population; None for one.
        labels: as asked.
        evaluations: passes over all the data, in gradients' worth.
        examples, n, dtype, mode: as in `hessian`; seed: None, nothing is drawn.
        status: "ok", or "nonfinite".
    """

    value: float
    squared: float
    standard_error: float | None
    squared_error: float | None
    labels: Labels
    evaluations: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int | None
    status: str


def fisher_rao_norm(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    labels: Labels = "data",
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    progress: Progress = None,
) -> FisherRaoNorm:
    """The Fisher-Rao norm ||w||_fr^2 = w^T I(w) w = E <w, grad_w l(f_w(x), y)>^2 (Liang et al. 2019,
    1711.01530, section 2.1).

    labels "data": y as in `data`, which is the empirical Fisher matrix. "model": y ~ softmax(f_w(x)), the
    Fisher information itself, where sum_y p_y ((p - e_y) . u)^2 = Var_p(u) with u = J w [classes]; the loss
    must be the cross-entropy of logits. Both come from the derivative along w alone, not from N gradients.
    They are unchanged by rescaling the layers of a ReLU network (Dinh et al. 2017). Misleads near
    interpolation, where both vanish with the loss.

    Args:
        labels: "data" or "model".
        model, loss, data, params, batch_size, mode: as in `hessian`; w is the selected parameters, all
            others are constants.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input, examples that influence each other, or for "model" outputs or a loss
            other than those above.
    """
    check_choice("labels", labels, ("data", "model"))
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight)
    meter = Meter(progress, "fisher_rao_norm: examples", problem.examples)
    with problem.untouched():
        if labels == "data":
            squares = example_slopes(problem, problem.weights(), meter)[1] ** 2
        else:
            squares = _output_variances(problem, problem.weights(), meter)
    total, squared = len(squares), float(squares.mean())
    finite = bool(np.isfinite(squares).all())
    value = float(np.sqrt(squared)) if finite else float("nan")
    error = float("nan") if not finite else float(squares.std(ddof=1) / np.sqrt(total)) if total > 1 else None
    return FisherRaoNorm(
        value=value, squared=squared if finite else float("nan"),
        standard_error=error / (2 * value) if error is not None and value > 0 else error, squared_error=error,
        labels=labels, evaluations=1 if labels == "data" else 2, examples=problem.examples, n=problem.n,
        dtype=problem.dtype.name, mode=mode, seed=None, status="ok" if finite else "nonfinite",
    )


def _output_variances(problem: Problem, w: Vector, meter: Meter) -> Vector:
    """Var_p(J w) [N] of the logits; J w as the derivative of J^T t in t, which every model has."""
    refuse_batch_statistics(problem)
    direction, rows = problem.split(torch.from_numpy(w)), []
    for inputs, targets, _ in problem.passes():
        logits = problem.outputs(inputs)
        _require_cross_entropy(problem, logits, targets)
        if not rows:
            _require_own_rows(problem, inputs, logits)
        dummy = torch.zeros_like(logits, requires_grad=True)
        backward = torch.autograd.grad(logits, problem.parameters, dummy, create_graph=True, allow_unused=True)
        pairs = [(b, v) for b, v in zip(backward, direction, strict=True) if b is not None]
        along = torch.autograd.grad([b for b, _ in pairs], dummy, [v for _, v in pairs])[0].double()
        p = logits.detach().double().softmax(dim=1)
        center = (p * along).sum(dim=1, keepdim=True)
        rows.append((p * (along - center).square()).sum(dim=1).cpu())
        meter.tick(len(logits))
    return torch.cat(rows).numpy()


def _require_cross_entropy(problem: Problem, logits: Any, targets: Tensor) -> None:
    """Raise ValueError unless outputs are logits and the loss is their mean cross-entropy."""
    shaped = isinstance(logits, Tensor) and logits.ndim == 2 and targets.ndim == 1 and logits.requires_grad
    if not shaped or targets.is_floating_point() or len(logits) != len(targets):
        raise ValueError("labels='model' needs logits [b, classes] and targets [b] of class indices")
    found = problem.loss(logits, targets).item()
    plain = nn.functional.cross_entropy(logits, targets).item()
    if abs(found - plain) > 1e-4 * (abs(plain) + 1e-2):
        raise ValueError(f"loss is {found:.6g} where the cross-entropy is {plain:.6g}: labels='model' needs the latter")


def _require_own_rows(problem: Problem, inputs: Any, logits: Tensor) -> None:
    """Raise ValueError unless the first example has the same logits alone."""
    first = torch.zeros(1, dtype=torch.long, device=logits.device)
    with torch.no_grad():
        alone = problem.outputs(take(inputs, first, len(logits)))[0]
    if bool((alone - logits[0]).abs().max() > 1e-3 * logits.abs().max()):
        raise ValueError("outputs of an example depend on the others in its batch: use mode='eval'")


@dataclass(frozen=True, repr=False)
class RelativeTrace(Result):
    """sum_i s_i^2 H_ii, s the scale of the weights.

    Attributes:
        value: the estimate. standard_error: over probes.
        by_parameter: each parameter's share in the sum, estimated from the same probes.
        scale: as asked. matvecs: probes. seed: as asked.
        examples, n, dtype, mode, curvature_check: as in `trace` of the Hessian.
        status: "ok", or "nonfinite".
    """

    value: float
    standard_error: float
    by_parameter: dict[str, float]
    scale: Scale
    matvecs: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int
    status: str
    curvature_check: float | None = None


def relative_trace(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    scale: Scale = "element",
    probes: int = 32,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> RelativeTrace:
    """tr(H diag(s^2)) = sum_i s_i^2 H_ii, the trace of the Hessian in units of the weights.

    The mean rise of the loss under noise N(0, rho^2 diag(s^2)) is rho^2 / 2 times it, to second order. s_i is
    |w_i| ("element"), or the root mean square of w_i's filter ("filter": slice along the first dimension,
    single numbers in vectors) or parameter tensor ("tensor"), so that a group g gives ||w_g||^2 tr(H_g) / n_g
    as in normalised flatness (Tsuzuku et al. 2020, 1901.04653). Every choice is unchanged by Dinh's
    rescaling of ReLU layers, in which each tensor is multiplied by one positive number. Estimated as
    E[(s z)^T H (s z)] over random signs z (Hutchinson 1989). Misleads at weights that are zero: their
    curvature does not count.

    Args:
        probes: number of z, at least 2, one product each.
        seed: of the signs.
        progress: True for lines on stderr, a function of (done, total, what), or None.
        model, loss, data, params, batch_size, mode: as in `hessian`.

    Raises:
        ValueError: wrong input.
    """
    check_count("probes", probes, "32", least=2)
    check_choice("scale", scale, ("element", "filter", "tensor"))
    check_seed(seed)
    meter = Meter(progress, "relative_trace: HVPs", probes)
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    s, rng = weight_scales(problem, scale), np.random.default_rng(seed)
    op = hessian(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    ends = np.cumsum([p.numel() for p in problem.parameters])[:-1]
    shares = np.empty((probes, len(problem.names)))
    for j in range(probes):
        z = s * rng.choice((-1.0, 1.0), size=problem.n)
        shares[j] = [part.sum() for part in np.split(z * (op @ z), ends)]
        meter.tick()
    finite = bool(np.isfinite(shares).all())
    sums = shares.sum(axis=1) if finite else np.full(probes, np.nan)
    means = shares.mean(axis=0) if finite else np.full(len(problem.names), np.nan)
    return RelativeTrace(
        value=float(sums.mean()), standard_error=float(sums.std(ddof=1) / np.sqrt(probes)),
        by_parameter=dict(zip(problem.names, means.tolist(), strict=True)), scale=scale, matvecs=probes,
        n=problem.n, **certificate(problem), status="ok" if finite else "nonfinite",
        curvature_check=op.curvature_check,
    )


def weight_scales(problem: Problem, scale: Scale) -> Vector:
    """s [n] as in `relative_trace`."""
    parts = []
    for parameter in problem.parameters:
        w = parameter.detach().double()
        if scale == "element" or (scale == "filter" and w.ndim < 2):
            parts.append(w.abs().reshape(-1))
        else:
            rows = w.reshape(len(w) if scale == "filter" else 1, -1)
            parts.append(rows.square().mean(dim=1, keepdim=True).sqrt().expand_as(rows).reshape(-1))
    return torch.cat([part.cpu() for part in parts]).numpy()


@dataclass(frozen=True, repr=False)
class NormScaled(Result):
    """lambda_i ||w||^2.

    Attributes:
        values: [k] in the order of the eigenvalues. residuals: [k] theirs times ||w||^2, or None.
        norm_squared: ||w||^2. n: number of scalars in w.
        status: that of the eigenvalues, where it says that they do not stand; else "ok", or "nonfinite".
    """

    values: Vector
    residuals: Vector | None
    norm_squared: float
    n: int
    status: str


def norm_scaled(eigenvalues: Eigenvalues | ArrayLike, model: nn.Module, *, params: Sequence[str] | None = None) -> NormScaled:
    """Eigenvalues of the Hessian times ||w||^2: curvature per relative change of the whole weight vector.

    Unchanged when all weights of a scale-invariant network are multiplied by one number. Misleads under
    Dinh's rescaling of single layers, which changes it: `relative_trace` does not have that fault.

    Args:
        eigenvalues: `top_eigenvalues(op, k)`, or numbers [k].
        model: with the weights at which they were measured.
        params: names of w, the same as for the operator; None: all with `requires_grad`.

    Raises:
        ValueError: unknown names, nothing selected, or eigenvalues of another number of parameters.
    """
    check_model(model)
    w = [p.detach().double() for p in select_parameters(model, params)[1]]
    squared, n = float(sum(part.square().sum() for part in w)), sum(part.numel() for part in w)
    spectrum = isinstance(eigenvalues, Eigenvalues)
    if spectrum and eigenvalues.n != n:
        raise ValueError(f"eigenvalues are of n = {eigenvalues.n} parameters and params select {n}: pass the operator's own")
    given = numbers_of("eigenvalues", eigenvalues.values if spectrum else eigenvalues, "top_eigenvalues(op, k), or numbers [k]")
    values, status = np.atleast_1d(given) * squared, "ok"
    if values.ndim != 1 or not len(values):
        raise ValueError(f"eigenvalues has shape {given.shape}: pass top_eigenvalues(op, k), or numbers [k]")
    if spectrum and eigenvalues.status not in ("converged", "precision"):
        status = eigenvalues.status
    return NormScaled(
        values=values,
        residuals=eigenvalues.residuals * squared if spectrum else None,
        norm_squared=squared,
        n=n,
        status=status if np.isfinite(values).all() else "nonfinite",
    )
