"""Average-case sharpness: Gaussian noise in proportion to the weights (Andriushchenko et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sharpness.flatness.m_sharpness import batches_of, normalised
from sharpness.flatness.perturbation import check_draws, mean_and_error, move, resolved, sample
from sharpness.problem.arguments import check_count, check_flag, check_positive
from sharpness.problem.batches import Data
from sharpness.problem.evaluate import evaluate
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss
from sharpness.problem.progress import Meter, Progress
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

Vector = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class AverageCaseSharpness(Result):
    """Mean over batches B and Gaussian d of L_B(w + d) - L_B(w).

    Attributes:
        value: in the loss's units, batches weighted by length. NaN if the status is "nonfinite".
        standard_error: of `value` over the draws (the pairs if antithetic), at fixed data; None for one unit.
        rises: [batches, units] the rise in each batch at each draw or pair. batches: their number.
        loss: f(w), the mean over all data (of the loss of the normalised logits, if asked).
        rho, adaptive, draws, antithetic, m, logit_normalised, seed, mode: as asked.
        fixed: number of weights that are exactly zero and therefore stay (0 if not adaptive).
        evaluations: passes over all data, draws + 1.
        examples, n: numbers of examples and of perturbed weights.
        dtype: of the parameters. Losses are accumulated over chunks in float64.
        status: "ok"; "fixed" if all weights are zero, so that nothing moved; "nonfinite"; "unresolved" (no draw moves
            the loss by more than its rounding: a larger rho, or float64).
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"rises"})

    value: float
    standard_error: float | None
    rises: Vector
    batches: int
    loss: float
    rho: float
    adaptive: bool
    draws: int
    antithetic: bool
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


def average_case_sharpness(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    rho: float,
    adaptive: bool = True,
    draws: int = 20,
    antithetic: bool = True,
    m: int | None = None,
    logit_normalised: bool = False,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> AverageCaseSharpness:
    """E_{B, d} L_B(w + d) - L_B(w) with d ~ N(0, rho^2 diag(c^2)), c = |w| (adaptive) or 1.

    Andriushchenko et al. 2023 (arXiv 2302.07011). In eval mode the expectation does not depend on m; with m,
    each batch has draws of its own, so that the same cost averages over more of them. For small rho the
    value is rho^2 sum_i c_i^2 H_ii / 2. Adaptive, it is invariant to rescaled ReLU layers as the worst case
    is; raw, it is not and misleads there.

    Args:
        rho: standard deviation, in the units of the weights (raw) or relative (adaptive), positive.
        draws: perturbations of each batch; even if antithetic.
        antithetic: as in `random_perturbation`.
        m, logit_normalised, params, batch_size, data, loss, mode: as in `worst_case_sharpness`.
        seed: of the draws and batches; another device gives other draws.
        progress: True for lines on stderr, a function of (done, total, what), or None.

    Raises:
        ValueError: wrong input (see `make_problem`).
    """
    check_positive("rho", rho, "0.05")
    check_draws(draws, antithetic, seed)
    check_flag("adaptive", adaptive)
    check_flag("logit_normalised", logit_normalised)
    if m is not None:
        check_count("m", m, "128")
    criterion = normalised(loss) if logit_normalised else loss
    problem = make_problem(model, criterion, data, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed)
    several = 1 if m is None else -(-problem.examples // m)
    meter = Meter(progress, "average_case_sharpness: passes over a batch", several * draws)
    rows, shares, losses = list[Vector](), list[float](), list[float]()
    with problem.untouched(), problem.movable():
        w = problem.flatten(problem.parameters)
        spread = rho * w.abs() if adaptive else float(rho)
        for index, batch in enumerate(batches_of(problem, m, seed)):
            move(problem, w)
            origin = evaluate(batch, finite=True)
            rows.append(sample(batch, w, spread, origin, draws, antithetic, (seed, 2, index), meter)[0])
            losses.append(origin[0])
            shares.append(batch.examples / problem.examples)
    rises, weights = np.stack(rows), np.array(shares)
    finite = bool(np.isfinite(rises).all() and np.isfinite(losses).all())
    means = [mean_and_error(row) for row in rises]
    errors = [error for _, error in means if error is not None]
    known = finite and len(errors) == len(means)
    fixed = int((w == 0).sum()) if adaptive else 0
    status = "ok" if finite and resolved(problem, rises, float(np.abs(losses).max())) else "unresolved"
    return AverageCaseSharpness(
        value=float(weights @ rises.mean(axis=1)) if finite else math.nan,
        standard_error=float(np.linalg.norm(weights * np.array(errors))) if known else None, rises=rises,
        batches=len(rises), loss=float(weights @ np.array(losses)), rho=float(rho), adaptive=adaptive,
        draws=draws, antithetic=antithetic, m=m, logit_normalised=logit_normalised, fixed=fixed,
        evaluations=draws + 1, n=problem.n, **certificate(problem),
        status="nonfinite" if not finite else "fixed" if fixed == problem.n else status,
    )
