"""What measurements will take, before they begin: counted in passes, gradients and products, timed once each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from sharpness.metrics import LEADING_WORK, Work
from sharpness.operators.curvature_operator import CurvatureOperator
from sharpness.panels import choose, subjects
from sharpness.problem.batches import Data
from sharpness.problem.means import Weight
from sharpness.problem.problem import Loss
from sharpness.problem.result import Result, certificate
from sharpness.problem.untouched import Mode

_TIMED = 128  # examples, at most


@dataclass(frozen=True, repr=False)
class CostEstimate(Result):
    """Seconds that metrics of the panel will take on this machine, as it is now.

    Attributes:
        value: seconds in all, an upper estimate: searches may converge early.
        metrics: seconds of each metric.
        passes, gradients, products: how many in all, each metric's over as many examples as it takes.
        pass_seconds, gradient_seconds, product_seconds: of a pass without gradients over `examples` examples, one with,
            and a product with the Hessian, measured once each. The rest is in proportion.
        examples: the number of those, at most 128. n, dtype, mode, seed: as in `hessian`.
        status: "ok".
    """

    value: float
    metrics: dict[str, float]
    passes: int
    gradients: int
    products: int
    pass_seconds: float
    gradient_seconds: float
    product_seconds: float
    examples: int
    n: int
    dtype: str
    mode: Mode
    seed: int
    status: str


def cost_estimate(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    metrics: str | Sequence[str] = "all",
    examples: int | None = None,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    weight: Weight | None = None,
    seed: int = 0,
) -> CostEstimate:
    """How long `panel` with these arguments will take, at the cost of some eight gradients.

    For a function of its own: its result says `evaluations` and `matvecs`, and its page how many are the default;
    times `pass_seconds`, `gradient_seconds` or `product_seconds` here. Arguments and errors (ValueError) as in `panel`.
    """
    chosen = choose(metrics)
    subject_of, there = subjects(
        model, loss, data, metrics, examples, params=params, batch_size=batch_size, mode=mode, weight=weight, seed=seed
    )
    problem = subject_of(min(_TIMED, examples or _TIMED)).problem
    op, v = CurvatureOperator(problem), np.random.default_rng(seed).standard_normal(problem.n)
    with problem.untouched():
        seconds = [_timed(problem.mean_loss), _timed(problem.mean_loss_and_gradient)]
    try:
        seconds.append(_timed(lambda: op @ v))
    except (ValueError, FloatingPointError):  # each metric will say why
        seconds.append(3 * seconds[1])
    found, leading, counts = dict[str, float](), LEADING_WORK, np.zeros(3, dtype=int)
    for metric in chosen:
        share = min(examples or metric.examples, there) / problem.examples if problem.examples >= _TIMED else 1.0
        work = np.array(metric.work) + (np.array(leading) if metric.uses_leading else 0)
        leading = Work() if metric.uses_leading else leading  # computed once
        counts += work
        found[metric.name] = float(work @ seconds) * share
    return CostEstimate(
        value=sum(found.values()), metrics=found, passes=int(counts[0]), gradients=int(counts[1]),
        products=int(counts[2]), pass_seconds=seconds[0], gradient_seconds=seconds[1],
        product_seconds=seconds[2], n=problem.n, **certificate(problem), status="ok",
    )


def _timed(step: Callable[[], object]) -> float:
    """Seconds of the second call: the first prepares what later ones use."""
    step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
