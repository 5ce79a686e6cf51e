"""The (C_eps, A)-sharpness of Keskar et al. 2017 (arXiv 1609.04836), metric 2.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sharpness.flatness.box import Start, maximise_in_box
from sharpness.linalg.eigen import top_eigenvalues
from sharpness.operators.curvature_operator import CurvatureOperator
from sharpness.problem.arguments import check_count, check_positive, check_seed, numbers_of, shown
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss, Problem
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result
from sharpness.problem.untouched import Mode

Vector = NDArray[np.float64]

STARTS = ("origin", "interior", "eigenvector", "sign-ascent")
DEFAULT_STARTS = ("origin", "eigenvector", "sign-ascent")
_EIGENVECTOR_PRODUCTS = 12
_EIGENVECTOR_TOLERANCE = 0.05
_COLUMNS = 2**16  # of A^T, summed in its precision before float64 takes over


@dataclass(frozen=True, repr=False)
class SharpnessStart(Result):
    """One search: `value` is its phi in percent, None if no loss was finite; the rest as in `Ascent`."""

    name: str
    value: float | None
    evaluations: int
    iterations: int
    status: str
    message: str


@dataclass(frozen=True, repr=False)
class EpsilonSharpness(Result):
    """phi = 100 (max_{y in C_eps} f(x + A y) - f(x)) / (1 + f(x)), in percent; a lower bound, as every
    found maximum is.

    Attributes:
        value: the best over all starts, at least 0.
        value_origin: from the paper's literal start y = 0 alone (None if "origin" was not among the
            starts): 0 at an exact minimum, where the gradient vanishes and L-BFGS-B stops at once.
        start: the start that won.
        starts: what each search did.
        loss, maximum: f(x) and the largest f found.
        epsilon, subspace (p, None for the full space), iterations, seed, mode: as asked.
        n, examples: numbers of parameters and of examples.
        evaluations: of the loss with its gradient, over all examples; hessian_products come on top
            (eigenvector start; 0 where the eigenvector was given).
        dtype: of the parameters. Loss and gradient are accumulated over batches in float64.
        status: "ok"; "nonfinite" when a search met a loss that is not finite (its finite values still count);
            "impossible" when the search from x itself saw nothing as high as f(x): the function is not the same at
            each evaluation.
    """

    value: float
    value_origin: float | None
    start: str
    starts: tuple[SharpnessStart, ...]
    loss: float
    maximum: float
    epsilon: float
    subspace: int | None
    iterations: int
    seed: int
    mode: Mode
    n: int
    examples: int
    evaluations: int
    hessian_products: int
    dtype: str
    status: str


def epsilon_sharpness(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    epsilon: float = 1e-3,
    subspace: int | None = None,
    iterations: int = 10,
    starts: Sequence[str] = DEFAULT_STARTS,
    eigenvector: ArrayLike | None = None,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> EpsilonSharpness:
    """Keskar's sharpness of `model` at its present weights x in R^n: how far f can rise in a small box
    around x.

    phi = 100 (max_{y in C_eps} f(x + A y) - f(x)) / (1 + f(x)) in percent, with
    C_eps = {y in R^p : |y_i| <= eps (|(A+ x)_i| + 1)}; f is the mean loss over `data`. Full space: A = I.
    Subspace: A is [n, p] with independent N(0, 1) entries, and A+ x is the least-squares solution. The
    paper says only that A is random; because of the "+ 1" phi depends on the scale of its columns, and N(0,
    1) is inferred from the published magnitudes.

    The paper maximises by 10 iterations of L-BFGS-B from y = 0. At a minimum that start has no gradient to
    follow, so more starts are tried, and both the best value and the literal one are kept: "eigenvector", the
    two corners that the leading Hessian eigenvector points to; "sign-ascent", a random point; on request
    "interior", another random point. The first two go from vertex to vertex along the gradient's signs,
    "interior" searches as the origin does: on trained networks it found what sign ascent found, at a higher
    cost. Each start but the origin may use `iterations` evaluations. phi depends on n: do not compare
    networks of different size by it.

    Args:
        epsilon: half-width of the box; the paper uses 1e-3 and 5e-4.
        subspace: p; the paper uses 100. None is the full space. A is drawn in float32 by a torch generator on
            the CPU, and takes 4 n p bytes on the model's device (8 n p for float64 models).
        starts: a choice of the names above.
        eigenvector: [n], the leading eigenvector of the Hessian or something near it, such as `vectors[0]` of
            `top_eigenvalues`: only its signs are used. None: found here, by at most 12 HVPs.
        params, batch_size, mode, data, loss: as in `hessian`.
        seed: of A, of the random starts and of dropout in train mode.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input, or f(x) not finite or not above -1.
    """
    _check(epsilon, subspace, iterations, starts, seed)
    meter = Meter(progress, "epsilon_sharpness: gradients")
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    x = problem.weights()
    vector, num_hvps = _checked(eigenvector, problem.n), 0
    if vector is None and "eigenvector" in starts:
        vector, num_hvps = _leading_eigenvector(problem, seed)

    with problem.untouched(), problem.movable():
        at_x = problem.mean_loss()
        if not (np.isfinite(at_x) and at_x > -1):
            raise ValueError(f"loss is {at_x} at the weights given: the metric needs a finite loss above -1")
        basis = None if subspace is None else _Basis.draw(problem, subspace, seed)
        radius = epsilon * (np.abs(x if basis is None else basis.pseudo_inverse(x)) + 1.0)
        along = vector if vector is None or basis is None else basis.transposed(vector)
        points = _starting_points(starts, radius, iterations, along, np.random.default_rng([seed, 1]))

        def objective(y: Vector) -> tuple[float, Vector]:
            problem.move_to(x + (y if basis is None else basis.times(y)))
            value, gradient = problem.mean_loss_and_gradient()
            meter.tick()
            return value, gradient if basis is None else basis.transposed(gradient)

        best = maximise_in_box(objective, -radius, radius, points, iterations=iterations)

    def percent(maximum: float) -> float:
        return 100.0 * max(maximum - at_x, 0.0) / (1.0 + at_x)

    facts = tuple(
        SharpnessStart(
            a.start, None if a.value is None else percent(a.value), a.evaluations, a.iterations, a.status,
            a.message,
        )
        for a in best.ascents
    )
    slack = 1e3 * np.finfo(problem.dtype).eps * max(abs(at_x), 1e-3)
    below = [a for a in best.ascents if a.start == "origin" and a.value is not None and a.value < at_x - slack]
    status = "nonfinite" if any(s.status == "nonfinite" for s in facts) else "impossible" if below else "ok"
    return EpsilonSharpness(
        value=percent(best.value), value_origin=next((s.value for s in facts if s.name == "origin"), None),
        start=best.start or "none", starts=facts, loss=at_x, maximum=max(best.value, at_x), epsilon=epsilon,
        subspace=subspace, iterations=iterations, seed=seed, mode=mode, n=problem.n,
        examples=problem.examples, evaluations=1 + sum(s.evaluations for s in facts),
        hessian_products=num_hvps, dtype=problem.dtype.name, status=status,
    )


@dataclass(frozen=True)
class _Basis:
    """A [n, p], kept as its transpose, on the model's device and in the parameters' precision.

    That precision suffices: x + A y is rounded to it anyway, and the gradient comes in it. The losses, of
    which phi is made, do not pass through A. Only sums over many thousand entries change to float64 on the
    way.
    """

    rows: Tensor  # [p, n]

    @staticmethod
    def draw(problem: Problem, p: int, seed: int) -> _Basis:
        state = np.random.SeedSequence([seed, 0]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state) >> 1)
        rows = torch.randn((p, problem.n), generator=generator, dtype=torch.float32)
        precision = torch.float32 if problem.dtype == np.float32 else torch.float64
        return _Basis(rows.to(problem.parameters[0].device, precision))

    def times(self, y: Vector) -> Vector:
        """A y."""
        return _numpy(self.rows.T @ self._own(y))

    def transposed(self, v: Vector) -> Vector:
        """A^T v."""
        pairs = zip(self.rows.split(_COLUMNS, dim=1), self._own(v).split(_COLUMNS), strict=True)
        return _numpy(torch.stack([(part @ w).double() for part, w in pairs]).sum(dim=0))

    def pseudo_inverse(self, x: Vector) -> Vector:
        """A+ x. Tall Gaussian matrices are so well conditioned that the normal equations lose nothing."""
        p, n = self.rows.shape
        if n < 4 * p:
            return np.asarray(np.linalg.lstsq(_numpy(self.rows.T), x, rcond=None)[0], np.float64)
        gram = torch.stack([(part @ part.T).double() for part in self.rows.split(_COLUMNS, dim=1)]).sum(dim=0)
        return np.asarray(np.linalg.solve(_numpy(gram), self.transposed(x)), np.float64)

    def _own(self, v: Vector) -> Tensor:
        return torch.from_numpy(v).to(self.rows)


def _numpy(values: Tensor) -> Vector:
    return values.double().cpu().numpy()


def _starting_points(
    names: Sequence[str],
    radius: Vector,
    iterations: int,
    along: Vector | None,
    rng: np.random.Generator,
) -> list[Start]:
    """The origin, the paper's protocol, has all its line searches; others `iterations` evaluations."""
    interior, before_signs = (
        rng.uniform(-radius, radius),
        rng.uniform(-radius, radius),
    )  # drawn whatever is chosen
    signs = max(iterations - 1, 1)
    points: list[Start] = []
    if "origin" in names:
        points.append(Start("origin", np.zeros_like(radius)))
    if "interior" in names:
        points.append(Start("interior", interior, 0, iterations))
    if "eigenvector" in names and along is not None:
        corner = np.where(along >= 0, radius, -radius)
        points.append(Start("eigenvector+", corner, signs, iterations))
        points.append(Start("eigenvector-", -corner, signs, iterations))
    if "sign-ascent" in names:
        points.append(Start("sign-ascent", before_signs, signs, iterations))
    return points


def _leading_eigenvector(problem: Problem, seed: int) -> tuple[Vector | None, int]:
    """A rough one will do: only signs are used."""
    op = CurvatureOperator(problem)
    top = top_eigenvalues(op, 1, tol=_EIGENVECTOR_TOLERANCE, max_matvecs=_EIGENVECTOR_PRODUCTS, seed=seed)
    return (None if top.vectors is None else top.vectors[0]), top.matvecs


def _checked(eigenvector: ArrayLike | None, n: int) -> Vector | None:
    if eigenvector is None:
        return None
    vector = numbers_of("eigenvector", eigenvector, f"n = {n} finite numbers that are not all zero, or None")
    if vector.shape != (n,) or not np.isfinite(vector).all() or not vector.any():
        raise ValueError(
            f"eigenvector has shape {vector.shape}: pass n = {n} finite numbers that are not all zero, "
            "such as vectors[0] of top_eigenvalues, or None"
        )
    return vector


def _check(epsilon: float, subspace: int | None, iterations: int, starts: Sequence[str], seed: int) -> None:
    check_positive("epsilon", epsilon, "the paper's 1e-3")
    if subspace is not None:
        check_count("subspace", subspace, "100 columns (or None for the full space)")
    check_count("iterations", iterations, "the paper's 10")
    if not isinstance(starts, (list, tuple)) or not starts or not set(map(str, starts)) <= set(STARTS):
        raise ValueError(f"starts is {shown(starts)}: pass one or more of {', '.join(STARTS)} in a list")
    check_seed(seed)
