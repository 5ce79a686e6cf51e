"""Planes through given weights: through three of them, or the main directions of a trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from sharpness.problem.arguments import check_choice, check_count, numbers_of, shown
from sharpness.problem.problem import Vector
from sharpness.problem.result import Result

About = Literal["final", "mean"]
_RANK = 1e-7  # singular values below this fraction of the largest are lost in the Gram matrix's rounding
_BLOCK = 1 << 20


@dataclass(frozen=True, repr=False)
class Plane(Result):
    """The plane through three points, with an orthonormal basis.

    Attributes:
        origin: [n], the first point.
        directions: [2, n], orthonormal; the first leads from the first point to the second.
        values: [3, 2], coordinates of the three points: point_i = origin + values[i] @ directions.
        standard_error: None: nothing is drawn.
        n, dtype, status: of the points; float64, in which all is computed; "ok".
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"origin", "directions"})

    origin: Vector
    directions: Vector
    values: Vector
    standard_error: None
    n: int
    dtype: str
    status: str


@dataclass(frozen=True, repr=False)
class Trajectory(Result):
    """The main directions of a sequence of weights.

    Attributes:
        directions: [k, n], orthonormal rows, by falling variance; each points to the side of the first
            checkpoint.
        values: [k], explained variance of each as a fraction of the whole.
        coordinates: [t, k], of the checkpoints: (w_t - w_final) . directions, so that the last is (0, ...,
            0).
        distances: [t], of each checkpoint from the plane (or line) through w_final that the directions span.
        about: "final" or "mean", as asked.
        standard_error: None: nothing is drawn.
        n, dtype, status: of the points; float64, in which all is computed; "ok".
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"directions"})

    directions: Vector
    values: Vector
    coordinates: Vector
    distances: Vector
    about: About
    standard_error: None
    n: int
    dtype: str
    status: str


def plane_through(a: Vector, b: Vector, c: Vector) -> Plane:
    """The plane through three sets of weights [n], such as a small-batch minimum, a large-batch one and the
    start.

    d1 = (b - a) / ||b - a||, and d2 the unit vector of the part of c - a orthogonal to d1, orthogonalised
    twice, so that it is so to rounding (Garipov et al. 2018, 1802.10026, section 1). Make weights flat with
    `flat_weights`. Pass `center=plane.origin, directions=plane.directions` to `slice_2d`.
    It misleads where two of the points are the same function with hidden units permuted.

    Raises:
        ValueError: shapes that differ, numbers that are not finite, or three points on a line.
    """
    points = _flat("points", [a, b, c])
    u, v = points[1] - points[0], points[2] - points[0]
    lengths = [float(np.linalg.norm(x)) for x in (u, v)]
    if min(lengths) > 0:
        d1 = u / lengths[0]
        d2 = v / lengths[1]
        for _ in range(2):
            d2 = d2 - (d2 @ d1) * d1
        rest = float(np.linalg.norm(d2))
        if rest > 1e-10:
            d2 = d2 / rest
            d2 = d2 - (d2 @ d1) * d1
            coordinates = np.array([[0.0, 0.0], [lengths[0], 0.0], [v @ d1, v @ d2]])
            basis = np.stack([d1, d2])
            return Plane(points[0], basis, coordinates, None, len(d1), "float64", "ok")
    raise ValueError("the three points lie on a line or coincide, and span no plane: pass three others")


def trajectory_directions(checkpoints: Sequence[Vector] | Vector, k: int = 2, *, about: About = "final") -> Trajectory:
    """Principal directions of the weights w_1 ... w_t of a training run (Li et al. 2018, section 7).

    about "final": the k leading right singular vectors of the matrix with rows w_t - w_final; `values` are
    s_i^2 / sum s^2, the share of the squared distances from w_final. They span the best plane *through*
    w_final, which is where `slice_2d` draws it. about "mean": rows w_t - mean w, the usual principal
    components, as in the released code of the paper. By the Gram matrix [t, t] in float64: directions of
    small variance have a relative error of up to 1e-16 (s_1 / s_i)^2.

    High explained variance is no finding: two components explain most of a random walk in high dimensions too
    (Antognini & Sohl-Dickstein 2018).

    Args:
        checkpoints: t vectors [n] in order, the last one final (`flat_weights` makes them).
        k: number of directions, at most the rank.

    Raises:
        ValueError: fewer than two checkpoints, shapes that differ, numbers that are not finite, an unknown
            `about`, or k above the number of dimensions that the checkpoints span.
    """
    check_choice("about", about, ("final", "mean"))
    check_count("k", k, "2")
    points = _flat("checkpoints", checkpoints)
    if len(points) < 2:
        raise ValueError("checkpoints has one entry: pass at least two, the last one final")
    shift = points[-1] if about == "final" else points.mean(axis=0)
    rows = points - shift
    squares, vectors = np.linalg.eigh(_gram(rows))
    squares, vectors = squares[::-1].clip(min=0.0), vectors[:, ::-1]
    rank = int(np.sum(np.sqrt(squares) > _RANK * np.sqrt(squares[0]))) if squares[0] > 0 else 0
    if k > rank:
        raise ValueError(f"k is {k} and the checkpoints span {rank} dimensions: pass a smaller k")
    basis, _ = np.linalg.qr(rows.T @ (vectors[:, :k] / np.sqrt(squares[:k])))
    from_final = rows if about == "final" else points - points[-1]
    coordinates = from_final @ basis
    signs = np.where(coordinates[0] < 0, -1.0, 1.0)
    basis, coordinates = basis * signs, coordinates * signs
    beside = np.sqrt(np.maximum(np.einsum("tn,tn->t", from_final, from_final) - (coordinates**2).sum(1), 0.0))
    return Trajectory(directions=np.ascontiguousarray(basis.T), values=squares[:k] / squares.sum(), coordinates=coordinates,
                      distances=beside, about=about, standard_error=None, n=points.shape[1], dtype="float64", status="ok")


def _gram(rows: Vector) -> Vector:
    """rows @ rows.T, block by block: a pairwise sum over blocks rounds less than one long one."""
    starts = range(0, rows.shape[1], _BLOCK)
    return np.sum([rows[:, i : i + _BLOCK] @ rows[:, i : i + _BLOCK].T for i in starts], axis=0)


def _flat(label: str, points: Sequence[Any] | Vector) -> Vector:
    if not hasattr(points, "__len__") or isinstance(points, (str, Mapping)):
        raise ValueError(f"{label} is {shown(points)}: pass vectors [n], as flat_weights makes them")
    if any(isinstance(p, Mapping) for p in points):
        raise ValueError(f"{label} holds a mapping: make it a vector [n] with flat_weights(model, weights)")
    arrays = [numbers_of(label, p, "vectors [n] of finite weights, as flat_weights makes them") for p in points]
    shapes = {p.shape for p in arrays}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not arrays[0].size:
        raise ValueError(f"{label} has shapes {sorted(shapes)}: pass vectors of one length [n]")
    if not all(np.isfinite(p).all() for p in arrays):
        raise ValueError(f"{label} contains NaN or infinity: pass finite weights")
    return np.stack(arrays)
