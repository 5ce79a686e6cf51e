"""Measurements during training: a finished run is replayed (`experiments.lab.measures.replay_run`) and looked at on its way.

Each gives one number as `value` and the curves as equally long lists in `details` (`steps` and what was seen there; null
where it is not known). Step t is the state after t updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize

from experiments.lab.declare.config import Optimizer, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures.replay_run import states
from experiments.lab.measures.subject import BATCH, Subject, head, subset
from experiments.lab.training.evaluate import evaluate
from sharpness import batch_sharpness, gradient_noise, hessian, top_eigenvalues


def edge_of_stability(
    subject: Subject, *, examples: int, points: int, first: float, last: float, tol: float, seed: int
) -> dict[str, Any]:
    """How near lambda_max of the training loss stays to where gradient descent becomes unstable (Cohen et al. 2021).

    `value` is the mean of (lambda_max + weight_decay) / threshold over the points in the window [first, last] of the budget:
    1 at the edge. `rise` is their mean lambda_max over the one at the start (the largest could never be below 1). Thresholds:
    `threshold`. At `points` evenly spaced steps from 0 to the last. Raises `ConfigError` for runs whose threshold is not
    known: not SGD, or of changing LR.
    """
    limit = threshold(subject.config)
    steps = evenly(subject.replay_facts().steps, points)
    curves = _sharpness(subject, steps, examples, tol, seed)
    ratios = [(value + subject.config.weight_decay) / limit for value in curves["lambda_max"]]
    inside = _window(steps, subject.replay_facts().steps, first, last)
    return _record(
        subject, examples, seed, curves, fmean([ratios[i] for i in inside]),
        threshold=limit, rise=fmean([curves["lambda_max"][i] for i in inside]) / curves["lambda_max"][0], window=[first, last],
    )


def threshold(config: RunConfig) -> float:
    """The largest curvature at which a quadratic is not left: 2 (1 + beta) / lr, with Nesterov (2 + 2 beta) / ((1 + 2 beta) lr).

    Heavy ball without dampening (Polyak 1964; Cohen et al. 2021, section 2 and appendix B). Coupled weight decay adds to the
    curvature, not to this. Raises `ConfigError` where the optimizer is not SGD or its LR changes.
    """
    plain = config.optimizer is Optimizer.SGD and config.schedule == "constant" and not config.warmup
    if not plain or config.sam_rho or config.clip_norm or config.gradient_penalty:
        raise ConfigError("the edge of stability is known for plain SGD with a constant learning rate; measure sharpness_along")
    b = config.momentum
    return (2 + 2 * b) / ((1 + 2 * b if config.nesterov else 1) * config.peak_lr)


def sharpness_along(subject: Subject, *, examples: int, points: int, tol: float, seed: int) -> dict[str, Any]:
    """lambda_max and training loss (nats) at `points` log-spaced steps, 0 and the last among them.

    `value` is lambda_max at the end over the one at the start; `value_peak` the largest over the start's.
    """
    curves = _sharpness(subject, log_spaced(subject.replay_facts().steps, points), examples, tol, seed)
    found = curves["lambda_max"]
    return _record(subject, examples, seed, curves, found[-1] / found[0], value_peak=max(found) / found[0])


def distance_along(subject: Subject, *, points: int, first: int) -> dict[str, Any]:
    """||w_t - w_0|| at log-spaced steps from `first` to the last: does it grow like log t (Hoffer et al. 2017, section 3)?

    `value` is R^2 of d = a log t + b minus R^2 of d = k t^c, both with two free parameters and both least squares in d over
    all these points: above 0 where the logarithm describes the walk better. `slope` is a, `exponent` is c.
    """
    steps = log_spaced(subject.replay_facts().steps, points, first)
    replayed = (torch.cat([p.detach().double().flatten() for p in model.parameters()])
                for _, model in states(subject, (0, *steps)))
    start = next(replayed)
    distances = np.array([float((weights - start).norm()) for weights in replayed])
    logarithm, power, slope, exponent = walks(np.array(steps, dtype=np.float64), distances)
    curves = {"steps": list(steps), "distance": distances.tolist()}
    return {**_record(subject, 0, None, curves, logarithm - power, r2_logarithm=logarithm, r2_power=power, slope=slope,
                     exponent=exponent, window=[steps[0], steps[-1]]),
            "examples": None}


def walks(steps: NDArray[np.float64], distances: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """R^2 of a log t + b, R^2 of k t^c, a and c: each the least squares fit of distances [m] at steps [m]; c in [0.001, 2]."""
    t = np.log(steps)
    total = float(np.square(distances - distances.mean()).sum())
    a, b = np.polyfit(t, distances, 1)

    def left(c: float) -> float:
        shape = np.exp(c * (t - t[-1]))
        return float(np.square(distances - shape * (shape @ distances) / (shape @ shape)).sum())

    best: Any = optimize.minimize_scalar(left, bounds=(1e-3, 2), method="bounded", options={"xatol": 1e-8})
    return 1 - float(np.square(distances - a * t - b).sum()) / total, 1 - left(best.x) / total, float(a), float(best.x)


def noise_scale_along(subject: Subject, *, examples: int, points: int) -> dict[str, Any]:
    """The simple noise scale tr(Sigma) / |G|^2, unbiased (McCandlish et al. 2018, section 2.2), at `points` evenly spaced steps,
    the last among them and the start not.

    `value` is the geometric mean over the points at which it is known; near interpolation |G|^2 may not be resolved (null),
    and `unresolved` counts these. `data_value` is the ratio for these very examples, which is always known.
    """
    steps = evenly(subject.replay_facts().steps, points + 1)[1:]
    pair = subset(subject, examples)
    found = [gradient_noise(model, subject.loss, pair, batch_size=BATCH, weight=subject.data.task.weight)
             for _, model in states(subject, steps)]
    known = [r.value for r in found if r.status == "ok" and r.value > 0]
    curves = {
        "steps": list(steps),
        "noise_scale": [r.value if math.isfinite(r.value) else None for r in found],
        "data_value": [r.data_value for r in found],
        "trace": [r.trace for r in found],
        "gradient_squared": [r.population_gradient_squared for r in found],
        "loss": [r.loss for r in found],
    }
    value = math.exp(math.fsum(map(math.log, known)) / len(known)) if known else math.nan
    result = _record(subject, examples, None, curves, value, unresolved=len(found) - len(known))
    return result | {"status": "ok" if known else "unresolved"}


def batch_sharpness_along(
    subject: Subject, *, examples: int, points: int, batches: int, first: float, last: float, seed: int
) -> dict[str, Any]:
    """E[g_B^T H_B g_B] / E||g_B||^2 over batches of the run's own size, against the threshold of full-batch descent.

    `value` is the mean of it over the threshold in the window [first, last] of the budget (Andreyev & Beneventano 2024,
    2412.20553: it reaches 2 / lr where lambda_max stays below). Raises `ConfigError` as `edge_of_stability` does.
    """
    limit, steps = threshold(subject.config), evenly(subject.replay_facts().steps, points)
    pair, size = subset(subject, examples), subject.config.batch_size
    found = [batch_sharpness(model, subject.loss, pair, batch=min(size, len(pair[1])), batches=batches,
                             weight=subject.data.task.weight, seed=seed).value
             for _, model in states(subject, steps)]
    inside = _window(steps, subject.replay_facts().steps, first, last)
    value = fmean([(found[i] + subject.config.weight_decay) / limit for i in inside])
    curves = {"steps": list(steps), "batch_sharpness": found}
    return _record(subject, examples, seed, curves, value, threshold=limit, window=[first, last])


def evenly(last: int, points: int) -> list[int]:
    """At most `points` steps from 0 to `last`, evenly spaced. Raises `ConfigError` for fewer than two."""
    if points < 2 or last < 1:
        raise ConfigError(f"{points} points over {last} updates are no curve; take 2 or more of a run that was trained")
    return sorted({round(last * i / (points - 1)) for i in range(points)})


def log_spaced(last: int, points: int, first: int = 0) -> list[int]:
    """At most `points` steps from `first` to `last`, spaced by a common factor; from 0 the second is 1."""
    if points < 3 or not 0 <= first < last:
        raise ConfigError(f"{points} points from update {first} to {last} are no curve; take 3 or more, and a longer run")
    low, count = max(first, 1), points - (first == 0)
    between = {round(low * (last / low) ** (i / (count - 1))) for i in range(count)}
    return sorted(between | {first})


def _sharpness(subject: Subject, steps: Sequence[int], examples: int, tol: float, seed: int) -> dict[str, list[Any]]:
    """lambda_max and mean loss of the first `examples` at each step; each search starts at the last one's vector."""
    pair, start = subset(subject, examples), None
    curves: dict[str, list[Any]] = {name: [] for name in ("steps", "lambda_max", "residual", "status", "products", "train_loss")}
    for step, model in states(subject, steps):
        operator = hessian(model, subject.loss, pair, batch_size=BATCH, weight=subject.data.task.weight)
        found = top_eigenvalues(operator, tol=tol, start=start, seed=seed)
        start = None if found.vectors is None else found.vectors[0]
        row = (step, float(found.values[0]), float(found.residuals[0]), found.status, found.matvecs)
        for name, value in zip(curves, (*row, evaluate(model, *pair, subject.data.task).loss), strict=True):
            curves[name].append(value)
    return curves


def _window(steps: Sequence[int], end: int, first: float, last: float) -> list[int]:
    inside = [i for i, step in enumerate(steps) if first * end <= step <= last * end]
    if not inside:
        raise ConfigError(f"no point lies in the window [{first:g}, {last:g}] of the budget; widen it or take more points")
    return inside


def _record(subject: Subject, examples: int, seed: int | None, curves: dict[str, Any], value: float,
           **facts: Any) -> dict[str, Any]:
    """The measurement's record; of many searches the status is that of the least certain."""
    order = ("nonfinite", "max_matvecs", "precision", "converged")
    statuses = [s for s in curves.get("status", ()) if s is not None]
    return {
        **head(subject, examples, seed),
        "value": value,
        "residual": max(curves["residual"]) if "residual" in curves else None,
        "products": sum(curves["products"]) if "products" in curves else None,
        "status": min(statuses, key=order.index) if statuses else "ok",
        "details": curves | facts,
    }
