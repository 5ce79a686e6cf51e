"""Extreme eigenvalues of a symmetric operator by Lanczos, with residuals and a look for missed ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sharpness.linalg.krylov import KrylovSpace, NonFiniteProductError
from sharpness.linalg.operator import Facts, Operator, facts_of, product_of
from sharpness.problem.arguments import check_choice, check_fraction, check_seed, is_whole, numbers_of, shown
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result

Which = Literal["LA", "SA", "LM"]
Status = Literal["converged", "precision", "max_matvecs", "nonfinite", "impossible"]
Vector = NDArray[np.float64]

_KEYS: dict[str, Callable[[Vector], Vector]] = {"LA": lambda t: t, "SA": lambda t: -t, "LM": np.abs}
_BASIS_BYTES = 2**30
_NOISE = 0.1
_LOOK = 3  # fewest steps of a second look: no miss in 1,600 searches whose first start lacked the top vector


@dataclass(frozen=True, repr=False)
class Eigenvalues(Result):
    """The k extreme eigenvalues of an operator, and how far to trust them.

    Attributes:
        values: [k] float64; LA: largest algebraic first, SA: smallest first, LM: largest magnitude first.
        vectors: [k, n] unit Ritz vectors, or None when a product was not finite.
        residuals: [k] ||H v_i - lambda_i v_i||: some eigenvalue lies within residuals[i] of values[i].
        matvecs: Hessian-vector products (HVPs) used, the second look included.
        converged: status is "converged".
        status: "converged"; "precision" (as exact as the products' dtype allows, which is less than `tol`
            asks); "max_matvecs" (budget spent before convergence or before the second look ended);
            "nonfinite" (a product held NaN or infinity: values and residuals are NaN); "impossible" (op cannot have
            negative eigenvalues, as a Fisher matrix, and the search met one beyond rounding: its products are wrong).
        which, tol, seed: as asked.
        n, dtype, examples, mode, curvature_check: of the operator, as far as it says; the last is the largest relative
            difference between its products and what defines them (`CurvatureOperator.verified`).
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"vectors"})
    values: Vector
    vectors: Vector | None
    residuals: Vector
    matvecs: int
    converged: bool
    status: Status
    which: Which
    tol: float
    seed: int
    n: int
    dtype: str
    examples: int | None
    mode: str | None
    curvature_check: float | None = None

    @property
    def value(self) -> float:
        """The first of the values."""
        return float(self.values[0])


def top_eigenvalues(
    op: Operator,
    k: int = 1,
    *,
    which: Which = "LA",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    start: ArrayLike | None = None,
    block: int = 1,
    seed: int = 0,
    progress: Progress = None,
) -> Eigenvalues:
    """The k largest (LA), smallest (SA) or largest in magnitude (LM) eigenvalues of a symmetric [n, n].

    Lanczos with full two-pass reorthogonalisation; basis and coefficients in float64 whatever the
    operator's precision (Parlett, The Symmetric Eigenvalue Problem, ch. 13). An eigenpair is accepted when
    its residual is at most tol times its magnitude, which proves that an eigenvalue lies that near. (The
    square of the residual over the gap is a smaller estimate of the error; to stop by it saves one product in
    forty and errs in one case in six hundred.) When all k are
    accepted, a second Lanczos run starts from a fresh random vector orthogonal to everything seen, works on the
    operator with that space projected out, and ends when its own extreme Ritz value plus residual is no better
    than the k-th value (by more than tol), after at least half as many steps as the first run. Whatever it
    finds joins the same Rayleigh-Ritz problem, and the search goes on until a fresh run finds nothing: so
    copies of multiple eigenvalues are all returned.

    What "converged" says: each value is within tol (relative) of an eigenvalue, up to the rounding of
    the products. What it does not prove: that no eigenvalue beyond the k-th was missed. That is only very
    probable: an eigenvector stays hidden when two independent random vectors both happen to be nearly
    orthogonal to it, and of two within a per cent of each other one can be taken for both: it happened in 2 of
    3,000 searches (spectra of five kinds, k 1 to 5, tol 1e-2 and 1e-3).

    Misleads as sharpness across reparametrisations (Dinh et al. 2017), across levels of cross-entropy, and on
    subsets of the data, whose largest eigenvalue is too large on average.

    Memory: at most max(3 k + 20, min(200, 1 GiB / 8 n)) basis vectors of 8 n bytes; a full basis is
    compressed to its best Ritz vectors (thick restart, Wu & Simon 2000).

    Along a training trajectory, pass the last step's `vectors` as `start`. For clusters of eigenvalues nearer
    to each other than the tolerance resolves, a `block` of several chains finds all copies at once instead of
    one second look after the other; for separate eigenvalues one chain needs the fewest products.

    Args:
        op: has `shape` and `@`; products may be of any real dtype, and `op.dtype`, if there, is taken as
            their precision.
        tol: relative error of each eigenvalue. An eigenvalue so small that tol times it is below the
            rounding error of the products (8 eps ||H||, or four times the asymmetry seen among the
            products) gets status "precision".
        max_matvecs: most HVPs; None means 300 + 20 k.
        start: [n] or [j, n], where to begin; None: at random, or at the gradient plus a tenth of noise where
            `op` offers it (which saves a product or two; the second look starts at random in any case).
        block: number of chains to begin with; random ones are added to `start`.
        seed: of the random starts; the global generators are never used.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: k not in 1..n, non-square operator, budget below k, or an operator found not to be
            symmetric.
    """
    facts = _check(op, k, which, tol, block, seed)
    if max_matvecs is not None and not is_whole(max_matvecs):
        raise ValueError(f"max_matvecs is {shown(max_matvecs)}: it must be a positive integer, or None")
    n, budget = facts.n, 300 + 20 * k if max_matvecs is None else max_matvecs
    if budget < min(k, n):
        raise ValueError(f"max_matvecs is {budget} and k is {k}: at least k Hessian-vector products are needed")
    rng = np.random.default_rng(seed)
    starts = _starts(start, n) if start is not None else _hinted(op, n, rng)
    limit = min(n, max(3 * k + 20 + block + len(starts), min(200, _BASIS_BYTES // (8 * n))))
    space = KrylovSpace(product_of(op, Meter(progress, "top_eigenvalues: HVPs")), n, limit, rng)
    for direction in starts:
        space.start_along(direction)
    while space.chains < min(block, n):
        space.start_fresh()
    search = _Search(space, k, _KEYS[which], tol, facts.eps)
    try:
        status = search.run(budget)
    except NonFiniteProductError:
        status = "nonfinite"
    if status == "nonfinite":
        values, residuals, vectors = np.full(k, np.nan), np.full(k, np.nan), None
    else:
        values, residuals, coordinates = search.wanted()
        vectors = coordinates.T @ space.vectors
        if facts.semidefinite and space.ritz()[0].min() < -np.sqrt(facts.eps) * space.scale:
            status = "impossible"
    return Eigenvalues(
        values, vectors, residuals, space.num_hvps, status == "converged", status, which, tol, seed,
        n, facts.dtype, facts.examples, facts.mode, facts.curvature_check,
    )


class _Search:
    """The decisions: are the wanted pairs good enough, is it time for a second look, has that look ended?"""

    def __init__(self, space: KrylovSpace, k: int, key: Callable[[Vector], Vector], tol: float, eps: float) -> None:
        self.space, self.k, self.key, self.tol, self.eps = space, k, key, tol, eps
        self.looking = False  # a second look is under way
        self.looked = False  # one has ended without a find
        self.steps = 0  # HVPs since the last fresh start
        self.first_run = 0  # most products that a run needed until all wanted pairs stood
        self.reference = np.zeros(0)  # the wanted values when the second look began

    def run(self, budget: int) -> Status:
        """Expand the space until the wanted pairs stand or the budget is spent."""
        space = self.space
        while not self._settled():
            if space.num_hvps >= budget:
                return "max_matvecs"
            if space.size == space.limit:
                space.compress(self._best)
                if self.looking:  # the basis was too small to end the look: look again from what it found
                    self._look()
            self._expand()
            self.steps += 1
        values, _, _ = self.wanted()
        return "converged" if np.all(self.tol * np.abs(values) >= self._floor()) else "precision"

    def wanted(self) -> tuple[Vector, Vector, Vector]:
        """Values [k], residuals [k] and coordinates [m, k] of the wanted Ritz pairs, best first."""
        values, coordinates = self.space.ritz()
        order = np.argsort(-self.key(values), kind="stable")[: self.k]
        return values[order], self.space.residuals(coordinates[:, order]), coordinates[:, order]

    def _expand(self) -> None:
        """A second look follows its own chain; else the tail that holds the worst wanted pair back."""
        if self.looking:
            return self.space.expand()
        if self.space.size < max(self.k, self.space.chains):
            return self.space.expand(self.space.size % self.space.chains if self.space.chains else -1)
        values, residuals, coordinates = self.wanted()
        worst = int(np.argmax(residuals - self._allowed(values)))
        self.space.expand(self.space.heaviest_tail(coordinates[:, worst]))

    def _settled(self) -> bool:
        """Judge the space after a product. A find comes first: it counts even where the look would end."""
        space = self.space
        if space.size < self.k or space.size == space.n:
            return space.size == space.n
        values, residuals, _ = self.wanted()
        accepted = bool(np.all(residuals <= self._allowed(values)))
        if self.looking or self.looked:
            gain = self.key(values) - self.key(self.reference)
            if np.any(gain > self._allowed(self.reference)):
                self.looking = self.looked = False
            elif self.looking and self._nothing_beyond(values):
                self.looking, self.looked = False, True
        elif accepted:
            self.first_run, self.reference, self.looking = max(self.first_run, self.steps), values, True
            if space.size > space.limit // 2 and space.limit < space.n:
                space.compress(self._best)
            self._look()
        return self.looked and accepted

    def _look(self) -> None:
        self.steps = 0
        self.space.start_fresh()

    def _nothing_beyond(self, values: Vector) -> bool:
        """The fresh chain's best value, with its residual, does not reach past the k-th wanted one."""
        if self.space.exhausted:
            return True
        if self.steps < max(_LOOK, self.first_run // 2):
            return False
        theirs, residuals = self.space.fresh_ritz()
        return bool(np.max(self.key(theirs) + residuals) <= self.key(values)[-1] + self._allowed(values)[-1])

    def _best(self, values: Vector) -> NDArray[np.intp]:
        """The Ritz values to keep in a thick restart."""
        return np.argsort(-self.key(values), kind="stable")[: max(self.k + 5, self.space.limit // 2 - self.k)]

    def _allowed(self, values: Vector) -> Vector:
        return np.maximum(self.tol * np.abs(values), self._floor())

    def _floor(self) -> float:
        """What rounding of the products hides: at least 8 eps ||H||, more where it shows as asymmetry."""
        return max(8 * self.eps * self.space.scale, 4 * self.space.asymmetry)


def _check(op: Operator, k: int, which: str, tol: float, block: int, seed: int) -> Facts:
    facts = facts_of(op)
    if not is_whole(k) or not 1 <= k <= facts.n:
        raise ValueError(f"k is {shown(k)}: it must be an integer from 1 to n = {facts.n}")
    check_choice("which", which, tuple(_KEYS))
    check_fraction("tol", tol, "a relative error")
    if not is_whole(block) or not 1 <= block <= 100:
        raise ValueError(f"block is {shown(block)}: it must be an integer from 1 to 100")
    check_seed(seed)
    return facts


def _hinted(op: Operator, n: int, rng: np.random.Generator) -> Vector:
    """The operator's own suggestion with some noise, so that no direction is left out; [0, n] without one."""
    suggest = getattr(op, "starting_vector", None)
    v = None if suggest is None else suggest()
    if v is None or not np.isfinite(v).all():
        return np.zeros((0, n))
    noise = rng.standard_normal(n)
    return (v / np.linalg.norm(v) + _NOISE * noise / np.linalg.norm(noise))[None]


def _starts(start: ArrayLike, n: int) -> Vector:
    """The directions [j, n] to begin with."""
    rows = np.atleast_2d(numbers_of("start", start, f"at most 100 finite vectors of n = {n} entries, as rows"))
    if rows.ndim != 2 or rows.shape[1] != n or not np.isfinite(rows).all() or len(rows) > 100:
        raise ValueError(f"start has shape {rows.shape}: pass at most 100 finite vectors of n = {n} entries, as rows")
    return rows
