"""How large the basin around a minimum is: local entropy, and the radius along random directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from torch import nn

from sharpness.flatness.scale_aware import weight_scales
from sharpness.problem.arguments import check_choice, check_count, check_fraction, check_positive, check_seed, is_whole, shown
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

Vector = NDArray[np.float64]
RadiusScale = Literal["unit", "element", "filter", "tensor"]

MIN_EFFECTIVE = 20.0  # samples below which a mean of weights is that of a few lucky draws
_MAX_DOUBLINGS = 40  # from the first guess: a factor of 1e12 each way


@dataclass(frozen=True, repr=False)
class LocalEntropy(Result):
    """log of the Boltzmann weight of a Gaussian ball around w; larger (nearer to 0) is flatter.

    Attributes:
        value: log E exp(-(f(w') - f(w)) / T) over w' ~ N(w, I / gamma); at a minimum at most 0.
        standard_error: by the jackknife over antithetic pairs.
        log_integral: value + (n / 2) log(2 pi / gamma), the integral itself.
        effective: (sum of weights)^2 / sum of squared weights, of `samples`: how many samples count.
        loss: f(w). gamma, temperature, samples, seed: as asked.
        evaluations: passes of the loss over all data.
        examples, n, dtype, mode: as in `hessian`.
        status: "ok"; "degenerate" (effective below 20, so that value is too low and its error too: raise
            gamma, temperature or samples); "nonfinite" (a loss was not finite: value is NaN).
    """

    value: float
    standard_error: float
    log_integral: float
    effective: float
    loss: float
    gamma: float
    temperature: float
    samples: int
    evaluations: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int
    status: str


def local_entropy(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    gamma: float,
    temperature: float = 1.0,
    samples: int = 128,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> LocalEntropy:
    """log int exp(-(f(w') - f(w)) / T - gamma / 2 ||w' - w||^2) dw', the local entropy of Chaudhari et al.
    2017 (1611.01838, equation 4), up to f(w) / T and a constant that `log_integral` includes.

    For f = f(w) + d^T H d / 2 it is -1/2 log det(I + H / (gamma T)). By sampling w' = w +- z / sqrt(gamma) in
    antithetic pairs, weights summed in logarithms. Not unchanged by Dinh's rescaling. Misleads where
    H / (gamma T) is far above 1 in many directions: no sample falls where the integrand is; see `effective`.

    Args:
        gamma: inverse variance of the Gaussian, in 1 / weight^2: the ball has radius sqrt(n / gamma).
        temperature: T, in units of the loss (the mean over examples); the paper has 1.
        samples: even, at least 4; one pass over the data each.
        model, loss, data, params, batch_size, mode: as in `hessian`.
        seed: of the samples, and of dropout in train mode.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input.
    """
    check_positive("gamma", gamma, "1e4")
    check_positive("temperature", temperature, "1.0")
    if not is_whole(samples) or samples < 4 or samples % 2:
        raise ValueError(f"samples is {shown(samples)}: an even number of at least 4 is needed")
    check_seed(seed)
    meter = Meter(progress, "local_entropy: passes", samples)
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    w, rng = problem.weights(), np.random.default_rng(seed)
    losses = np.empty((samples // 2, 2))
    with problem.untouched(), problem.movable():
        here = problem.mean_loss()
        for j in range(samples // 2):
            step = rng.standard_normal(problem.n) / np.sqrt(gamma)
            for side, moved in enumerate((w + step, w - step)):
                problem.move_to(moved)
                losses[j, side] = problem.mean_loss()
                meter.tick()
    value = error = effective = float("nan")
    finite = bool(np.isfinite(losses).all() and np.isfinite(here))
    if finite:
        logs = -(losses - here) / temperature
        value, error = _log_mean(logs)
        effective = float(np.exp(2 * logsumexp(logs) - logsumexp(2 * logs)))
    return LocalEntropy(
        value=value, standard_error=error,
        log_integral=value + problem.n / 2 * float(np.log(2 * np.pi / gamma)), effective=effective, loss=here,
        gamma=gamma, temperature=temperature, samples=samples, evaluations=samples + 1, n=problem.n,
        **certificate(problem),
        status="nonfinite" if not finite else "ok" if effective >= MIN_EFFECTIVE else "degenerate",
    )


def _log_mean(logs: Vector) -> tuple[float, float]:
    """log mean exp of [m, 2], and its delete-one jackknife error over rows."""
    m = len(logs)
    rows = np.asarray(logsumexp(logs, axis=1), np.float64)
    top = rows.max()
    weights = np.exp(rows - top)
    # A row that carries everything leaves nothing without it: its value is then the tiny rest, not log 0.
    without = np.log(np.maximum(weights.sum() - weights, np.finfo(np.float64).tiny) / (m - 1))
    error = np.sqrt((m - 1) * np.mean((without - without.mean()) ** 2))
    return float(top + np.log(weights.mean() / 2)), float(error)


@dataclass(frozen=True, repr=False)
class BasinRadius(Result):
    """Mean log-distance to where the loss has risen by `rise`, over random directions.

    Attributes:
        value: E[log r]. standard_error: over directions.
        log_radii: [m] log r of each direction.
        log_volume_bound: log(volume of the unit n-ball) + n value, a lower bound (by Jensen's inequality)
            of the volume of the star-shaped basin; over the scaled coordinates where scale is not "unit".
        rise, scale, tolerance, seed: as asked. directions: m. loss: f(w).
        evaluations: passes of the loss over all data.
        examples, n, dtype, mode: as in `hessian`; n counts coordinates that move.
        status: "ok"; "unbounded" (along some direction the loss never rose so far: its log_radii is inf and
            value NaN); "nonfinite" (the edge found lies next to losses that are not finite: value NaN).
    """

    value: float
    standard_error: float
    log_radii: Vector
    log_volume_bound: float
    rise: float
    scale: RadiusScale
    tolerance: float
    directions: int
    loss: float
    evaluations: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int
    status: str


def basin_radius(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    rise: float = 0.1,
    scale: RadiusScale = "unit",
    directions: int = 32,
    tolerance: float = 1e-3,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> BasinRadius:
    """E[log r(u)], f(w + r s * u) = f(w) + rise, over directions u uniform on the unit sphere of R^n.

    The basin {f <= f(w) + rise}, as far as it is star-shaped around w, has volume V_1 E[r^n], V_1 that of
    the unit ball; its logarithm is n E[log r] and more (Huang et al. 2020, 1906.03291, section 5). For a
    quadratic r = sqrt(2 rise / (s u)^T H (s u)). s is 1 ("unit") or the weights' scale as in
    `relative_trace`, for which r is relative to the weights and unchanged by Dinh's rescaling. Along
    each direction r is bracketed by factors of 2 and refined by Brent's method: a crossing, the first if the
    loss rises and falls again only over more than a factor of 2. Misleads as a volume: in high dimension
    E[r^n] is carried by directions that sampling never meets.

    Args:
        rise: threshold above f(w), in units of the loss.
        directions: m, at least 2. tolerance: absolute, of each log r.
        model, loss, data, params, batch_size, mode: as in `hessian`.
        seed: of the directions, and of dropout in train mode.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input; a loss that is not finite at w; or a rise too small for the precision.
    """
    check_positive("rise", rise, "0.1, in units of the loss")
    check_choice("scale", scale, ("unit", "element", "filter", "tensor"))
    check_count("directions", directions, "32", least=2)
    check_fraction("tolerance", tolerance, "a width in log r")
    check_seed(seed)
    meter = Meter(progress, "basin_radius: directions", directions)
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    w, rng, count = problem.weights(), np.random.default_rng(seed), 1
    s = np.ones(problem.n) if scale == "unit" else weight_scales(problem, scale)
    moving = int(np.count_nonzero(s))
    if not moving:
        raise ValueError(f"all weights are zero, and scale {scale!r} is relative to them: use 'unit'")
    with problem.untouched(), problem.movable():
        here = problem.mean_loss()
        if not np.isfinite(here) or rise < 100 * np.finfo(problem.dtype).eps * abs(here):
            raise ValueError(f"rise is {rise} over a loss of {here}: too small for {problem.dtype.name}")
        found, start = [], float(np.log(1e-2 * max(np.linalg.norm(w / np.where(s > 0, s, 1.0)), 1e-3)))
        for _ in range(directions):
            u = rng.standard_normal(problem.n) * (s > 0)
            u *= s / np.linalg.norm(u)

            def log_ratio(x: float, u: Vector = u) -> float:
                nonlocal count
                count += 1
                problem.move_to(w + np.exp(x) * u)
                ratio = (problem.mean_loss() - here) / rise
                return float(np.log(max(ratio, 1e-12))) if np.isfinite(ratio) else np.inf

            found.append(_crossing(log_ratio, start, tolerance))
            if np.isfinite(found[-1]):
                start = found[-1]
            meter.tick()
    radii = np.array(found)
    status = "nonfinite" if np.isnan(radii).any() else "ok" if np.isfinite(radii).all() else "unbounded"
    value = float(radii.mean()) if status == "ok" else float("nan")
    return BasinRadius(
        value=value,
        standard_error=float(radii.std(ddof=1) / np.sqrt(directions)) if status == "ok" else float("nan"),
        log_radii=radii,
        log_volume_bound=moving / 2 * float(np.log(np.pi)) - float(gammaln(moving / 2 + 1)) + moving * value,
        rise=rise, scale=scale, tolerance=tolerance, directions=directions, loss=here, evaluations=count,
        n=moving, **certificate(problem), status=status,
    )


def _crossing(log_ratio: Callable[[float], float], start: float, tolerance: float) -> float:
    """x where log_ratio crosses 0 upwards; inf if it never does, NaN if what lies above is not finite."""
    factor, low, high = float(np.log(2.0)), start, start
    at_low = at_high = log_ratio(start)
    for _ in range(_MAX_DOUBLINGS):
        if at_low <= 0:
            break
        high, at_high, low = low, at_low, low - factor
        at_low = log_ratio(low)
    for _ in range(_MAX_DOUBLINGS):
        if at_high > 0:
            break
        low, at_low, high = high, at_high, high + factor
        at_high = log_ratio(high)
    if at_low > 0:
        return float("nan")
    if at_high <= 0:
        return float("inf")
    while np.isinf(at_high) and high - low > tolerance:
        middle = (low + high) / 2
        at_middle = log_ratio(middle)
        low, high, at_high = (middle, high, at_high) if at_middle <= 0 else (low, middle, at_middle)
    if np.isinf(at_high):
        return float("nan")
    return float(brentq(log_ratio, low, high, xtol=tolerance, rtol=1e-12))  # pyright: ignore[reportArgumentType]

