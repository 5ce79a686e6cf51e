"""The largest Gaussian noise on the weights that costs little accuracy (Jiang et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sharpness.flatness.perturbation import Scaling, check_draws, check_scaling, mean_and_error, sample, standard_deviations
from sharpness.problem.arguments import check_choice, check_positive
from sharpness.problem.batches import Data
from sharpness.problem.evaluate import evaluate
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

Quantity = Literal["accuracy", "loss"]
Vector = NDArray[np.float64]

_FIRST = 0.25  # the first sigma, in units of the weights' root mean square (plain) or of 1 (magnitude)
_LARGEST, _SMALLEST = 2.0**12, 2.0**-40  # the search's limits, in units of the first sigma
_NEAR = 0.4  # half-width in log sigma of the points behind the slope


@dataclass(frozen=True, repr=False)
class PacBayesSigma(Result):
    """The largest sigma at which the mean loss of accuracy stays within the limit.

    Attributes:
        value: 1 / sigma^2, larger for sharper minima; 0 if unbounded, NaN if there is no sigma.
        standard_error: of `value` over the draws, at fixed data: 2 value e / s, with e the standard error
            of the drop at `sigma` and s its slope in log sigma; None for one unit or without a bracket.
        sigma: the lower end of the bracket, where the measured drop is within the limit; infinity if
            unbounded, NaN if there is none.
        sigma_error: its standard error.
        bracket: (lower, upper): the drop is within `limit` at the lower and above it at the upper end; None
            without one.
        drop: the mean drop (of accuracy; or rise of the loss) at `sigma`, or at the last sigma tried.
        sigmas, drops: every sigma tried, in order, and the mean drop there.
        quantity, limit, draws, antithetic, scaling, epsilon, tolerance, seed, mode: as asked.
        evaluations: passes over all data.
        examples, n: numbers of examples and of perturbed weights.
        dtype: of the parameters.
        status: "ok"; "unbounded", even the largest sigma tried stays within the limit; "floor", even the
            smallest sigma tried is above it (epsilon alone does too much); "nonfinite".
    """

    value: float
    standard_error: float | None
    sigma: float
    sigma_error: float | None
    bracket: tuple[float, float] | None
    drop: float
    sigmas: Vector
    drops: Vector
    quantity: Quantity
    limit: float
    draws: int
    antithetic: bool
    scaling: Scaling
    epsilon: float
    tolerance: float
    evaluations: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int
    status: str


def pac_bayes_sigma(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    accuracy_drop: float = 0.1,
    quantity: Quantity = "accuracy",
    loss_rise: float | None = None,
    draws: int = 20,
    scaling: Scaling = "plain",
    epsilon: float = 1e-3,
    antithetic: bool = True,
    tolerance: float = 0.01,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> PacBayesSigma:
    """max {sigma : E_d [accuracy(w) - accuracy(w + d)] <= accuracy_drop}, reported as 1 / sigma^2.

    d ~ N(0, sigma^2 I) ("plain") or d_i ~ N(0, sigma^2 w_i^2 + epsilon^2) ("magnitude"): Jiang et al. 2020
    (arXiv 1912.02178), PAC-Bayes flatness. The mean over the draws uses the same unit draws at every sigma,
    so that it is a fixed function of sigma: doubling or halving finds a bracket, bisection in log sigma
    narrows it to the relative width `tolerance`. Where that function crosses the limit more than once, the
    crossing found need not be the last. It misleads across networks whose weights have different scales
    (plain), and where accuracy at w is already within the limit of chance (unbounded).

    Args:
        accuracy_drop: the limit, an absolute difference of accuracies in (0, 1); the paper's is 0.1.
        quantity: "accuracy", for outputs [b, classes] and targets [b] of class indices; "loss", for any
            loss, with the limit `loss_rise` on E_d f(w + d) - f(w), in the loss's units.
        draws, scaling, epsilon, antithetic, seed: as in `random_perturbation`.
        tolerance: upper / lower - 1 of the final bracket.
        progress: True for lines on stderr, a function of (done, total, what), or None.
        params, data, loss, batch_size, mode: as in `hessian`.

    Raises:
        ValueError: wrong input, or accuracy asked for where it has no meaning.
    """
    limit = _limit(quantity, accuracy_drop, loss_rise)
    check_draws(draws, antithetic, seed)
    check_scaling(scaling, epsilon)
    check_positive("tolerance", tolerance, "0.01")
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    tried: dict[float, Vector] = {}
    meter = Meter(progress, "pac_bayes_sigma: passes")

    with problem.untouched(), problem.movable():
        w = problem.flatten(problem.parameters)
        origin = evaluate(problem, finite=True)
        if quantity == "accuracy" and math.isnan(origin[1]):
            raise ValueError(
                "accuracy needs finite outputs [b, classes] and targets [b] of class indices: for others "
                "pass quantity='loss' with loss_rise"
            )

        def mean_drop(sigma: float) -> float:
            spread = standard_deviations(w, sigma, scaling, epsilon)
            rises, drops = sample(problem, w, spread, origin, draws, antithetic, (seed, 0), meter)
            tried[sigma] = drops if quantity == "accuracy" else rises
            return float(tried[sigma].mean())

        bracket, status = bracket_crossing(mean_drop, limit, _first(w, scaling), tolerance)
    sigma = bracket[0] if bracket else (math.inf if status == "unbounded" else math.nan)
    error = _log_error(tried, sigma) if bracket else None
    value = 1.0 / sigma**2
    return PacBayesSigma(
        value=value, standard_error=None if error is None else 2.0 * value * error, sigma=sigma,
        sigma_error=None if error is None else sigma * error, bracket=bracket,
        drop=float((tried[sigma] if bracket else list(tried.values())[-1]).mean()),
        sigmas=np.array(list(tried)), drops=np.array([units.mean() for units in tried.values()]),
        quantity=quantity, limit=limit, draws=draws, antithetic=antithetic, scaling=scaling,
        epsilon=float(epsilon), tolerance=float(tolerance), evaluations=1 + draws * len(tried), n=problem.n,
        **certificate(problem), status=status,
    )


def bracket_crossing(
    function: Callable[[float], float], limit: float, first: float, tolerance: float
) -> tuple[tuple[float, float] | None, str]:
    """(lower, upper) with function(lower) <= limit < function(upper) and upper <= (1 + tolerance) lower.

    Without one: None and "unbounded", "floor" or "nonfinite", as in `PacBayesSigma`.
    """
    value = function(first)
    lower = upper = first
    while math.isfinite(value) and value <= limit and upper < first * _LARGEST:
        lower, upper = upper, 2.0 * upper
        value = function(upper)
    if upper == first:
        while math.isfinite(value) and value > limit and lower > first * _SMALLEST:
            lower, upper = lower / 2.0, lower
            value = function(lower)
        if math.isfinite(value) and value > limit:
            return None, "floor"
    elif math.isfinite(value) and value <= limit:
        return None, "unbounded"
    if not math.isfinite(value):
        return None, "nonfinite"
    while upper > (1.0 + tolerance) * lower:
        middle = math.sqrt(lower * upper)
        if not lower < middle < upper:
            break  # a tolerance below the spacing of floats
        value = function(middle)
        if not math.isfinite(value):
            return None, "nonfinite"
        lower, upper = (middle, upper) if value <= limit else (lower, middle)
    return (lower, upper), "ok"


def _log_error(tried: dict[float, Vector], sigma: float) -> float | None:
    """Standard error of log sigma: that of the mean drop over the slope of a line through the near points."""
    _, error = mean_and_error(tried[sigma])
    near = [s for s in tried if abs(math.log(s / sigma)) <= _NEAR]
    if error is None or len(near) < 2:
        return None
    slope = float(np.polyfit(np.log(near), [tried[s].mean() for s in near], 1)[0])
    return error / slope if slope > 0 else None


def _first(w: Tensor, scaling: Scaling) -> float:
    if scaling == "magnitude":
        return _FIRST
    return _FIRST * (float(w.square().mean().sqrt()) or 1.0)


def _limit(quantity: Quantity, accuracy_drop: float, loss_rise: float | None) -> float:
    check_choice("quantity", quantity, ("accuracy", "loss"))
    if quantity == "loss":
        if loss_rise is None:
            raise ValueError("quantity is 'loss' and loss_rise is None: pass the rise of the loss to allow")
        check_positive("loss_rise", loss_rise, "0.1")
        return float(loss_rise)
    if loss_rise is not None:
        raise ValueError("loss_rise limits the loss and quantity is 'accuracy': pass quantity='loss'")
    check_positive("accuracy_drop", accuracy_drop, "the paper's 0.1")
    if accuracy_drop >= 1:
        raise ValueError(f"accuracy_drop is {accuracy_drop!r}: it is a fraction below 1, such as 0.1")
    return float(accuracy_drop)
