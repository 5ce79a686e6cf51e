"""The loss on a plane through weight space, on a grid that can be resumed (Li et al. 2018, section 4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from sharpness.landscape.grid_checkpoint import measure_points
from sharpness.landscape.weight_mover import grid_axis, known_or_none, make_weight_mover
from sharpness.problem.arguments import check_seed, numbers_of, shown
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.parameters import Weights, check_weights, flat_weights
from sharpness.problem.problem import Loss, Problem, Vector
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.recalibration import BnMode
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

_PARALLEL = 1e-10  # 1 - |cosine| below which two directions span a line


@dataclass(frozen=True, repr=False)
class Slice2D(Result):
    """f(center + alpha d1 + beta d2) on a grid.

    Attributes:
        alphas: [A]; betas: [B].
        losses: [A, B] float64, losses[i, j] at (alphas[i], betas[j]); what is not finite stays so.
        accuracies: [A, B], fractions in [0, 1] (NaN where the outputs are), or None when outputs are not
            logits [b, classes] with targets [b] of indices.
        standard_error: None: nothing is drawn, each loss is the mean over all the data.
        norms: (||d1||, ||d2||): a step of 1 along an axis moves the weights by so much.
        cosine: of the angle between d1 and d2; the axes of a contour plot are only at a right angle if 0.
        mode, seed: as asked; bn_mode: "keep" or "recalibrate". In mode "train" batch normalisation uses each
            batch's own statistics, whatever bn_mode is.
        evaluations: passes over the data by this call; resumed: points read from the checkpoint instead.
        examples: number of examples behind each point; n: number of parameters that the directions move;
            dtype: theirs.
        status: "ok", or "nonfinite" when a loss is not finite.
    """

    alphas: Vector
    betas: Vector
    losses: Vector
    accuracies: Vector | None
    standard_error: None
    norms: tuple[float, float]
    cosine: float
    mode: Mode
    bn_mode: BnMode
    evaluations: int
    resumed: int
    examples: int
    n: int
    dtype: str
    seed: int
    status: str

    @property
    def values(self) -> Vector:
        """The losses."""
        return self.losses


def slice_2d(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    directions: Sequence[Vector] | Vector,
    alphas: Sequence[float] | Vector,
    betas: Sequence[float] | Vector,
    center: Weights | Vector | None = None,
    bn_mode: BnMode = "keep",
    recalibrate: Callable[[nn.Module], object] | None = None,
    calibration: Data | None = None,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = None,
) -> Slice2D:
    """Loss and accuracy of `model` over `data` at w = center + alpha d1 + beta d2, for a grid of (alpha,
    beta).

    Weights are computed in float64 and rounded once. The directions are used as they are given: normalise
    them first (`random_direction`, `filter_normalise`); eigenvectors, `plane_through` and
    `trajectory_directions` have unit norm. With raw random directions, or directions of unit norm, two
    networks of different weight norms must not be compared: a network with larger weights looks flatter (Li
    et al. 2018, section 4).

    Args:
        directions: two vectors [n] in the order of `flat_weights(model, params=params)`, not zero, not
            parallel.
        alphas, betas: [A] and [B] coordinates.
        center: a state dict (its buffers are used, and its values of the parameters that do not move), a
            vector [n], or None for the model's present weights.
        bn_mode: "keep", the centre's buffers where it has them and otherwise the model's, or "recalibrate",
            recomputed at each point by `recalibrate` (a function of the model), or without one by
            `recalibrate_batch_norm` over `calibration`. With "keep", much of the rise away from the centre
            is that of wrong statistics.
        calibration: data for the statistics, best training data; None: `data` itself. A pair of tensors is
            split by `batch_size`, or into equal batches of at most 256 examples.
        params: names of the parameters that move; None means all with `requires_grad`.
        checkpoint: path of a file in which each point is kept as soon as it is finished. A later call with
            the same model, data and options reads it and measures only what is missing, to the same bits on
            the same machine; a damaged file counts as none. What is compared: a
            hash of weights, buffers, directions, grid, modes, data and the names of loss and hook, and the
            loss of the first batch.
        progress: True for lines on stderr, a function of (done, total, what), or None.
        data, loss, batch_size, mode, seed: as in `epsilon_sharpness`. The model itself is left as it came.

    Raises:
        ValueError: wrong input, or a checkpoint that is a file of something else.
        OSError: the checkpoint cannot be written.
    """
    check_seed(seed)
    first_axis, second_axis = grid_axis("alphas", alphas), grid_axis("betas", betas)
    if bn_mode == "interpolate":
        raise ValueError("bn_mode is 'interpolate' and a plane has no two ends: use 'keep' or 'recalibrate'")
    moving = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    given, cosine = _directions(directions, moving.n)
    named = dict(model.named_parameters())
    problem = replace(moving, names=tuple(named), parameters=tuple(named.values()))
    origin = _origin(moving, problem, center)
    d1, d2 = (_spread(moving, problem, d) for d in given)
    ends = (center, center) if isinstance(center, Mapping) else None
    mover = make_weight_mover(problem, data, bn_mode, recalibrate, calibration, ends, batch_size)
    where = [(float(a), float(b)) for a in first_axis for b in second_axis]
    losses, accuracies, resumed = measure_points(
        mover, where, lambda at: origin + at[0] * d1 + at[1] * d2, [origin, d1, d2], checkpoint,
        Meter(progress, "slice_2d: points", len(where)),
    )
    shape, norms = (len(first_axis), len(second_axis)), [float(np.linalg.norm(d)) for d in given]
    accuracy = known_or_none(accuracies)
    return Slice2D(
        alphas=first_axis, betas=second_axis, losses=losses.reshape(shape),
        accuracies=None if accuracy is None else accuracy.reshape(shape), standard_error=None,
        norms=(norms[0], norms[1]), cosine=cosine, bn_mode=bn_mode, evaluations=len(where) - resumed,
        resumed=resumed, n=moving.n, **certificate(problem),
        status="ok" if np.isfinite(losses).all() else "nonfinite",
    )


def _directions(directions: Sequence[Vector] | Vector, n: int) -> tuple[list[Vector], float]:
    """Both, and the cosine of their angle."""
    if not hasattr(directions, "__len__") or isinstance(directions, (str, Mapping)):
        raise ValueError(f"directions is {shown(directions)}: pass two vectors [{n}]")
    if len(directions) != 2:
        raise ValueError(f"directions has {len(directions)} entries: pass two vectors [{n}]")
    given = [numbers_of(f"directions[{i}]", d, f"a finite vector [{n}]") for i, d in enumerate(directions)]
    for i, d in enumerate(given):
        if d.shape != (n,) or not np.isfinite(d).all() or not d.any():
            raise ValueError(
                f"directions[{i}] has shape {d.shape}: pass a finite vector [{n}] that is not zero, one "
                "number for each parameter that moves"
            )
    unit = [d / np.abs(d).max() for d in given]
    unit = [d / np.linalg.norm(d) for d in unit]
    cosine = float(unit[0] @ unit[1])  # of unit vectors: norms of very long or short ones are not finite
    if 1 - abs(cosine) < _PARALLEL:
        raise ValueError("directions are parallel and span a line: use slice_1d, or another second direction")
    return given, cosine


def _origin(moving: Problem, problem: Problem, center: Weights | Vector | None) -> Vector:
    """All parameters of the centre, those that do not move included."""
    if center is None:
        return problem.weights()
    if isinstance(center, Mapping):
        check_weights(problem.model, "center", center)
        return flat_weights(problem.model, center, params=problem.names)
    w = numbers_of("center", center, f"a state dict, a finite vector [{moving.n}], or None")
    if w.shape != (moving.n,) or not np.isfinite(w).all():
        raise ValueError(f"center has shape {w.shape}: pass a state dict, or a finite vector [{moving.n}]")
    moved = {id(p) for p in moving.parameters}
    still = [np.full(p.numel(), 0.0 if id(p) in moved else 1.0) for p in problem.parameters]
    return np.concatenate(still) * problem.weights() + _spread(moving, problem, w)


def _spread(moving: Problem, problem: Problem, v: Vector) -> Vector:
    """A vector over the parameters that move as one over all of them, zero elsewhere."""
    sizes = [p.numel() for p in moving.parameters]
    parts = dict(zip(map(id, moving.parameters), np.split(v, np.cumsum(sizes)[:-1]), strict=True))
    return np.concatenate([parts.get(id(p), np.zeros(p.numel())) for p in problem.parameters])
