"""How much the loss rises and the accuracy falls, on average, when the weights are perturbed at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sharpness.problem.arguments import check_choice, check_count, check_flag, check_positive, check_seed, is_real, shown
from sharpness.problem.batches import Data
from sharpness.problem.evaluate import evaluate
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss, Problem
from sharpness.problem.progress import SILENT, Meter, Progress
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

Scaling = Literal["plain", "magnitude"]
Spread = float | Tensor
Vector = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class RandomPerturbation(Result):
    """E_d f(w + d) - f(w) for Gaussian d, estimated from draws.

    Attributes:
        value: mean rise of the loss, in the loss's units; negative where f curves down. NaN if a loss was
            not finite.
        standard_error: of `value` over the draws (over the pairs if antithetic), at fixed data; None for
            one draw or one pair.
        accuracy_drop: mean of accuracy(w) - accuracy(w + d), a fraction in [-1, 1]; None when the outputs
            are not logits [b, classes] with targets [b] of class indices, or a loss was not finite.
        accuracy_drop_error: its standard error.
        loss: f(w). accuracy: at w, or None as above.
        rises: [units] the rise of each draw or pair.
        sigma, scaling, epsilon, draws, antithetic, seed, mode: as asked.
        evaluations: passes over all data, draws + 1.
        examples, n: numbers of examples and of perturbed weights.
        dtype: of the parameters; losses are accumulated over batches in float64.
        status: "ok"; "nonfinite"; "unresolved" (no draw moves the loss by more than its rounding, so that neither value
            nor standard_error says anything: a larger sigma, or float64).
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"rises"})

    value: float
    standard_error: float | None
    accuracy_drop: float | None
    accuracy_drop_error: float | None
    loss: float
    accuracy: float | None
    rises: Vector
    sigma: float
    scaling: Scaling
    epsilon: float
    draws: int
    antithetic: bool
    evaluations: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int
    status: str


def random_perturbation(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    sigma: float,
    draws: int = 20,
    scaling: Scaling = "plain",
    epsilon: float = 1e-3,
    antithetic: bool = True,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> RandomPerturbation:
    """Mean rise of the loss under Gaussian noise on the weights: E_d f(w + d) - f(w).

    scaling "plain": d ~ N(0, sigma^2 I); "magnitude": d_i ~ N(0, sigma^2 w_i^2 + epsilon^2) (Jiang et al.
    2020, arXiv 1912.02178, whose epsilon is 1e-3). f is the mean loss over `data`. For small sigma the plain
    rise is sigma^2 tr(H) / 2. It misleads across networks whose weights have different scales: rescaling
    a ReLU layer (Dinh et al. 2017) changes it, unless scaling is "magnitude" with epsilon = 0. In float32
    a rise below about 1e-6 f(w) is rounding.

    Args:
        sigma: standard deviation (plain: in the units of the weights; magnitude: relative), positive.
        draws: number of perturbations, each a pass over `data`; even if antithetic.
        epsilon: absolute standard deviation added under "magnitude", at least 0; not used under "plain".
            With 0, weights that are exactly zero stay.
        antithetic: draw in pairs (d, -d), which cancels the linear term g.d exactly. At a minimum, where g
            is about 0, independent draws are up to sqrt(2) more precise.
        params: names of the weights to perturb; None means all with `requires_grad`.
        data, loss, batch_size, mode: as in `hessian`.
        seed: of the draws, made on the model's device: another device gives other draws.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input (see `make_problem`).
    """
    check_positive("sigma", sigma, "0.01")
    check_draws(draws, antithetic, seed)
    check_scaling(scaling, epsilon)
    meter = Meter(progress, "random_perturbation: passes", draws)
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    with problem.untouched(), problem.movable():
        w = problem.flatten(problem.parameters)
        origin = evaluate(problem, finite=True)
        spread = standard_deviations(w, sigma, scaling, epsilon)
        rises, drops = sample(problem, w, spread, origin, draws, antithetic, (seed, 0), meter)
    finite = math.isfinite(origin[0]) and bool(np.isfinite(rises).all())
    value, error = mean_and_error(rises)
    drop, drop_error = mean_and_error(drops) if finite else (math.nan, None)
    return RandomPerturbation(
        value=value if finite else math.nan, standard_error=error,
        accuracy_drop=None if math.isnan(drop) else drop,
        accuracy_drop_error=None if math.isnan(drop) else drop_error, loss=origin[0],
        accuracy=None if math.isnan(origin[1]) else origin[1], rises=rises, sigma=float(sigma),
        scaling=scaling, epsilon=float(epsilon), draws=draws, antithetic=antithetic, evaluations=draws + 1,
        n=problem.n, **certificate(problem),
        status="nonfinite" if not finite else "ok" if resolved(problem, rises, origin[0]) else "unresolved",
    )


def sample(
    problem: Problem,
    w: Tensor,
    spread: Spread,
    origin: tuple[float, float],
    draws: int,
    antithetic: bool,
    entropy: tuple[int, ...],
    meter: Meter = SILENT,
) -> tuple[Vector, Vector]:
    """Rises of the loss and drops of the accuracy [units] at w + spread * z, z ~ N(0, I) from `entropy`.

    The same entropy gives the same z whatever the spread (common random numbers). A unit is a draw, or the
    mean of an antithetic pair. Inside the problem's `untouched` and `movable` only; leaves the weights moved.
    """
    signs = (1.0, -1.0) if antithetic else (1.0,)
    units = draws // len(signs)
    rises, drops = np.zeros(units), np.zeros(units)
    generator = generator_for(problem, *entropy)
    for unit in range(units):
        step = unit_normal(problem, generator).mul_(spread)
        for sign in signs:
            move(problem, torch.add(w, step, alpha=sign))
            loss, accuracy = evaluate(problem, finite=True)
            rises[unit] += (loss - origin[0]) / len(signs)
            drops[unit] += (origin[1] - accuracy) / len(signs)
            meter.tick()
    return rises, drops


def resolved(problem: Problem, rises: Vector, loss: float) -> bool:
    """Whether some rise is more than what rounding of the loss alone makes."""
    return bool(np.abs(rises).max() > 4 * np.finfo(problem.dtype).eps * abs(loss))


def mean_and_error(units: Vector) -> tuple[float, float | None]:
    """The mean and its standard error; None for a single unit, or where a unit is not finite."""
    if len(units) < 2 or not np.isfinite(units).all():
        return float(units.mean()), None
    return float(units.mean()), float(units.std(ddof=1) / math.sqrt(len(units)))


def standard_deviations(w: Tensor, sigma: float, scaling: Scaling, epsilon: float) -> Spread:
    """Of each perturbation: sigma, or sqrt(sigma^2 w^2 + epsilon^2) [n]."""
    if scaling == "plain":
        return sigma
    return torch.hypot(sigma * w, torch.full_like(w, epsilon))


def move(problem: Problem, w: Tensor) -> None:
    """Write w [n], on the model's device, into the parameters; only inside `movable`."""
    sizes = [p.numel() for p in problem.parameters]
    for parameter, part in zip(problem.parameters, w.split(sizes), strict=True):
        parameter.data.copy_(part.view(parameter.shape))


def generator_for(problem: Problem, *entropy: int) -> torch.Generator:
    """A generator of its own on the model's device."""
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(problem.parameters[0].device).manual_seed(int(state) >> 1)


def unit_normal(problem: Problem, generator: torch.Generator) -> Tensor:
    """z ~ N(0, I) [n] float64, drawn in the parameters' precision."""
    dtype = torch.float64 if problem.dtype == np.float64 else torch.float32
    return torch.randn(problem.n, generator=generator, device=generator.device, dtype=dtype).double()


def check_draws(draws: int, antithetic: bool, seed: int) -> None:
    check_count("draws", draws, "20")
    check_flag("antithetic", antithetic)
    if antithetic and draws % 2:
        raise ValueError(f"draws is {draws}: antithetic pairs need an even number, or pass antithetic=False")
    check_seed(seed)


def check_scaling(scaling: Scaling, epsilon: float) -> None:
    check_choice("scaling", scaling, ("plain", "magnitude"))
    if not is_real(epsilon) or not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {shown(epsilon)}: it must be a finite number, at least 0, such as 1e-3")
