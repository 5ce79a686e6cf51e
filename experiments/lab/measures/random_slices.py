"""How wide a minimum looks along random directions (Li et al. 2018, section 4): raw ones of one length, or filter-normalised."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures.subject import BATCH, Subject, head, subset
from experiments.lab.training.evaluate import calibrate_on
from sharpness import flat_weights, random_direction, slice_2d


def slice_width(
    subject: Subject, *, examples: int, radius: float, directions: int, points: int, filters: bool, seed: int
) -> dict[str, Any]:
    """Mean over directions d and signs of L(w +- radius d) - L(w): rise of the training loss (nats).

    d is Gaussian over all weights and biases, of length 1 (radius: a distance between weights), or with `filters` Gaussian over
    the weights with every filter of the length of its own weights (radius: a share of it). `details` hold the mean curve at
    `points` places in [-radius, radius], the standard error is that of the directions. The same directions in networks of one
    shape. Raises `ConfigError` for an even number of points.
    """
    if points < 3 or points % 2 == 0 or directions < 2:
        raise ConfigError(f"a slice has {points} points along {directions} directions; choose an odd number and 2 or more")
    half = points // 2
    places = radius * np.arange(-half, half + 1) / half
    curves = []
    for k in range(directions):
        d, other = (random_direction(subject.model, seed + i, "filter" if filters else "none") for i in (k, directions + k))
        if not filters:
            d /= np.linalg.norm(d)
        found = slice_2d(subject.model, subject.loss, subset(subject, examples), center=subject.weights,
                         weight=subject.data.task.weight, directions=np.stack([d, other]), alphas=places, betas=[0.0],
                         batch_size=BATCH, bn_mode="recalibrate",
                         recalibrate=lambda model: calibrate_on(model, subject.data.train.inputs))
        curves.append(np.asarray(found.losses, np.float64).reshape(points))
    losses = np.stack(curves)
    rises = (losses[:, 0] + losses[:, -1]) / 2 - losses[:, half]
    finite = bool(np.isfinite(losses).all())
    return {
        **head(subject, examples, seed),
        "value": float(rises.mean()) if finite else None,
        "standard_error": float(rises.std(ddof=1) / np.sqrt(directions)) if finite else None,
        "status": "ok" if finite else "nonfinite",
        "details": {
            "places": places.tolist(),
            "train_loss": [float(x) if np.isfinite(x) else None for x in losses.mean(0)],
            "weight_norm": float(np.linalg.norm(flat_weights(subject.model, subject.weights))),
            "rises": [float(x) if np.isfinite(x) else None for x in rises],
        },
    }


def filter_slice_width(
    subject: Subject, *, examples: int, radius: float, directions: int, points: int, seed: int
) -> dict[str, Any]:
    """`slice_width` along filter-normalised directions."""
    return slice_width(subject, examples=examples, radius=radius, directions=directions, points=points, filters=True, seed=seed)
