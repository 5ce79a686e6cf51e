"""An orthonormal basis that knows what a symmetric operator does to it: Lanczos with restarts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)


class NonFiniteProductError(ArithmeticError):
    """A product of the operator held NaN or infinity."""


class KrylovSpace:
    """Keeps  H V^T = V^T S + F^T C  with V [m, n] orthonormal rows, S = V H V^T [m, m] and the tails F [t,
    n], F V^T = 0.

    The tails are the parts of H V^T outside the space: one in plain Lanczos, one more for each fresh start.
    Hence the residual of a Ritz pair (theta, s), S s = theta s, is ||F^T C s||, with no further product.
    Expanding along the newest tail is the Lanczos step. Everything is float64.
    """

    def __init__(self, product: Callable[[Vector], Vector], n: int, limit: int, rng: np.random.Generator) -> None:
        self.n, self.limit, self.num_hvps = n, limit, 0
        self.scale = 0.0  # largest ||H v|| seen, a lower bound of ||H||
        self.asymmetry = 0.0  # largest difference between V H u and (H V)^T u: rounding
        self.exhausted = False  # the last expansion's tail vanished: that chain's space is invariant
        self._product, self._rng = product, rng
        self._basis = np.empty((limit, n))
        self._projected = np.zeros((0, 0))
        self._tails = np.zeros((0, n))
        self._weights = np.zeros((0, 0))
        self._gram = np.zeros((0, 0))  # F F^T
        self._ritz = (np.zeros(0), np.zeros((0, 0)))
        self._fresh_from = 0

    @property
    def size(self) -> int:
        """m, the number of basis vectors."""
        return len(self._projected)

    @property
    def chains(self) -> int:
        """How many tails there are to expand along."""
        return len(self._tails)

    @property
    def vectors(self) -> Vector:
        """V [m, n]."""
        return self._basis[: self.size]

    def start_fresh(self) -> None:
        """Begin a new chain: the next expansion goes along a random vector orthogonal to the space."""
        self._fresh_from, self.exhausted = self.size, False
        self._add_tail(_random_unit_outside(self.vectors, self._rng))

    def start_along(self, v: Vector) -> None:
        """Begin a chain along v [n]; one that lies in the space already begins none."""
        known = np.vstack([self.vectors, self._tails])
        direction = _unit_outside(v, np.linalg.qr(known.T)[0].T if len(known) else known)
        if direction is not None:
            self._add_tail(direction)

    def _add_tail(self, direction: Vector) -> None:
        self._tails = np.vstack([self._tails, direction])
        self._weights = np.vstack([self._weights, np.zeros(self.size)])
        self._gram = self._tails @ self._tails.T

    def expand(self, tail: int = -1) -> None:
        """One product, along the given tail; its own tail takes that place, unless it vanishes.

        Raises NonFiniteProductError, and ValueError when the product contradicts the earlier ones.
        """
        if not len(self._tails):
            self.start_fresh()
        m = self.size
        direction = _unit_outside(self._tails[tail], self.vectors)
        if direction is None:
            direction = _random_unit_outside(self.vectors, self._rng)
        coupling = self._tails @ direction
        self._tails -= np.outer(coupling, direction)
        self._basis[m] = direction
        image = self._product(direction)
        self.num_hvps += 1
        if not np.isfinite(image).all():
            raise NonFiniteProductError
        self.scale = max(self.scale, float(np.linalg.norm(image)))
        column, outside = _project_out(image, self._basis[: m + 1])
        self.asymmetry = max(self.asymmetry, float(np.linalg.norm(column[:m] - coupling @ self._weights)))
        if self.asymmetry > 0.1 * self.scale:
            raise ValueError("op is not symmetric, or its products differ from call to call: pass a symmetric operator "
                             "of a deterministic function (no fresh dropout, augmentation or sampling at each product)")
        self._append(column, outside, tail)

    def _append(self, column: Vector, outside: Vector, tail: int) -> None:
        m = self.size
        projected = np.empty((m + 1, m + 1))
        projected[:m, :m] = self._projected
        projected[m, :] = projected[:, m] = column
        self._projected = projected
        weights = np.hstack([self._weights, np.zeros((len(self._weights), 1))])
        weights[tail] = np.eye(m + 1)[m]
        self._tails[tail] = outside
        self.exhausted = bool(np.linalg.norm(outside) <= 16 * _EPS * self.scale)
        if self.exhausted:
            self._tails, weights = np.delete(self._tails, tail, 0), np.delete(weights, tail, 0)
        self._weights = weights
        self._refresh()

    def compress(self, keep: Callable[[Vector], NDArray[np.intp]]) -> None:
        """Shrink the space to the Ritz vectors that `keep(values)` chooses (thick restart)."""
        values, coordinates = self._ritz
        chosen = keep(values)
        self._basis[: len(chosen)] = coordinates[:, chosen].T @ self.vectors
        self._projected = np.diag(values[chosen])
        self._weights = self._weights @ coordinates[:, chosen]
        self._fresh_from = len(chosen)
        self._refresh()

    def ritz(self) -> tuple[Vector, Vector]:
        """Ritz values [m], ascending, and their coordinates in V as columns [m, m]."""
        return self._ritz

    def residuals(self, coordinates: Vector) -> Vector:
        """Residual norms [j] of the Ritz pairs with these coordinates [m, j]."""
        parts = self._weights @ coordinates
        return np.sqrt(np.maximum(np.einsum("ij,ik,kj->j", parts, self._gram, parts), 0.0))

    def heaviest_tail(self, coordinates: Vector) -> int:
        """The tail that contributes most to the residual of the vector with these coordinates [m]."""
        if not len(self._tails):
            return -1
        return int(np.argmax(np.abs(self._weights @ coordinates) * np.sqrt(np.diag(self._gram))))

    def fresh_ritz(self) -> tuple[Vector, Vector]:
        """Ritz values and residual norms of the newest chain: of H with the space before it projected out."""
        block = slice(self._fresh_from, self.size)
        values, coordinates = np.linalg.eigh(self._projected[block, block])
        return values, np.sqrt(self._gram[-1, -1]) * np.abs(self._weights[-1, block] @ coordinates)

    def _refresh(self) -> None:
        values, coordinates = np.linalg.eigh(self._projected)
        self._ritz = (values, coordinates)
        self._gram = self._tails @ self._tails.T


def _project_out(v: Vector, basis: Vector) -> tuple[Vector, Vector]:
    """Coordinates of v in the orthonormal rows of basis, and the rest. Twice is enough (Parlett, 6.9)."""
    first = basis @ v
    rest = v - first @ basis
    second = basis @ rest
    return first + second, rest - second @ basis


def _unit_outside(v: Vector, basis: Vector) -> Vector | None:
    """v, orthogonal to the rows of basis and normalised; None when rounding is all that is left of it."""
    norm = np.linalg.norm(v)
    if norm == 0.0:
        return None
    for _ in range(3):
        _, v = _project_out(v / norm, basis)
        norm = float(np.linalg.norm(v))
        if norm > 0.9:
            return v / norm
        if norm < 1e-8:
            return None
    return None


def _random_unit_outside(basis: Vector, rng: np.random.Generator) -> Vector:
    while True:
        v = _unit_outside(rng.standard_normal(basis.shape[1]), basis)
        if v is not None:
            return v
