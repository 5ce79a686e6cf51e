"""The training loss on the plane through two minimisers and the weights that both started from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.lab.measures.measure import Subject


def plane(first: Subject, second: Subject, *, points: int = 15, examples: int) -> dict[str, Any]:
    """Training loss (nats) at `points` x `points` weights around the triangle of start, `first` and `second`.

    `value` is the smallest loss on the grid, `details` hold the grid and the three points in its coordinates, in
    units of distance between weights (see `sharpness.plane_through`).
    """
    import numpy as np
    from torch.nn.functional import cross_entropy

    from experiments.lab import models
    from experiments.lab.measures.measure import BATCH, head
    from experiments.lab.training.evaluate import calibrate_on
    from sharpness import flat_weights, plane_through, slice_2d

    train = first.data.train
    start = models.build(first.config, first.data.shape, first.data.classes).state_dict()
    found = plane_through(*(flat_weights(first.model, w) for w in (first.weights, second.weights, start)))
    corners = found.values
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = 0.25 * (high - low)
    alphas, betas = (np.linspace(low[i] - margin[i], high[i] + margin[i], points) for i in (0, 1))
    grid = slice_2d(
        first.model, cross_entropy, (train.inputs[:examples], train.targets[:examples]), center=first.weights,
        directions=found.directions, alphas=alphas, betas=betas, batch_size=BATCH, bn_mode="recalibrate",
        recalibrate=lambda model: calibrate_on(model, train.inputs),
    )
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
