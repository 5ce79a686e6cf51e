"""The loss along a line or an arc between two minima (Keskar et al. 2017, figures 3 and 7)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from sharpness.landscape.grid_checkpoint import measure_points
from sharpness.landscape.paths import barrier
from sharpness.landscape.weight_mover import grid_axis, known_or_none, make_weight_mover
from sharpness.problem.arguments import check_choice, check_seed
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.parameters import Weights, check_weights, flat_weights
from sharpness.problem.problem import Loss, Vector
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.recalibration import BnMode
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

Curve = Literal["linear", "arc"]


@dataclass(frozen=True, repr=False)
class Slice1D(Result):
    """f along a path x(alpha).

    Attributes:
        alphas, losses: [m] float64; a loss that is not finite stays so.
        accuracies: [m], fractions in [0, 1] (NaN where the outputs are), or None when outputs are not logits
            [b, classes] with targets [b] of indices.
        standard_error: None: nothing is drawn, each loss is the mean over all the data.
        curve, mode, seed: as asked.
        bn_mode: what became of the buffers, "keep", "interpolate" or "recalibrate". In mode "train" batch
            normalisation uses each batch's own statistics, whatever bn_mode is.
        recalibrated: whether bn_mode is "recalibrate".
        evaluations: passes over the data by this call; resumed: points read from the checkpoint instead.
        examples: number of examples behind each point; n: number of parameters; dtype: theirs.
        status: "ok", or "nonfinite" when a loss is not finite.
    """

    alphas: Vector
    losses: Vector
    accuracies: Vector | None
    standard_error: None
    curve: Curve
    mode: Mode
    bn_mode: BnMode
    recalibrated: bool
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

    @property
    def barrier(self) -> float:
        """max f(x(alpha)) - max(f(x(0)), f(x(1))) over the points with alpha in [0, 1]; see `barrier`."""
        return barrier(self.alphas, self.losses)


def slice_1d(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    start: Weights,
    end: Weights,
    alphas: Sequence[float] | Vector,
    curve: Curve = "linear",
    bn_mode: BnMode | None = None,
    recalibrate: Callable[[nn.Module], object] | None = None,
    calibration: Data | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = None,
) -> Slice1D:
    """Loss and accuracy of `model` over `data` at x(alpha) between two sets of weights.

    linear: x = (1 - alpha) start + alpha end. arc: x = cos(alpha pi / 2) start + sin(alpha pi / 2) end.
        Every parameter moves, frozen ones too, computed in float64 and rounded once.

    Buffers (such as running statistics of batch normalisation) are not on the path: they belong to the
    weights. `bn_mode` says what becomes of them:
        "keep": the model's own, at every point.
        "interpolate" (the default): floating-point buffers found in both `start` and `end` are interpolated
            linearly with alpha clipped to [0, 1] (extrapolated variances could be negative), others come from
            the nearer end, and buffers in neither are the model's own. Wrong between two distant minima.
        "recalibrate" (the default with `recalibrate`): interpolated, and then recomputed at each point, by
        the
            function `recalibrate`, or without one by `recalibrate_batch_norm` over `calibration`.

    A slice along one line misleads about the width of a minimum, which it can meet along a stiff or a flat
    direction by chance.

    Args:
        start, end: state dicts, or mappings with at least all parameters.
        alphas: [m]; Keskar's figure 3 has 25 points in [-1, 2].
        recalibrate: called with the model at each point, in `mode`, after the weights have moved.
        calibration: data for the statistics, best training data; None: `data` itself. A pair of tensors is
            split by `batch_size`, or into equal batches of at most 256 examples.
        checkpoint: path of a file in which finished points are kept, as in `slice_2d`.
        progress: True for lines on stderr, a function of (done, total, what), or None.
        data, loss, batch_size, mode, seed: as in `epsilon_sharpness`. The model itself is left as it came.

    Raises:
        ValueError: wrong input, unknown or missing names, shapes that differ, ends that are not finite, or a
            checkpoint of something else.
    """
    check_choice("curve", curve, ("linear", "arc"))
    check_seed(seed)
    points = grid_axis("alphas", alphas)
    check_weights(model, "start", start)
    check_weights(model, "end", end)
    chosen: BnMode = bn_mode or ("interpolate" if recalibrate is None else "recalibrate")
    every = [name for name, _ in model.named_parameters()]
    problem = make_problem(model, loss, data, params=every, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    ends = None if chosen == "keep" else (start, end)
    mover = make_weight_mover(problem, data, chosen, recalibrate, calibration, ends, batch_size)
    a, b = flat_weights(model, start, params=every), flat_weights(model, end, params=every)

    def weights(at: tuple[float, ...]) -> Vector:
        first, second = _coefficients(at[0], curve)
        return first * a + second * b

    where = [(float(alpha),) for alpha in points]
    meter = Meter(progress, "slice_1d: points", len(where))
    losses, accuracies, resumed = measure_points(mover, where, weights, [curve, a, b], checkpoint, meter)
    return Slice1D(
        alphas=points, losses=losses, accuracies=known_or_none(accuracies), standard_error=None, curve=curve,
        bn_mode=chosen, recalibrated=chosen == "recalibrate", evaluations=len(points) - resumed,
        resumed=resumed, n=problem.n, **certificate(problem),
        status="ok" if np.isfinite(losses).all() else "nonfinite",
    )


def _coefficients(alpha: float, curve: Curve) -> tuple[float, float]:
    """Of `start` and `end`."""
    if curve == "linear":
        return 1.0 - alpha, alpha
    return float(np.cos(alpha * np.pi / 2)), float(np.sin(alpha * np.pi / 2))
