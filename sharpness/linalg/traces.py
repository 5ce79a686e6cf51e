"""Trace, Frobenius norm and effective rank of an operator from products with random vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from sharpness.linalg.operator import Operator, contradicts_semidefinite, facts_of, product_of
from sharpness.problem.arguments import check_choice, check_fraction, check_positive, check_seed, is_whole, shown
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result

Method = Literal["hutchinson", "hutch++", "xtrace"]
Vector = NDArray[np.float64]

MINIMUM: dict[Method, int] = {"hutchinson": 2, "hutch++": 4, "xtrace": 4}
_CHUNK_BYTES = 2**27  # of probes at a time, where they need not be kept
_EPS, _NAN = float(np.finfo(np.float64).eps), float("nan")


@dataclass(frozen=True, repr=False, kw_only=True)
class _Estimate(Result):
    value: float
    standard_error: float
    matvecs: int
    n: int
    examples: int | None
    dtype: str
    mode: str | None
    seed: int
    status: str
    curvature_check: float | None = None


@dataclass(frozen=True, repr=False, kw_only=True)
class Trace(_Estimate):
    """An estimate of tr(H).

    Attributes:
        value: of tr(H), the sum of all eigenvalues.
        standard_error: of value, over probes, without rounding of the products; 0 where exact.
        degrees_of_freedom: of standard_error; None where exact or not finite.
        method: as asked, or "unit vectors" where `matvecs` sufficed for the exact trace.
        matvecs: HVPs used. n, examples, dtype, mode, curvature_check: as in the operator (see `Eigenvalues`). seed: as given.
        status: "ok"; "exact" (unit vectors); "nonfinite" (NaN or infinity met: value and error are NaN);
            "impossible" (op cannot have negative eigenvalues, as a Fisher matrix, and a product shows one beyond
            rounding: its products are wrong).
    """

    degrees_of_freedom: int | None
    method: Method | Literal["unit vectors"]

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """value -+ t standard_error, t the quantile of Student's t with degrees_of_freedom.

        Covers less often than `level` where a few eigenvalues dominate and the quadratic forms are skewed
        (85 to 90% seen for 95%). Raises ValueError for a level outside (0, 1).
        """
        check_fraction("level", level, "a probability")
        half = self.standard_error * float(student.ppf((1 + level) / 2, self.degrees_of_freedom or 1))
        return self.value - half, self.value + half


def trace(op: Operator, *, method: Method = "hutch++", matvecs: int = 100, seed: int = 0, progress: Progress = None) -> Trace:
    """tr(H) of an operator [n, n], with a standard error, from at most m = `matvecs` Hessian-vector products (HVPs).

    - m >= n: exact, from the n unit vectors.
    - "hutchinson": mean of z^T H z over m random sign vectors z (Hutchinson 1989). Its error falls like
      ||H - diag(H)||_F / sqrt(m).
    - "hutch++": Q [n, m/3], an orthonormal basis of H S for random signs S; tr(Q^T H Q) + the mean of
      z^T P H P z over the remaining probes, P = I - Q Q^T (Meyer, Musco, Musco & Woodruff 2021,
      2010.09649, algorithm 1). Error like 1/m where the spectrum decays. Given Q the probes are
      independent, so that the square of the standard error is unbiased.
    - "xtrace": that split for each of m/2 Gaussian probes, with the basis of H times all the others,
      averaged; residual probes scaled to their expected length (Epperly, Tropp & Webber 2024, 2301.07825).
      The paper's standard error leaves out that the estimates are correlated, and came to 0.6 to 1 of the
      true error; with the covariance added, which at most doubles it, 0.9 to 1.45 (root mean square).

    Misleads as a measure of sharpness where H is indefinite: eigenvalues of both signs cancel.

    Args:
        op: symmetric, with `shape` and `@` on [n, k] arrays.
        method: of the above. Memory, in vectors of 8 n bytes: m for "hutch++", 3 m for "xtrace".
        matvecs: budget of HVPs; at least 2 for "hutchinson", 4 for the others, or n.
        seed: of the probes; the global generators are never used.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: unknown method, too small a budget, or an operator that is not square.
    """
    check_choice("method", method, tuple(MINIMUM))
    probes = Probes(op, matvecs, MINIMUM[method], f"method {method!r}", seed, progress, "trace")
    used = "unit vectors" if probes.exact else method
    try:
        value, error, df = {"hutch++": _hutchpp, "xtrace": _xtrace}.get(used, _hutchinson)(probes)
    except NonFiniteError:
        value, error, df = _NAN, _NAN, None
    return Trace(**probes.certificate(value, error), degrees_of_freedom=df, method=used)


@dataclass(frozen=True, repr=False, kw_only=True)
class FrobeniusNorm(_Estimate):
    """An estimate of ||H||_F.

    Attributes:
        value: of ||H||_F = sqrt(tr(H^2)), the root of the sum of the squared eigenvalues.
        standard_error: by the delta method: that of the mean of ||H z||^2, over 2 value; 0 where exact.
        matvecs, n, examples, dtype, mode, seed, status: as in `Trace`.
    """

    def stable_rank(self, spectral_norm: float) -> tuple[float, float]:
        """||H||_F^2 / ||H||_2^2, in [1, n], and its standard error, the spectral norm taken as exact.

        `spectral_norm` is ||H||_2, as |value| of `top_eigenvalues(op, which="LM")`. Raises ValueError where
        it is not positive, or the rank lies outside [1, n] by five standard errors: not of the same matrix.
        """
        check_positive("spectral_norm", spectral_norm, "abs(top_eigenvalues(op, which='LM').value)")
        ratio, off = self.value / spectral_norm, 5 * self.standard_error / spectral_norm + 1e-3
        if ratio + off < 1 or ratio - off > np.sqrt(self.n):
            raise ValueError(
                f"||H||_F is {self.value:.4g} +- {self.standard_error:.2g} and spectral_norm {spectral_norm:.4g}: no matrix of "
                f"n = {self.n} has both; take them of one operator, with more matvecs"
            )
        return ratio**2, 2 * ratio * self.standard_error / spectral_norm


def frobenius_norm(op: Operator, *, matvecs: int = 100, seed: int = 0, progress: Progress = None) -> FrobeniusNorm:
    """||H||_F of an operator [n, n] from E ||H z||^2 = ||H||_F^2 over `matvecs` random sign vectors z.

    Exact, by unit vectors, where matvecs >= n. Misleads with few probes where one eigenvalue dominates: it
    is too small by about standard_error^2 / (2 value), and the spread is often too small. `op`, `seed`,
    `progress` and errors: as in `trace`; minimum 2, or n.
    """
    probes = Probes(op, matvecs, 2, "frobenius_norm", seed, progress, "frobenius_norm")
    try:
        return FrobeniusNorm(**probes.certificate(*_norm(probes.sample()[1], probes.exact)))
    except NonFiniteError:
        return FrobeniusNorm(**probes.certificate(_NAN, _NAN))


@dataclass(frozen=True, repr=False, kw_only=True)
class EffectiveRank(_Estimate):
    """An estimate of tr(H)^2 / ||H||_F^2.

    Attributes:
        value: ratio of the unbiased estimates of tr(H)^2 and ||H||_F^2. Where tr(H) is not resolved it
            scatters around 0 and may be negative; within [0, n] otherwise.
        standard_error: of value, by the delete-one jackknife over probes; 0 where exact.
        trace, frobenius_norm: those of `trace(op, method="hutchinson")` and `frobenius_norm(op)` for the
            same budget and seed, which also give their errors.
        matvecs, n, examples, dtype, mode, seed: as in `Trace`.
        status: as in `Trace`, or "zero" (all products vanish: value and standard_error are NaN); "unresolved" (the
            estimate of a square, tr(H)^2, is negative: more matvecs); "impossible" also for a rank that lies, by five
            standard errors, below 1 where op has no negative eigenvalues, or above n.
    """

    trace: float
    frobenius_norm: float


def effective_rank(op: Operator, *, matvecs: int = 100, seed: int = 0, progress: Progress = None) -> EffectiveRank:
    """tr(H)^2 / ||H||_F^2 = (sum lambda)^2 / sum lambda^2 of an operator [n, n]: the participation ratio.

    In [1, rank] for positive semidefinite H, r for r equal eigenvalues. Misleads for indefinite H: signs
    cancel in the numerator, and a matrix of full rank may have effective rank 0; `FrobeniusNorm.stable_rank`
    is free of signs. Exact where matvecs >= n. `op`, `seed`, `progress` and errors: as in `trace`; minimum 3, or n.
    """
    probes = Probes(op, matvecs, 3, "effective_rank", seed, progress, "effective_rank")
    total = norm = value = error = _NAN
    try:
        forms, norms = probes.sample()
        norm, total = _norm(norms, probes.exact)[0], float(forms.sum() if probes.exact else forms.mean())
        if norm > 0:
            value, error = _squared_ratio(forms / norm, norms / norm, probes.exact)
    except NonFiniteError:
        pass
    facts: dict[str, Any] = probes.certificate(value, error)
    least = 1.0 if probes.facts.semidefinite else -np.inf
    if norm == 0:
        facts["status"] = "zero"
    elif facts["status"] in ("ok", "exact") and not least - 5 * error <= value * (1 + 1e-9) <= probes.n + 5 * error + 1e-3:
        facts["status"] = "impossible"
    elif facts["status"] == "ok" and value < 0:
        facts["status"] = "unresolved"
    return EffectiveRank(**facts, trace=total, frobenius_norm=norm)


class NonFiniteError(ArithmeticError): ...


class Probes:
    """Random vectors, and the operator's products with them, counted and checked."""

    def __init__(self, op: Operator, budget: int, minimum: int, what: str, seed: int, progress: Progress, name: str) -> None:
        check_seed(seed)
        self.facts, self.seed, self.budget, self.matvecs = facts_of(op), seed, budget, 0
        n = self.n = self.facts.n
        if not is_whole(budget) or budget < min(n, minimum):
            raise ValueError(f"matvecs is {shown(budget)}: {what} needs an integer of {min(n, minimum)} or more")
        self.exact = budget >= n  # unit vectors give all of H
        self._product = product_of(op, Meter(progress, f"{name}: HVPs", min(budget, n)))
        self.rng = np.random.default_rng(seed)
        self._scale, self._impossible = 0.0, False

    def certificate(self, value: float, error: float) -> dict[str, Any]:
        f, status = self.facts, "exact" if self.exact else "ok"
        if not np.isfinite([value, error]).all():
            value, error, status = _NAN, _NAN, "nonfinite"
        elif self._impossible:
            status = "impossible"
        own = {"value": value, "standard_error": error, "matvecs": self.matvecs, "seed": self.seed}
        return own | {"n": f.n, "examples": f.examples, "dtype": f.dtype, "mode": f.mode, "status": status,
                      "curvature_check": f.curvature_check}

    def apply(self, v: Vector) -> Vector:
        """H v for v [n, k]."""
        image = self._product(v) if v.shape[1] else np.zeros_like(v)
        self.matvecs += v.shape[1]
        if not np.isfinite(image).all():
            raise NonFiniteError
        if self.facts.semidefinite and v.shape[1]:
            with np.errstate(over="ignore", invalid="ignore"):
                ratios = np.linalg.norm(image, axis=0) / np.maximum(np.linalg.norm(v, axis=0), np.finfo(float).tiny)
            self._scale = max(self._scale, float(ratios.max()))
            self._impossible |= contradicts_semidefinite(self.facts, v, image, self._scale)
        return image

    def signs(self, k: int) -> Vector:
        """[n, k] of independent +1 and -1; vector by vector, so that chunks draw the same."""
        return np.where(self.rng.random((k, self.n)) < 0.5, -1.0, 1.0).T

    def sample(self) -> tuple[Vector, Vector]:
        """z^T H z and ||H z|| for as many random signs as the budget allows, or for all unit vectors."""
        forms, norms = [], []
        m, size = min(self.budget, self.n), max(1, _CHUNK_BYTES // (8 * self.n))
        for start in range(0, m, size):
            k = min(size, m - start)
            z = np.eye(self.n, k, -start) if self.exact else self.signs(k)
            image = self.apply(z)
            scale = float(np.abs(image).max()) or 1.0  # no overflow in squares
            forms.append(np.einsum("ij,ij->j", z, image))
            norms.append(scale * np.sqrt(np.square(image / scale).sum(axis=0)))
        return np.concatenate(forms), np.concatenate(norms)


def _hutchinson(probes: Probes) -> tuple[float, float, int | None]:
    forms, _ = probes.sample()
    return (float(forms.sum()), 0.0, None) if probes.exact else (*_mean(forms), len(forms) - 1)


def _hutchpp(probes: Probes) -> tuple[float, float, int]:
    sketch = probes.budget // 3
    q, _ = np.linalg.qr(probes.apply(probes.signs(sketch)))
    inside = float(np.einsum("ij,ij->", q, probes.apply(q)))
    z = probes.signs(probes.budget - 2 * sketch)
    z = z - q @ (q.T @ z)
    mean, error = _mean(np.einsum("ij,ij->j", z, probes.apply(z)))
    return inside + mean, error, z.shape[1] - 1


def _xtrace(probes: Probes) -> tuple[float, float, int]:
    """Mean over i of t_i, the estimate with probe i against the basis of Y = H Omega without column i.

    t_ij, with the basis without columns i and j, is free of probe j. Given all other probes, t_i has mean
    tr(H) for every probe j, and t_ij and t_ji are independent: hence (t_i - t_ij)(t_j - t_ji) is an unbiased
    estimate of cov(t_i, t_j), and var(mean) = E[s^2 / k] + cov.
    """
    k = probes.budget // 2
    omega = probes.rng.standard_normal((k, probes.n)).T
    y = probes.apply(omega)
    q, r = np.linalg.qr(y)
    u, s, vt = np.linalg.svd(r)
    rank = int(np.sum(s > s[0] * _EPS * probes.n))
    q, vt = q @ u[:, :rank], vt[:rank]  # without directions that are rounding only
    z = probes.apply(q)
    # Without column i of Y the basis is Q without d_i, that column's dual; all of Q if the others span it.
    dual, needed = vt * (s[0] / s[:rank, None]), np.einsum("ij,ij->j", vt, vt) > 1 - 1e-8
    d = dual * (needed / np.maximum(np.linalg.norm(dual, axis=0), np.finfo(float).tiny))
    h, x, g = q.T @ z, q.T @ omega, d.T @ d
    dx, dh = d.T @ x, d.T @ ((h + h.T) / 2) @ d
    x = x - d * np.diag(dx)
    left, image = omega - q @ x, y - z @ x
    squares, forms = np.einsum("ij,ij->j", left, left), np.einsum("ij,ij->j", left, image)
    # A Gaussian vector has a uniform direction outside the basis whatever its length: replace the length.
    outside, inside = probes.n - rank + needed, np.trace(h) - np.diag(dh)
    single = inside + outside / squares * forms
    # Rows i, columns j: f_ij is d_j orthonormalised against d_i, and a_ij = f_ij . Q^T omega_i.
    square = np.maximum(1 - (g - np.diag(np.diag(g))) ** 2, _EPS)
    fhf = (np.diag(dh) - 2 * g * dh + g**2 * np.diag(dh)[:, None]) / square
    a = (dx.T - g * np.diag(dx)[:, None]) / np.sqrt(square)
    cross = left.T @ z @ d + image.T @ q @ d
    cross = (cross - g * np.diag(cross)[:, None]) / np.sqrt(square)
    lengths = (outside[:, None] + needed) / (squares[:, None] + a**2)
    gap = single[:, None] - inside[:, None] + fhf - lengths * (forms[:, None] + a * cross + a**2 * fhf)
    mean, error = _mean(single)
    if error > 0:  # the covariance's estimate is noisy for fast decay: from once to twice the paper's error
        gap = (gap - np.diag(np.diag(gap))) / error
        error *= float(np.sqrt(np.clip(1 + np.sum(gap * gap.T) / (k * (k - 1)), 1, 4)))
    return mean, error, k - 1


def _mean(samples: Vector) -> tuple[float, float]:
    """Mean of samples [m] and sd / sqrt(m), with no overflow in squares."""
    scale = float(np.abs(samples).max()) or 1.0
    return float(samples.mean()), scale * float((samples / scale).std(ddof=1) / np.sqrt(len(samples)))


def _norm(norms: Vector, exact: bool) -> tuple[float, float]:
    scale = float(norms.max()) or 1.0
    squares = (norms / scale) ** 2
    mean, error = (squares.sum(), 0.0) if exact else _mean(squares)
    return scale * float(np.sqrt(mean)), scale * error / (2 * float(np.sqrt(mean)) or 1.0)


def _squared_ratio(forms: Vector, norms: Vector, exact: bool) -> tuple[float, float]:
    """(Mean of f_i f_j over i != j) / mean of g_i^2, and its delete-one jackknife error."""
    m, squares, total, products = len(forms), norms**2, forms.sum(), forms @ forms
    if exact:
        return float(total**2 / squares.sum()), 0.0
    value = (total**2 - products) / (m - 1) / squares.sum()
    pairs = (total - forms) ** 2 - (products - forms**2)
    without = pairs / (m - 2) / np.maximum(squares.sum() - squares, _EPS)
    return float(value), float(np.sqrt((m - 1) / m * np.sum((without - without.mean()) ** 2)))
