"""Size of the minibatch gradient's noise: its covariance's trace and the simple noise scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from torch import nn

from sharpness.gradients.per_example import gradient_spread
from sharpness.problem.arguments import is_whole, numbers_of, shown
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result
from sharpness.problem.untouched import Mode

Vector = NDArray[np.float64]

LEVEL = 0.95  # of the intervals
_BEYOND_DOUBT = 0.9995  # one-sided: a variance or a squared norm that is negative so surely was no sampling error


@dataclass(frozen=True, repr=False)
class GradientNoise(Result):
    """Covariance of the examples' gradients g_i around their mean G, and the simple noise scale.

    Attributes:
        value: B_simple = trace / population_gradient_squared, in examples; NaN where status says so.
        standard_error: of value, by the delete-one jackknife over examples.
        interval: [2] of value at 95%, by Fieller's theorem on the jackknife covariance of numerator and
            denominator; NaN where value is.
        data_value: trace / gradient_squared: the ratio for these very data, without error, which is what
            training on them sees. Grows without bound as G vanishes at a minimum.
        trace: tr(Sigma), Sigma = sum_i (g_i - G)(g_i - G)^T / (N - 1).
        trace_error: its standard error.
        gradient_squared: |G|^2 over these data, whose expectation is too large by tr(Sigma) / N.
        population_gradient_squared: |G|^2 - tr(Sigma) / N, unbiased for the population that the examples
            were drawn from; may be negative.
        population_gradient_squared_error: its standard error.
        loss: mean loss.
        evaluations: passes of loss and gradient over all data; the one of single examples counts as one.
        examples, n, dtype, mode: as in `hessian`; seed: None, nothing is drawn.
        status: "ok"; "unresolved" (the interval of the population's |G|^2 includes 0, as near
            interpolation: the ratio is undefined and N examples cannot tell it); "nonfinite".
    """

    value: float
    standard_error: float
    interval: Vector
    data_value: float
    trace: float
    trace_error: float
    gradient_squared: float
    population_gradient_squared: float
    population_gradient_squared_error: float
    loss: float
    evaluations: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int | None
    status: str


def gradient_noise(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    progress: Progress = None,
) -> GradientNoise:
    """tr(Sigma), |G|^2 and the simple noise scale B_simple = tr(Sigma) / |G|^2 from all examples' gradients.

    g_i is the gradient of the loss of example i alone. A gradient over B independent examples has
    covariance Sigma / B, so that its noise equals its signal at B = B_simple (McCandlish et al. 2018,
    1812.06162, section 2.2). Drawn without replacement from these N examples it is (1 - B/N) Sigma / B
    around G, for which `data_value` is the ratio. The intervals take the examples as independent draws
    from a population. Misleads near interpolation, where a few examples carry all of Sigma and the
    interval is too narrow.

    Args:
        model, loss, data, params, batch_size, mode: as in `hessian`; the batch size does not change the
            result.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input, fewer than 3 examples, or examples that influence each other (batch
            statistics in train mode, dropout in train mode, a loss that is not the mean over examples).
    """
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight)
    total = problem.examples
    if total < 3:
        raise ValueError(f"data has {total} examples: an interval needs at least 3")
    with problem.untouched():
        spread = gradient_spread(problem, meter=Meter(progress, "gradient_noise: examples", total))
    d, p, squared = spread.deviations, spread.slopes, float(spread.gradient @ spread.gradient)
    trace = float(d.sum()) / (total - 1)
    # Without example i: G moves by -(g_i - G)/(N - 1), and the sum of squared deviations loses d_i N/(N - 1).
    traces = (d.sum() - d * total / (total - 1)) / (total - 2)
    signals = squared - 2 * p / (total - 1) + d / (total - 1) ** 2 - traces / (total - 1)
    ratio = _ratio(trace, squared - trace / total, traces, signals)
    return GradientNoise(
        value=ratio.value, standard_error=ratio.standard_error, interval=ratio.interval,
        data_value=trace / squared if squared > 0 else float("nan"), trace=trace, trace_error=ratio.errors[0],
        gradient_squared=squared, population_gradient_squared=squared - trace / total,
        population_gradient_squared_error=ratio.errors[1], loss=spread.loss, evaluations=2, examples=total,
        n=problem.n, dtype=problem.dtype.name, mode=mode, seed=None, status=ratio.status,
    )


@dataclass(frozen=True, repr=False)
class NoiseScale(Result):
    """The simple noise scale from gradients at two batch sizes.

    Attributes:
        value: trace / gradient_squared, in examples; NaN where status says so.
        standard_error: by the delete-one jackknife over measurements.
        interval: [2] at 95%, by Fieller's theorem on the jackknife covariance; NaN where value is.
        trace: mean over measurements of (|G_small|^2 - |G_big|^2) / (1/small - 1/big).
        gradient_squared: mean of (big |G_big|^2 - small |G_small|^2) / (big - small), plus trace / N where
            `examples` N is given; may be negative.
        measurements: m. small, big, examples: as given.
        status: "ok"; "unresolved" (the interval of gradient_squared includes 0, or trace is below 0 by chance);
            "impossible" (trace or gradient_squared is below 0 by more than chance, which nothing can be: the norms
            are not those of mean gradients of these sizes, such as of a loss divided by accumulation steps);
            "nonfinite".
    """

    value: float
    standard_error: float
    interval: Vector
    trace: float
    gradient_squared: float
    measurements: int
    small: int
    big: int
    examples: int | None
    status: str


def noise_scale_from_batches(
    small_squared: ArrayLike, big_squared: ArrayLike, *, small: int, big: int, examples: int | None = None
) -> NoiseScale:
    """B_simple from squared norms of batch gradients at two sizes (McCandlish et al. 2018, appendix A.1).

    E|G_B|^2 = |G|^2 + tr(Sigma)/B gives both unknowns; numerator and denominator are averaged over the
    measurements before they are divided, since the ratio of one measurement has no mean. Misleads when the
    weights change so much between the measurements that these have no common mean.

    Args:
        small_squared: [m] or [m, j] |G_small|^2; j small batches of one measurement (such as the shards of
            the big one) are averaged first.
        big_squared: [m] |G_big|^2.
        small, big: the batch sizes, small < big.
        examples: N, if all batches are drawn without replacement from N examples and |G|^2 is to be that of
            these examples: the estimate misses tr(Sigma) / N then, which is added. None: the population's.

    Raises:
        ValueError: shapes that do not match, fewer than 3 measurements, squares below 0, or sizes out of order.
    """
    first = numbers_of("small_squared", small_squared, "squared norms, [m] or [m, j]")
    second = numbers_of("big_squared", big_squared, "squared norms, [m]")
    if first.ndim not in (1, 2) or second.ndim != 1 or len(first) != len(second) or not first.size:
        raise ValueError(f"small_squared has shape {first.shape} and big_squared {second.shape}: [m] or [m, j], and [m]")
    if len(second) < 3:
        raise ValueError(f"{len(second)} measurements: an interval needs at least 3")
    sizes = (small, big) if examples is None else (small, big, examples)
    if not all(map(is_whole, sizes)) or not 0 < small < big or (examples is not None and examples < big):
        raise ValueError(
            f"sizes are small = {shown(small)}, big = {shown(big)}, examples = {shown(examples)}: they must be integers "
            "with 0 < small < big <= examples"
        )
    if (first < 0).any() or (second < 0).any():
        raise ValueError("small_squared or big_squared holds a number below 0: pass squared norms of gradients")
    first = first.mean(axis=1) if first.ndim == 2 else first
    traces = (first - second) / (1 / small - 1 / big)
    signals = (big * second - small * first) / (big - small)
    if examples is not None:
        signals = signals + traces / examples
    m = len(traces)
    ratio = _ratio(
        float(traces.mean()),
        float(signals.mean()),
        (traces.sum() - traces) / (m - 1),
        (signals.sum() - signals) / (m - 1),
        logged=True,
    )
    return NoiseScale(
        value=ratio.value, standard_error=ratio.standard_error, interval=ratio.interval,
        trace=float(traces.mean()), gradient_squared=float(signals.mean()), measurements=m, small=small,
        big=big, examples=examples, status=ratio.status,
    )


@dataclass(frozen=True)
class _Ratio:
    value: float
    standard_error: float
    interval: Vector
    errors: tuple[float, float]  # of numerator and denominator
    status: str


def _ratio(top: float, bottom: float, tops: Vector, bottoms: Vector, *, logged: bool = False) -> _Ratio:
    """top / bottom with Fieller's interval, given both without each of m units: {r: (top - r bottom)^2 <=
    t^2 Var(top - r bottom)}. It is bounded only where the denominator's own interval excludes 0. Neither can be below
    0 in truth; with `logged`, for numbers of the caller's, one that surely is has a status of its own."""
    m, nan = len(tops), float("nan")
    if not np.isfinite([top, bottom, *tops, *bottoms]).all():
        return _Ratio(nan, nan, np.full(2, nan), (nan, nan), "nonfinite")
    aa, ab, bb = _jackknife_covariance(tops, bottoms)
    errors = float(np.sqrt(aa)), float(np.sqrt(bb))
    surely = float(student.ppf(_BEYOND_DOUBT, m - 1))
    if logged and (top < -surely * errors[0] or bottom < -surely * errors[1]):
        return _Ratio(nan, nan, np.full(2, nan), errors, "impossible")
    quantile = float(student.ppf(0.5 + LEVEL / 2, m - 1)) ** 2
    a, b, c = bottom**2 - quantile * bb, top * bottom - quantile * ab, top**2 - quantile * aa
    if top < 0 or bottom <= 0 or a <= 0:
        return _Ratio(nan, nan, np.full(2, nan), errors, "unresolved")
    half = np.sqrt(max(b**2 - a * c, 0.0))
    interval = np.maximum(np.array([b - half, b + half]) / a, 0.0)
    value = top / bottom
    error = float(np.sqrt(max(aa - 2 * value * ab + value**2 * bb, 0.0))) / bottom
    return _Ratio(value, error, interval, errors, "ok")


def _jackknife_covariance(tops: Vector, bottoms: Vector) -> tuple[float, float, float]:
    a, b, m = tops - tops.mean(), bottoms - bottoms.mean(), len(tops)
    scale = (m - 1) / m
    return scale * float(a @ a), scale * float(a @ b), scale * float(b @ b)
