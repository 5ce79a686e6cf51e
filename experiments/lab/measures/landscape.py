"""The loss between two minimisers: along the line through both, and on the plane through both and their common start."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures.subject import BATCH, Subject, head, subset
from experiments.lab.training.evaluate import calibrate_on
from experiments.lab.training.initial import network
from sharpness import flat_weights, plane_through, slice_1d, slice_2d


def linear_slice(first: Subject, second: Subject, *, points: int, examples: int) -> dict[str, Any]:
    """Losses (nats) and, of classes, accuracies (percent) at (1 - a) first + a second, `points` values of a in [-1, 2]
    (Figure 3).

    `value` is the barrier: the largest training loss for a in [0, 1] above the larger end's. Raises `ConfigError`
    for a number of points that misses the ends, a = 0 and a = 1.
    """
    if points < 4 or points % 3 != 1:
        raise ConfigError(
            f"a slice of {points} points on [-1, 2] misses an end of the path, a = 0 or a = 1: choose one more than a "
            "multiple of 3, such as 25"
        )
    data, unit = first.data, (points - 1) // 3  # steps from 0 to 1; divided last, so that both are met exactly
    curves: dict[str, list[float]] = {"alphas": ((np.arange(points) - unit) / unit).tolist()}
    train, test = (
        slice_1d(
            first.model, first.loss, (part.inputs[:examples], part.targets[:examples]),
            start=first.weights, end=second.weights, alphas=curves["alphas"], batch_size=BATCH,
            weight=first.data.task.weight,
            recalibrate=lambda model: calibrate_on(model, data.train.inputs),
        )
        for part in (data.train, data.test)
    )
    for split, result in (("train", train), ("test", test)):
        curves[f"{split}_loss"] = [float(v) for v in result.losses]
        if result.accuracies is not None:  # targets are classes
            curves[f"{split}_accuracy"] = [100 * float(v) for v in result.accuracies]
    status = "ok" if np.isfinite(train.barrier) else "nonfinite"  # a loss that is not, outside [0, 1], is in details
    return {**head(first, examples, None), "value": train.barrier, "status": status, "details": curves}


def plane(first: Subject, second: Subject, *, points: int, examples: int) -> dict[str, Any]:
    """Training loss (nats) at `points` x `points` weights around the triangle of start, `first` and `second`.

    `value` is the smallest loss on the grid, `details` hold the grid and the three points in its coordinates, in
    units of distance between weights (see `sharpness.plane_through`).
    """
    train = first.data.train
    start = network(first.config, first.data).state_dict()
    found = plane_through(*(flat_weights(first.model, w) for w in (first.weights, second.weights, start)))
    corners = found.values
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = 0.25 * (high - low)
    alphas, betas = (np.linspace(low[i] - margin[i], high[i] + margin[i], points) for i in (0, 1))
    grid = slice_2d(first.model, first.loss, subset(first, examples), center=first.weights, weight=first.data.task.weight,
                    directions=found.directions, alphas=alphas, betas=betas, batch_size=BATCH, bn_mode="recalibrate",
                    recalibrate=lambda model: calibrate_on(model, train.inputs))
    labels = (f"B {first.config.batch_size}", f"B {second.config.batch_size}", "start")
    facts = grid.to_dict()
    return {
        **head(first, examples, None),
        "value": float(np.nanmin(grid.losses)),
        "status": grid.status,
        "details": {
            "alphas": facts["alphas"],
            "betas": facts["betas"],
            "train_loss": facts["losses"],
            "points": [
                {"label": label, "x": float(x), "y": float(y)} for label, (x, y) in zip(labels, corners, strict=True)
            ],
        },
    }
