"""Barriers between two minima, on the straight line and on a fitted curve (Garipov et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from sharpness.landscape.weight_mover import WeightMover, known_or_none, make_weight_mover
from sharpness.problem.arguments import check_choice, check_count, check_positive, check_seed, numbers_of
from sharpness.problem.batches import Data
from sharpness.problem.evaluate import evaluate
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.parameters import Weights, check_weights, flat_weights
from sharpness.problem.problem import Loss, Vector
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.recalibration import BnMode
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

Above = Literal["larger end", "mean of ends", "line"]
_AT = 1e-9  # of 0 and 1, where sums of steps end


def barrier(alphas: Sequence[float] | Vector, losses: Sequence[float] | Vector, above: Above = "larger end") -> float:
    """How high a path rises: the maximum over its points with alpha in [0, 1] of loss - level(alpha).

    above "larger end": level = max(loss(0), loss(1)), which has to be climbed from the higher end; never
    negative. "mean of ends": level = (loss(0) + loss(1)) / 2, as in the error barrier height of Frankle et
    al. 2020 (1912.05671), who take the train or test error for the loss. "line": level =
    (1 - alpha) loss(0) + alpha loss(1), as in Entezari et al. 2022 (2110.06296); never negative. The last two
    are positive for ends of different loss even on a path along which the loss only falls. A maximum over few
    points misses what lies between them: it is a lower bound.

    Args:
        alphas, losses: [m] each, in any order; 0 and 1 must be among the alphas (to 1e-9).

    Returns NaN when a loss in [0, 1] is not finite. Raises ValueError for shapes that differ, without
    ends, or with two losses at one end.
    """
    check_choice("above", above, ("larger end", "mean of ends", "line"))
    a, f = numbers_of("alphas", alphas, "numbers [m]"), numbers_of("losses", losses, "numbers [m]")
    if a.shape != f.shape or a.ndim != 1:
        raise ValueError(f"alphas has shape {a.shape} and losses {f.shape}: both must be [m]")
    ends = [f[np.abs(a - end) <= _AT] for end in (0, 1)]
    if not all(map(len, ends)):
        raise ValueError("alphas lacks 0 or 1: a barrier is measured against both ends of the path")
    inside = (a >= -_AT) & (a <= 1 + _AT)
    first, last = (float(end[0]) for end in ends)
    if not np.isfinite(f[inside]).all():
        return float("nan")
    if any(float(np.ptp(end)) > 1e-6 * float(np.abs(end).max()) for end in ends):
        raise ValueError("losses has two values at one end of the path: they are not of one path")
    if above == "larger end":
        return float(f[inside].max() - max(first, last))
    if above == "mean of ends":
        return float(f[inside].max() - (first + last) / 2)
    return float((f[inside] - ((1 - a[inside]) * first + a[inside] * last)).max())


@dataclass(frozen=True, repr=False)
class Connection(Result):
    """The straight line between two minima beside a quadratic Bezier curve fitted to stay low.

    Attributes:
        value: barrier of the curve above the larger end, at `alphas`; NaN where a loss is not finite.
        linear_value: barrier of the straight line at the same `alphas`.
        alphas: [m], t from 0 to 1.
        losses, accuracies: [m], on the curve; linear_losses, linear_accuracies: [m], on the line. Accuracies
            are fractions, or None when outputs are not logits [b, classes] with targets [b] of indices.
        bend: [n], the curve's control point.
        fit_losses: [at most steps], f at the t drawn in each step.
        length, linear_length: of the curve (of the polygon through its points) and of the line.
        standard_error: None: t is drawn for the fit, and the values are means over all the data.
        learning_rate, seed, mode: as used; bn_mode: what became of buffers, in the fit too.
        evaluations: passes over the data, those of the fit with a gradient.
        examples, n, dtype: number of examples; of parameters; their precision.
        status: "ok"; "not lower", when the fit did not lower the barrier of the line; or "nonfinite", when a
            loss on a path is not finite, or one ended the fit early.
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"bend"})

    value: float
    linear_value: float
    alphas: Vector
    losses: Vector
    accuracies: Vector | None
    linear_losses: Vector
    linear_accuracies: Vector | None
    bend: Vector
    fit_losses: Vector
    length: float
    linear_length: float
    standard_error: None
    learning_rate: float
    evaluations: int
    bn_mode: BnMode
    mode: Mode
    examples: int
    n: int
    dtype: str
    seed: int
    status: str


def connect(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    start: Weights,
    end: Weights,
    steps: int = 100,
    points: int = 21,
    learning_rate: float = 0.1,
    bn_mode: BnMode = "recalibrate",
    recalibrate: Callable[[nn.Module], object] | None = None,
    calibration: Data | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> Connection:
    """Barriers between `start` and `end` on the line, and on a curve that is fitted around what stands
    between.

    x(t) = (1 - t)^2 start + 2 t (1 - t) bend + t^2 end; the bend starts at the midpoint, where the curve is
    the line, and minimises E_{t ~ U(0, 1)} f(x(t)) (Garipov et al. 2018, equation 2) by `steps` steps of Adam
    (betas 0.9, 0.999) on the full gradient 2 t (1 - t) grad f(x(t)), one seeded t per step. Adam's step size is
    `learning_rate` times the root mean square of end - start, falling linearly to 0: a choice of this
    library, for few steps (the paper trains for tens of epochs). Statistics of batch normalisation count as
    constants in the gradient. Every parameter moves.

    A low curve shows that the minima are connected; a high one shows nothing, since more steps or bends might
    lower it.

    Args:
        start, end: state dicts, or mappings with at least all parameters.
        points: number of equidistant t in [0, 1] at which both paths are measured.
        bn_mode, recalibrate, calibration: as in `slice_1d`; by default recalibrated at every point and step.
        progress: True for lines on stderr, a function of (done, total, what), or None.
        data, loss, batch_size, mode, seed: as in `epsilon_sharpness`. The model itself is left as it came.

    Raises:
        ValueError: wrong input, as in `slice_1d`, or ends that are equal.
    """
    check_count("steps", steps, "100", least=0)
    check_count("points", points, "21", least=3)
    check_seed(seed)
    check_positive("learning_rate", learning_rate, "0.1")
    meter = Meter(progress, "connect: passes, of the fit's with gradients", steps + 2 * points - 2)
    check_weights(model, "start", start)
    check_weights(model, "end", end)
    every = [name for name, _ in model.named_parameters()]
    problem = make_problem(model, loss, data, params=every, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    ends = None if bn_mode == "keep" else (start, end)
    mover = make_weight_mover(problem, data, bn_mode, recalibrate, calibration, ends, batch_size)
    a, b = flat_weights(model, start, params=every), flat_weights(model, end, params=every)
    spread = float(np.sqrt(np.mean((b - a) ** 2)))
    if not spread > 0:
        raise ValueError("start and end are the same weights: pass two different minima")
    ts = np.linspace(0.0, 1.0, points)
    with problem.untouched(), problem.movable():
        bend, fit_losses = _fit(mover, a, b, steps, learning_rate * spread, seed, meter)
        curve = np.array([_measure(mover, _bezier(t, a, bend, b), t, meter) for t in ts])
        inner = [_measure(mover, (1 - t) * a + t * b, t, meter) for t in ts[1:-1]]
        line = np.array([curve[0], *inner, curve[-1]])
    value, linear_value = barrier(ts, curve[:, 0]), barrier(ts, line[:, 0])
    finite = np.isfinite(curve[:, 0]).all() and np.isfinite(line[:, 0]).all() and np.isfinite(fit_losses).all()
    xs = [_bezier(t, a, bend, b) for t in ts]
    return Connection(
        value=value, linear_value=linear_value, alphas=ts, losses=curve[:, 0].copy(),
        accuracies=known_or_none(curve[:, 1].copy()), linear_losses=line[:, 0].copy(),
        linear_accuracies=known_or_none(line[:, 1].copy()), bend=bend, fit_losses=fit_losses,
        length=float(sum(np.linalg.norm(x - y) for x, y in zip(xs[1:], xs[:-1], strict=True))),
        linear_length=float(np.linalg.norm(b - a)), standard_error=None, learning_rate=learning_rate,
        evaluations=len(fit_losses) + 2 * points - 2, bn_mode=bn_mode, n=problem.n, **certificate(problem),
        status="nonfinite" if not finite else "ok" if value <= linear_value else "not lower",
    )


def _bezier(t: float, a: Vector, bend: Vector, b: Vector) -> Vector:
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b


def _measure(mover: WeightMover, w: Vector, t: float, meter: Meter) -> tuple[float, float]:
    mover.move(w, t)
    found = evaluate(mover.problem)
    meter.tick()
    return found


def _fit(mover: WeightMover, a: Vector, b: Vector, steps: int, rate: float, seed: int, meter: Meter) -> tuple[Vector, Vector]:
    """The bend after `steps` of Adam, and the loss at each; ends early, at the last finite bend, where the
    loss or gradient is not finite."""
    rng = np.random.default_rng(seed)
    bend = (a + b) / 2
    mean, square = np.zeros_like(bend), np.zeros_like(bend)
    losses: list[float] = []
    for step in range(1, steps + 1):
        t = float(rng.uniform())
        mover.move(_bezier(t, a, bend, b), t)
        value, gradient = mover.problem.mean_loss_and_gradient()
        meter.tick()
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            losses.append(float("nan"))
            break
        losses.append(value)
        gradient *= 2 * t * (1 - t)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        scale = np.sqrt(square / (1 - 0.999**step))
        move = np.divide(mean / (1 - 0.9**step), scale, out=np.zeros_like(mean), where=scale > 0)
        bend = bend - rate * (1 - (step - 1) / steps) * move
    return bend, np.array(losses)
