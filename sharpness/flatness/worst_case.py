"""Worst-case sharpness in a ball around the weights, raw or adaptive to their magnitudes.

Foret et al. 2021 (arXiv 2010.01412), Kwon et al. 2021 (ASAM, 2102.11600), Andriushchenko et al. 2023
(2302.07011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sharpness.flatness.apgd import BallMaximum, Norm, maximise_in_ball, one_step
from sharpness.flatness.m_sharpness import batches_of, normalised
from sharpness.flatness.perturbation import generator_for, move, unit_normal
from sharpness.problem.arguments import check_choice, check_count, check_flag, check_positive, check_seed
from sharpness.problem.batches import Data
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss, Problem
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

Vector = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class WorstCaseSharpness(Result):
    """Mean over batches B of max_d L_B(w + d) - L_B(w) in a ball; each maximum found is a lower bound.

    Attributes:
        value: in the loss's units, batches weighted by length. At least 0, except for steps = 1, where it is
            the rise at the one-step point. NaN if the status is "nonfinite".
        standard_error: over the batches, as a sample of the data's distribution; None for one batch.
        batch_values: [batches] the rise in each batch. batches: their number.
        loss: f(w), the mean over all data (of the loss of the normalised logits, if asked).
        rho, norm, adaptive, steps, starts, m, logit_normalised, seed, mode: as asked.
        fixed: number of weights that are exactly zero and therefore stay (0 if not adaptive).
        evaluations: passes over all data, most with the gradient: starts (steps + 1) for steps > 1, 2 for 1.
        examples, n: numbers of examples and of perturbed weights.
        dtype: of the parameters. Losses and gradients are accumulated over chunks in float64.
        status: "ok"; "stationary" if in some batch the gradient was exactly zero at w (one step then has
            no direction and counts 0; more steps begin in a random direction instead); "fixed" if all
            weights are zero, so that nothing moved and value is 0; "nonfinite" if a loss or a gradient was
            not finite.
    """

    value: float
    standard_error: float | None
    batch_values: Vector
    batches: int
    loss: float
    rho: float
    norm: Norm
    adaptive: bool
    steps: int
    starts: int
    m: int | None
    logit_normalised: bool
    fixed: int
    evaluations: int
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int
    status: str


def worst_case_sharpness(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    rho: float,
    norm: Norm = "l2",
    adaptive: bool = False,
    steps: int = 20,
    starts: int = 1,
    m: int | None = None,
    logit_normalised: bool = False,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> WorstCaseSharpness:
    """Mean over batches B of max_{||d / c||_p <= rho} L_B(w + d) - L_B(w): m-sharpness.

    c = 1 (raw) or c = |w| elementwise (adaptive). In u = d / c the set is a ball; weights that are exactly
    zero stay (ASAM's |w| + eta would break the invariance). The adaptive value does not change when a ReLU
    layer is multiplied and the next divided by a constant (Dinh et al. 2017); the raw one does, and misleads
    there.

    steps = 1 is one ascent step to the boundary (SAM, ASAM): d = rho c^2 g / ||c g||_2 or d = rho c sign(g).
    More steps are APGD in u from u = 0 (see `sharpness.flatness.apgd`), whose first step is that one; the best
    iterate counts, and remains a lower bound of the maximum. Andriushchenko et al. use 1,024 examples
    without augmentation, m = 128 and 20 steps.

    Args:
        rho: radius: in the units of the weights (raw) or relative (adaptive), positive.
        norm: "l2" or "linf", the p above. Raw and adaptive l2 radii grow with the number of weights.
        steps: of APGD, each one gradient of each batch.
        starts: searches per batch: the first from w, others from random points of the boundary; needs
            steps > 1 if more than one.
        m: examples per batch B. None: one batch, all of `data`. A pair of tensors is shuffled by `seed` and
            cut into batches of m, the last one shorter if need be (it counts by its length); any other
            data must come in batches of m.
        logit_normalised: replace the outputs z [b, classes], per example, by
            (z - mean(z)) / max(||z - mean(z)||_2, 1e-10), as the authors' code of Andriushchenko et al. does:
            the value is then invariant to the scale of the logits.
        params: names of the weights w; None means all with `requires_grad`.
        batch_size: chunks in which a batch's gradient is computed, to save memory; the value does not
            depend on it in eval mode.
        data, loss, mode: as in `hessian`.
        seed: of the batches, random starts and escapes from stationary points, and dropout in train mode.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input (see `make_problem`).
    """
    check_positive("rho", rho, "0.05")
    check_count("steps", steps, "20 (APGD) or 1")
    check_count("starts", starts, "1")
    check_seed(seed)
    check_choice("norm", norm, get_args(Norm))
    check_flag("adaptive", adaptive)
    check_flag("logit_normalised", logit_normalised)
    if m is not None:
        check_count("m", m, "128")
    if starts > 1 and steps == 1:
        raise ValueError("one step starts at w: pass starts=1, or more steps")
    criterion = normalised(loss) if logit_normalised else loss
    problem = make_problem(model, criterion, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    several = 1 if m is None else -(-problem.examples // m)
    meter = Meter(progress, "worst_case_sharpness: evaluations of a batch", several * (2 if steps == 1 else starts * (steps + 1)))
    values, shares, losses, evaluations = list[float](), list[float](), list[float](), 0.0
    statuses = set[str]()
    with problem.untouched(), problem.movable():
        w = problem.flatten(problem.parameters)
        c = w.abs() if adaptive else None
        for index, batch in enumerate(batches_of(problem, m, seed)):
            searches = _search(batch, w, c, float(rho), norm, steps, starts, (seed, 1, index), meter)
            shares.append(batch.examples / problem.examples)
            losses.append(searches[0].start_value)
            values.append(float(np.max([s.value for s in searches])) - losses[-1])  # NaN if one is NaN
            evaluations += shares[-1] * sum(s.evaluations for s in searches)
            statuses |= {s.status for s in searches}
    weights, gains = np.array(shares), np.array(values)
    fixed = 0 if c is None else int((c == 0).sum())
    value, error = _weighted_mean_and_error(gains, weights)
    if "nonfinite" in statuses:
        value, error, status = math.nan, None, "nonfinite"
    else:
        status = "fixed" if fixed == problem.n else "stationary" if "stationary" in statuses else "ok"
    return WorstCaseSharpness(
        value=value, standard_error=error, batch_values=gains, batches=len(gains),
        loss=float(weights @ np.array(losses)), rho=float(rho), norm=norm, adaptive=adaptive, steps=steps,
        starts=starts, m=m, logit_normalised=logit_normalised, fixed=fixed,
        evaluations=math.ceil(round(evaluations, 6)), n=problem.n, **certificate(problem), status=status,
    )


def _search(
    problem: Problem,
    w: Tensor,
    c: Tensor | None,
    rho: float,
    norm: Norm,
    steps: int,
    starts: int,
    entropy: tuple[int, ...],
    meter: Meter,
) -> list[BallMaximum]:
    """One batch: the maximum of u -> L_B(w + c u) from each start."""
    generator = generator_for(problem, *entropy)
    moved = torch.empty_like(w)

    def objective(u: Tensor, with_gradient: bool) -> tuple[float, Tensor | None]:
        move(problem, torch.add(w, u, out=moved) if c is None else torch.addcmul(w, c, u, out=moved))
        meter.tick()
        if not with_gradient:
            return problem.mean_loss(), None
        value, gradient = _loss_and_gradient(problem)
        return value, gradient if c is None else gradient.mul_(c)

    def boundary() -> Tensor:
        """A random point: uniform on the sphere of the weights that move (l2), or a vertex (linf)."""
        z = unit_normal(problem, generator)
        z = z if c is None else z.mul_(c != 0)
        return z.sign_().mul_(rho) if norm == "linf" else torch.nn.functional.normalize(z, dim=0).mul_(rho)

    origin = torch.zeros_like(w)
    if steps == 1:
        return [one_step(objective, origin, rho=rho, norm=norm)]
    first = maximise_in_ball(objective, origin, rho=rho, norm=norm, steps=steps, escape=boundary)
    others = [
        maximise_in_ball(objective, boundary(), rho=rho, norm=norm, steps=steps, escape=boundary)
        for _ in range(starts - 1)
    ]
    return [first, *others]


def _loss_and_gradient(problem: Problem) -> tuple[float, Tensor]:
    """As `problem.mean_loss_and_gradient`, with the gradient left on the model's device."""
    value, gradient = 0.0, None
    for inputs, targets, weight in problem.passes():
        loss = problem.batch_loss(inputs, targets)
        value += weight * loss.item()
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, problem.parameters, allow_unused=True)
            flat = problem.flatten(parts)
            gradient = flat.mul_(weight) if gradient is None else gradient.add_(flat, alpha=weight)
    if gradient is None:
        device = problem.parameters[0].device
        gradient = torch.zeros(problem.n, dtype=torch.float64, device=device)
    return value, gradient


def _weighted_mean_and_error(values: Vector, weights: Vector) -> tuple[float, float | None]:
    """sum_b w_b x_b with sum_b w_b = 1, and its standard error for independent x_b."""
    mean = float(weights @ values)
    if len(values) < 2:
        return mean, None
    correction = len(values) / (len(values) - 1)
    return mean, float(np.linalg.norm(weights * (values - mean)) * math.sqrt(correction))
