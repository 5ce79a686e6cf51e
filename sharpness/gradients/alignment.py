"""Where the gradient and its noise point with respect to the curvature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sharpness.gradients.per_example import gradient_spread
from sharpness.linalg.operator import Operator, contradicts_semidefinite, facts_of, product_of
from sharpness.operators.curvature_operator import CurvatureOperator
from sharpness.operators.products import twice_differentiable
from sharpness.problem.arguments import check_count, check_seed, is_whole, numbers_of, shown
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss, Problem
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result
from sharpness.problem.untouched import Mode

Vector = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class GradientHessianOverlap(Result):
    """Shares of the gradient G and of its noise Sigma in a space of k directions, and curvature along them.

    Attributes:
        value: ||P G||^2 / ||G||^2, P the projection onto the span of the vectors; in [0, 1].
        standard_error: by the delete-one jackknife over examples.
        shares: [k] (v_j . G)^2 / ||G||^2 of each vector, after orthonormalisation in the order given.
        noise_share: tr(P Sigma) / tr(Sigma), Sigma the covariance of single examples' gradients.
        noise_share_error: its standard error, by the jackknife.
        chance: k / n, the expected share of a random direction.
        curvature: G^T H G / ||G||^2.
        noise_curvature: tr(H Sigma) / tr(Sigma), by random-sign mixtures of all examples' gradients.
        noise_curvature_error: its standard error over the mixtures, these examples given.
        example_curvature: sum_i g_i^T H g_i / sum_i ||g_i||^2, from the two numbers before.
        lambda_max: largest Ritz value of H in the span: the largest eigenvalue if its vector is in it.
        matvecs: k + 1 + mixtures; evaluations: passes of loss and gradient.
        mixtures, seed: as asked; examples, n, dtype, mode: as in `hessian`; curvature_check: of op.
        status: "ok"; "undefined" (a gradient or a spread of exactly zero: its shares are NaN); "nonfinite";
            "impossible" (op cannot have negative eigenvalues, as a Fisher matrix, and a product shows one).
    """

    value: float
    standard_error: float
    shares: Vector
    noise_share: float
    noise_share_error: float
    chance: float
    curvature: float
    noise_curvature: float
    noise_curvature_error: float
    example_curvature: float
    lambda_max: float
    matvecs: int
    evaluations: int
    mixtures: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int
    status: str
    curvature_check: float | None = None


def gradient_hessian_overlap(
    model: nn.Module,
    loss: Loss,
    data: Data,
    op: Operator,
    vectors: ArrayLike,
    *,
    mixtures: int = 16,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> GradientHessianOverlap:
    """Share of the gradient in the top curvature space (Gur-Ari et al. 2018, 1812.04754), and of its noise.

    tr(H Sigma) is E[q^T H q] over q = sum_i s_i (g_i - G) / sqrt(N - 1) with random signs s_i. Misleads
    without `chance` beside it, and where the gradient is so small that G is mostly noise of the examples
    at hand (`gradient_noise` says whether it is). Memory: 8 N k + 8 n (k + mixtures) bytes.

    Args:
        op: the curvature, usually `hessian(model, loss, data)`, [n, n].
        vectors: [k, n], such as `top_eigenvalues(op, k).vectors`.
        mixtures: random-sign mixtures, at least 2; one product each.
        model, loss, data, params, batch_size, mode: as in `hessian`, the same as for op.
        seed: of the signs.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input, vectors that are linearly dependent, or examples that influence each other.
    """
    check_seed(seed)
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    n, total, facts = problem.n, problem.examples, facts_of(op)
    basis = _orthonormal(vectors, n)
    if facts.n != n:
        raise ValueError(f"op is {tuple(op.shape)} and the model has {n} parameters: build op with the same params")
    if total < 3 or not is_whole(mixtures) or mixtures < 2:
        raise ValueError(f"{total} examples and mixtures = {shown(mixtures)}: at least 3 and 2 are needed")
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(mixtures, total))
    with problem.untouched():
        spread = gradient_spread(problem, basis, signs, Meter(progress, "gradient_hessian_overlap: examples", total))
    gradient, d, c = spread.gradient, spread.deviations, spread.projections
    meter = Meter(progress, "gradient_hessian_overlap: HVPs", len(basis) + 1 + mixtures)
    product, nan = product_of(op, meter), float("nan")
    along = np.vstack([gradient[None], spread.mixtures / np.sqrt(total - 1)])
    image = product(along.T)
    forms = np.einsum("ij,ji->i", along, image)
    ritz = basis @ product(basis.T)
    squared, trace, inside = float(gradient @ gradient), float(d.sum()) / (total - 1), basis @ gradient
    if not np.isfinite([squared, trace, *forms, *ritz.ravel()]).all():
        squared = trace = nan
        status, lambda_max = "nonfinite", nan
    else:
        status = "ok" if squared > 0 and trace > 0 else "undefined"
        scale = float(np.abs(ritz).max())
        if status == "ok" and contradicts_semidefinite(facts, along.T, image, scale):
            status = "impossible"
        lambda_max = float(np.linalg.eigvalsh((ritz + ritz.T) / 2)[-1])
    noise = float(forms[1:].mean())
    summed = (total - 1) * noise + total * float(forms[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        squared, trace = (q if q > 0 else nan for q in (squared, trace))
        without = squared - 2 * spread.slopes / (total - 1) + d / (total - 1) ** 2
        shares_without = ((inside - c / (total - 1)) ** 2).sum(axis=1) / without
        in_span = (c**2).sum(axis=1)
        noise_without = (in_span.sum() - in_span) / (d.sum() - d)
        everything = np.nan_to_num(squared) * total + np.nan_to_num(trace) * (total - 1)
        return GradientHessianOverlap(
            value=float(inside @ inside) / squared, standard_error=jackknife_error(shares_without),
            shares=inside**2 / squared, noise_share=float(in_span.sum()) / (total - 1) / trace,
            noise_share_error=jackknife_error(noise_without) if trace > 0 else nan, chance=len(basis) / n,
            curvature=float(forms[0]) / squared, noise_curvature=noise / trace,
            noise_curvature_error=float(forms[1:].std(ddof=1)) / np.sqrt(mixtures) / trace,
            example_curvature=summed / everything if everything > 0 and status != "nonfinite" else nan,
            lambda_max=lambda_max, matvecs=len(basis) + 1 + mixtures, evaluations=2, mixtures=mixtures,
            examples=total, n=n, dtype=problem.dtype.name, mode=mode, seed=seed, status=status,
            curvature_check=facts.curvature_check,
        )


@dataclass(frozen=True, repr=False)
class BatchSharpness(Result):
    """E_B[g_B^T H_B g_B] / E_B ||g_B||^2, curvature along each batch's own gradient.

    Attributes:
        value: the ratio of the two means.
        standard_error: by the delete-one jackknife over batches; None with fewer than 2.
        curvatures: [m] g_B^T H_B g_B of each batch. squares: [m] ||g_B||^2.
        batch: examples in each (the largest, where data came in batches). batches: m.
        matvecs: Hessian-vector products (HVPs), each over one batch. evaluations: passes of loss and gradient, in parts of N.
        examples: N. n, dtype, mode: as in `hessian`; seed: as asked, None where data came in batches.
        status: "ok"; "undefined" (all gradients exactly zero); "nonfinite".
    """

    value: float
    standard_error: float | None
    curvatures: Vector
    squares: Vector
    batch: int
    batches: int
    matvecs: int
    evaluations: float
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int | None
    status: str
    curvature_check: float | None = None

    @property
    def mean_of_ratios(self) -> float:
        """E_B[g_B^T H_B g_B / ||g_B||^2], Andreyev & Beneventano's definition (2412.20553)."""
        return float(np.mean(self.curvatures / self.squares))


def batch_sharpness(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    batch: int | None = None,
    batches: int | None = None,
    params: Sequence[str] | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> BatchSharpness:
    """E_B[g_B^T H_B g_B] / E_B ||g_B||^2 over random batches B, H_B and g_B of the batch's own mean loss.

    Compared with 2 / lr for SGD, as lambda_max is for full-batch descent (lr: per step, of the batch mean's
    gradient). Andreyev & Beneventano 2024 (2412.20553) define it as the mean of ratios, E_B[g_B^T H_B g_B /
    ||g_B||^2]: `mean_of_ratios` of the result. At batch = N both are the Rayleigh
    quotient of the full gradient. Misleads near interpolation, where few examples carry both means.

    Args:
        batch: with a pair of tensors, the size of the batches, each drawn without replacement. With data
            that come in batches: None, and these are taken as they come, in the order of iteration.
        batches: how many; None means 32, or all batches of the data.
        model, loss, data, params, mode: as in `hessian`. Batch normalisation in train mode is allowed here.
        seed: of the draws, and of dropout in train mode.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input.
    """
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(x, Tensor) for x in data)
    if pair != (batch is not None):
        raise ValueError("batch is the size to draw from a pair of tensors, and None for data in batches")
    for name, count, example in (("batch", batch, "64"), ("batches", batches, "32")):
        if count is not None:
            check_count(name, count, example)
    check_seed(seed)
    problem = make_problem(model, loss, data, params=params, mode=mode, weight=weight, seed=seed)
    if batch is not None and batch > problem.examples:
        raise ValueError(f"batch is {batch} and data has {problem.examples} examples: draw at most these")
    verified = CurvatureOperator(problem).curvature_check
    expected = batches or (32 if pair else problem.batches)
    meter = Meter(progress, "batch_sharpness: batches", expected if pair else min(expected, problem.batches))
    curvatures, squares, sizes = [], [], []
    with problem.untouched():
        for part in _parts(problem, data, batch, batches, seed):
            gradient, product = _gradient_and_product(part)
            curvatures.append(float(gradient @ product))
            squares.append(float(gradient @ gradient))
            sizes.append(part.examples)
            meter.tick()
    top, bottom, m, error = np.array(curvatures), np.array(squares), len(sizes), None
    finite = bool(np.isfinite([*top, *bottom]).all())
    defined = finite and bottom.sum() > 0
    if m > 1:
        with np.errstate(invalid="ignore", divide="ignore"):
            error = jackknife_error((top.sum() - top) / (bottom.sum() - bottom))
    return BatchSharpness(
        value=float(top.sum() / bottom.sum()) if defined else float("nan"), standard_error=error,
        curvatures=top, squares=bottom, batch=max(sizes), batches=m, matvecs=m,
        evaluations=sum(sizes) / problem.examples, examples=problem.examples, n=problem.n,
        dtype=problem.dtype.name, mode=mode, seed=seed if pair else None,
        status="ok" if defined else "undefined" if finite else "nonfinite", curvature_check=verified,
    )


def jackknife_error(without: Vector) -> float:
    """Standard error of a statistic, given its values [m] without each of m units in turn."""
    return float(np.sqrt((len(without) - 1) * np.mean((without - without.mean()) ** 2)))


def _parts(problem: Problem, data: Any, batch: int | None, batches: int | None, seed: int) -> Iterator[Problem]:
    """The problem on each batch alone; dropout masks differ between batches."""
    if batch is None:
        for j, (inputs, targets, _) in enumerate(problem.passes()):
            if j == batches:
                return
            yield problem.on([(inputs, targets)], seed=seed + j)
        return
    rng = np.random.default_rng(seed)
    for j in range(batches or 32):
        chosen = torch.from_numpy(rng.choice(problem.examples, size=batch, replace=False))
        few = tuple(part.index_select(0, chosen.to(part.device)) for part in data)
        yield problem.on([few], seed=seed + j)


def _gradient_and_product(problem: Problem) -> tuple[Vector, Vector]:
    """g and H g [n] of a problem of one batch, through one graph (Pearlmutter 1994)."""
    gradient, product = np.zeros(problem.n), np.zeros(problem.n)
    with problem.untouched(), twice_differentiable():
        for inputs, targets, _ in problem.passes():
            loss = problem.batch_loss(inputs, targets)
            if not loss.requires_grad:
                continue
            parts = torch.autograd.grad(loss, problem.parameters, create_graph=True, allow_unused=True)
            gradient = problem.flatten(parts).cpu().numpy()
            linked = [g for g in parts if g is not None and g.requires_grad]
            if linked:
                along = [g.detach() for g in linked]
                found = torch.autograd.grad(linked, problem.parameters, along, allow_unused=True)
                product = problem.flatten(found).cpu().numpy()
    return gradient, product


def _orthonormal(vectors: ArrayLike, n: int) -> Vector:
    """Rows [k, n] made orthonormal in order; eigenvectors stay what they are, up to sign and rounding."""
    rows = numbers_of("vectors", vectors, f"finite vectors [k, n] with 1 <= k <= n = {n}")
    if rows.ndim != 2 or not 1 <= len(rows) <= n or rows.shape[1] != n or not np.isfinite(rows).all():
        raise ValueError(f"vectors have shape {rows.shape}: finite [k, n] with 1 <= k <= n = {n} are needed")
    q, r = np.linalg.qr((rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)).T)
    if np.abs(np.diag(r)).min() < 1e-6:
        raise ValueError("vectors are linearly dependent: pass each direction once")
    return q.T
