"""The density of an operator's eigenvalues, by stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from sharpness.linalg.operator import Facts, Operator, facts_of, product_of
from sharpness.problem.arguments import check_count, check_positive, check_seed, numbers_of
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result

Vector = NDArray[np.float64]

_POINTS = 1024  # of the default grid
_BASIS_BYTES = 2**30  # for the bases of probes that advance together


@dataclass(frozen=True, repr=False)
class SpectralDensity(Result):
    """Estimated distribution of the n eigenvalues, each of mass 1/n.

    Attributes:
        values: [g] density at the points of `grid`, per unit of eigenvalue, smoothed by a Gaussian of
            standard deviation sigma; its integral over all reals is 1.
        standard_error: [g] of values, over probes; of the smoothed density, as in `integrate`.
        cumulative, cumulative_error: [g] integral of the smoothed density up to each grid point, and its
            standard error.
        grid: [g] eigenvalues.
        sigma: as given or chosen, in units of eigenvalue.
        nodes, weights: of each probe, Ritz values [k], ascending, and the mass each stands for, sum 1.
        probes, steps: as asked; a probe whose Krylov space is invariant has fewer nodes.
        matvecs: Hessian-vector products (HVPs) used. n, examples, dtype, mode, curvature_check: as in the operator.
        seed: as given.
        status: "ok"; "nonfinite" (a product held NaN or infinity: values, errors, sigma unless given, and
            all integrals are NaN; no nodes; the grid is the one given or NaN); "impossible" (op cannot have negative
            eigenvalues, as a Fisher matrix, and nodes are negative beyond rounding: its products are wrong); "coarse"
            (summed over the grid, values differ by more than 5% from the mass there: peaks fall between its points);
            "partial" (more than 1% of the mass lies outside the grid, so that values integrate to less than 1).
    """

    values: Vector
    standard_error: Vector
    cumulative: Vector
    cumulative_error: Vector
    grid: Vector
    sigma: float
    nodes: tuple[Vector, ...]
    weights: tuple[Vector, ...]
    probes: int
    steps: int
    matvecs: int
    n: int
    examples: int | None
    dtype: str
    mode: str | None
    seed: int
    status: Literal["ok", "nonfinite", "impossible", "coarse", "partial"]
    curvature_check: float | None = None

    def integrate(self, f: Callable[[Vector], ArrayLike]) -> tuple[float, float]:
        """(1/n) tr f(H) = mean of f over the eigenvalues, and its standard error over probes.

        f maps an array of eigenvalues to an array of that shape, elementwise. Exact for each probe where f
        is a polynomial of degree at most 2 steps - 1. Misleads where f changes within the gap between
        neighbouring nodes, as a step does: the error of the quadrature is not in the standard error; compare
        with a run of more steps.
        """
        if self.status == "nonfinite":
            return float("nan"), float("nan")
        pairs = zip(self.nodes, self.weights, strict=True)
        images = [(w, np.broadcast_to(np.asarray(f(t), dtype=np.float64), t.shape)) for t, w in pairs]
        value, error = _over_probes(np.array([w @ image for w, image in images]))
        return float(value), float(error)

    def moments(self, order: int = 4) -> tuple[Vector, Vector]:
        """(1/n) tr H^k for k = 1, ..., order, [order], and their standard errors [order]."""
        check_count("order", order, "4")
        pairs = [self.integrate(lambda t, k=k: t**k) for k in range(1, order + 1)]
        return np.array([value for value, _ in pairs]), np.array([error for _, error in pairs])


def spectral_density(
    op: Operator,
    *,
    probes: int = 10,
    steps: int = 80,
    grid: ArrayLike | None = None,
    sigma: float | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> SpectralDensity:
    """Density (1/n) sum_i N(t; lambda_i, sigma^2) of the eigenvalues of an operator [n, n].

    For each probe v, uniform on the unit sphere, `steps` steps of Lanczos from v give nodes theta_j, the
    eigenvalues of the tridiagonal matrix T, and weights w_j, the squared first entries of its eigenvectors:
    sum_j w_j f(theta_j) ~ v^T f(H) v, whose expectation is (1/n) tr f(H) (Ubaru, Chen & Saad 2017; Ghorbani,
    Krishnan & Xiao 2019, 1901.10159, section 2). Probes on the sphere have a component along every
    eigenvector, and their errors do not depend on the basis. Each step is orthogonalised twice against all
    earlier ones in float64, so that no eigenvalue comes back as a ghost: a simple outlier is one node of
    each probe, of expected weight 1/n. Multiple eigenvalues are one node, of all their weight.

    Misleads in two ways. Features narrower than sigma are invisible, and with sigma below the distance of
    neighbouring nodes the density shows nodes, not eigenvalues. And a cluster of fewer than about n / probes
    eigenvalues has a weight of large relative error, sqrt(2 / probes) for one.

    Memory: 8 n bytes for each of steps vectors and each probe; probes run together up to 1 GiB, products
    being op @ V with V [n, probes].

    Args:
        op: symmetric, with `shape` and `@` on [n, k] arrays.
        probes: at least 2, for a standard error.
        steps: HVPs per probe, at most n are made.
        grid: points of the density; None means 1024 equal steps from 4 sigma below the least node to 4
            sigma above the greatest.
        sigma: standard deviation of the smoothing; None means the range of the nodes over steps (where that
            is 0, 1e-3 of the node's magnitude, and 1e-3 for the zero operator).
        seed: of the probes; the global generators are never used.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input, a sigma that the default grid cannot resolve, or an operator found not to
            be symmetric.
    """
    facts = facts_of(op)
    points = _check(probes, steps, grid, sigma, seed)
    meter = Meter(progress, "spectral_density: HVPs", probes * min(steps, facts.n))
    lanczos = _Lanczos(op, facts, min(steps, facts.n), meter)
    rng, nodes, weights = np.random.default_rng(seed), [], []
    together = max(1, _BASIS_BYTES // (8 * facts.n * lanczos.steps))
    finite = True
    for first in range(0, probes, together):
        starts = rng.standard_normal((min(together, probes - first), facts.n))
        finite = lanczos.run(starts / np.linalg.norm(starts, axis=1, keepdims=True), nodes, weights)
        if not finite:
            nodes, weights = [], []
            break
    if finite:
        width, points = _resolution(nodes, steps, points, sigma)
        bells = [_smoothed(points, t, w, width) for t, w in zip(nodes, weights, strict=True)]
        (density, error), (cumulative, cumulative_error) = (_over_probes(np.array(part)) for part in zip(*bells, strict=True))
    else:
        width, points = sigma or float("nan"), np.full(_POINTS, np.nan) if points is None else points
        density, error, cumulative, cumulative_error = (np.full(len(points), np.nan) for _ in range(4))
    return SpectralDensity(
        values=density, standard_error=error, cumulative=cumulative, cumulative_error=cumulative_error,
        grid=points, sigma=width, nodes=tuple(nodes), weights=tuple(weights), probes=probes, steps=steps,
        matvecs=lanczos.matvecs, n=facts.n, examples=facts.examples, dtype=facts.dtype, mode=facts.mode,
        curvature_check=facts.curvature_check, seed=seed,
        status=_status(facts, nodes, points, density, cumulative) if finite else "nonfinite",
    )


def _status(
    facts: Facts, nodes: list[Vector], points: Vector, density: Vector, cumulative: Vector
) -> Literal["ok", "impossible", "coarse", "partial"]:
    """What contradicts that these are eigenvalues of this operator, or that values are their density."""
    low, high = min(float(t[0]) for t in nodes), max(float(np.abs(t).max()) for t in nodes)
    if facts.semidefinite and low < -np.sqrt(facts.eps) * high:
        return "impossible"
    order = np.argsort(points)
    inside = float(cumulative[order[-1]] - cumulative[order[0]])
    if abs(float(np.trapezoid(density[order], points[order])) - inside) > 0.05:
        return "coarse"
    return "partial" if inside < 0.99 else "ok"


class _Lanczos:
    """Lanczos from several starts in step, each with its own basis."""

    def __init__(self, op: Operator, facts: Facts, steps: int, meter: Meter) -> None:
        self.steps, self.eps, self.matvecs, self._product = steps, facts.eps, 0, product_of(op, meter)

    def run(self, starts: Vector, nodes: list[Vector], weights: list[Vector]) -> bool:
        """Append nodes and weights for each of the starts [b, n]; False at a product that is not finite."""
        b, n = starts.shape
        basis = np.empty((b, self.steps, n))
        alpha, beta = np.zeros((b, self.steps)), np.zeros((b, self.steps))
        sizes, scale = np.zeros(b, dtype=int), np.zeros(b)
        live, directions = np.arange(b), starts  # the starts whose space is not yet invariant
        for j in range(self.steps):
            basis[live, j] = directions
            image = self._product(np.ascontiguousarray(directions.T)).T
            self.matvecs += len(live)
            if not np.isfinite(image).all():
                return False
            scale[live] = np.maximum(scale[live], np.linalg.norm(image, axis=1))
            norms, rest = np.zeros(len(live)), np.empty_like(directions)
            for row, i in enumerate(live):
                past = basis[i, : j + 1]
                column = past @ image[row]
                known = np.r_[np.zeros(max(j - 1, 0)), beta[i, j - 1 : j]]
                if np.linalg.norm(column[:j] - known[:j]) > 0.1 * scale[i]:
                    raise ValueError(
                        "op is not symmetric, or its products differ from call to call: pass a symmetric "
                        "operator of a deterministic function"
                    )
                outside = image[row] - column @ past
                again = past @ outside
                outside -= again @ past
                alpha[i, j], norms[row] = column[j] + again[j], np.linalg.norm(outside)
                rest[row] = outside / (norms[row] or 1.0)
            sizes[live], beta[live, j] = j + 1, norms
            # A coupling below the rounding of the products moves no eigenvalue by more than that rounding.
            going = norms > 16 * self.eps * scale[live]
            live, directions = live[going], rest[going]
            if not len(live):
                break
        for i, k in enumerate(sizes):
            t = np.diag(alpha[i, :k]) + np.diag(beta[i, : k - 1], 1) + np.diag(beta[i, : k - 1], -1)
            values, vectors = np.linalg.eigh(t)
            nodes.append(values)
            weights.append(vectors[0] ** 2)
        return True


def _smoothed(points: Vector, nodes: Vector, weights: Vector, sigma: float) -> tuple[Vector, Vector]:
    """Density and cumulative distribution [g] of one probe."""
    density, cumulative = np.zeros(len(points)), np.zeros(len(points))
    for node, weight in zip(nodes, weights, strict=True):
        z = (points - node) / sigma
        density += weight * np.exp(-0.5 * z**2) / (sigma * np.sqrt(2 * np.pi))
        cumulative += weight * ndtr(z)
    return density, cumulative


def _over_probes(each: Vector) -> tuple[Vector, Vector]:
    """Mean and standard error over the rows."""
    return each.mean(axis=0), each.std(axis=0, ddof=1) / np.sqrt(len(each))


def _resolution(nodes: list[Vector], steps: int, points: Vector | None, sigma: float | None) -> tuple[float, Vector]:
    low, high = min(float(t[0]) for t in nodes), max(float(t[-1]) for t in nodes)
    size = max(abs(low), abs(high))
    spread = high - low if high - low > 1e-12 * size else 0.0
    width = float(sigma or spread / steps or 1e-3 * size or 1e-3)
    if points is None:
        points = np.linspace(low - 4 * width, high + 4 * width, _POINTS)
        step = (high - low + 8 * width) / (_POINTS - 1)
        if step > 2 * width:
            raise ValueError(
                f"sigma is {sigma:.3g} and the default grid has steps of {step:.3g}, which miss peaks: pass "
                "a finer grid, or a larger sigma"
            )
    return width, points


def _check(probes: int, steps: int, grid: ArrayLike | None, sigma: float | None, seed: int) -> Vector | None:
    check_count("probes", probes, "10", least=2)
    check_count("steps", steps, "80")
    check_seed(seed)
    if sigma is not None:
        check_positive("sigma", sigma, "0.01 (a standard deviation)")
    if grid is None:
        return None
    points = numbers_of("grid", grid, "a row of finite numbers")
    if points.ndim != 1 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"grid has shape {points.shape}: it must be a row of one or more finite numbers")
    return points
