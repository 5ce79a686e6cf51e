"""Random directions in weight space, and their filter-wise normalisation (Li et al. 2018, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sharpness.problem.arguments import check_choice, check_model, check_seed, numbers_of
from sharpness.problem.parameters import Weights, flat_weights, select_parameters
from sharpness.problem.problem import Vector

Normalise = Literal["filter", "layer", "none"]
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def random_direction(
    model: nn.Module,
    seed: int,
    normalise: Normalise = "filter",
    *,
    weights: Weights | None = None,
    params: Sequence[str] | None = None,
) -> Vector:
    """A Gaussian direction d [n], independent N(0, 1) entries, normalised by `filter_normalise` ("filter" or
    "layer") or left as drawn ("none": biases and normalisation parameters move too, and the norm is about
    sqrt(n)).

    The draw depends on `seed` and n only, so that two networks of one architecture get the same one.

    Misleads when compared without normalisation: one step moves small weights relatively more.

    Args:
        model: whose parameters give the shapes.
        seed: of numpy's generator; the global ones are never used.
        normalise: "filter", "layer" or "none".
        weights: state dict whose norms count; None: the model's present weights.
        params: names of the parameters that move; None means all with `requires_grad`.

    Raises:
        ValueError: an unknown normalisation, or weights of another model.
    """
    check_model(model)
    check_seed(seed)
    check_choice("normalise", normalise, ("filter", "layer", "none"))
    n = len(flat_weights(model, weights, params=params))
    d = np.random.default_rng(seed).standard_normal(n)
    if normalise == "none":
        return d
    return filter_normalise(model, d, by=normalise, weights=weights, params=params)


def filter_normalise(
    model: nn.Module,
    direction: Vector,
    *,
    by: Normalise = "filter",
    weights: Weights | None = None,
    params: Sequence[str] | None = None,
) -> Vector:
    """d [n] with each filter scaled to the norm of the weights' filter: d_i <- d_i ||theta_i|| / ||d_i||.

    A filter is a slice along dimension 0 of a parameter of two or more dimensions: the weights into one
    output channel or unit (in transposed convolutions, those out of one input channel), or one row of an
    embedding. With `by="layer"` the whole parameter is one filter.

    Zero, so that they do not move: biases, parameters of normalisation layers, every other parameter of fewer
    than two dimensions (such as scales and class tokens [d]), and filters where theta_i or d_i is zero, never
    NaN.

    Scaling a ReLU network's layers by a and 1/a scales such a direction alike, and leaves a slice along it as
    it was. It misleads where filters are invariant to scale but their norms are not comparable, as with batch
    normalisation and different weight decay: weights shrink, and with them the step, while the function
    stays.

    Args:
        direction: [n], in the order of `flat_weights(model, params=params)`.
        weights, params: as in `random_direction`.

    Raises:
        ValueError: a direction of another shape or not finite, an unknown `by`, or weights of another model.
    """
    check_model(model)
    check_choice("by", by, ("filter", "layer"))
    theta = flat_weights(model, weights, params=params)
    d = numbers_of("direction", direction, f"a finite vector [{len(theta)}]")
    if d.shape != theta.shape or not np.isfinite(d).all():
        raise ValueError(f"direction has shape {d.shape}: pass a finite vector [{len(theta)}]")
    names, parameters = select_parameters(model, params)
    fixed = _fixed(model)
    result, offset = np.zeros_like(d), 0
    for name, parameter in zip(names, parameters, strict=True):
        part = slice(offset, offset + parameter.numel())
        offset += parameter.numel()
        bias = name.rpartition(".")[2].startswith("bias")
        if parameter.ndim >= 2 and parameter.numel() and not bias and id(parameter) not in fixed:
            rows = parameter.shape[0] if by == "filter" else 1
            result[part] = _rescaled(d[part].reshape(rows, -1), theta[part].reshape(rows, -1)).reshape(-1)
    return result


def _fixed(model: nn.Module) -> set[int]:
    """Parameters of normalisation layers: those of LayerNorm may have several dimensions."""
    return {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}


def _rescaled(d: Vector, theta: Vector) -> Vector:
    """Rows of d [rows, m] with the norms of the rows of theta."""
    has, wanted = _row_norms(d), _row_norms(theta)
    ratio = np.divide(wanted, has, out=np.zeros_like(has), where=has > 0)
    return d * ratio[:, None]


def _row_norms(rows: Vector) -> Vector:
    """Scaled by the largest entry first: squares of tiny weights would underflow to a norm of zero."""
    largest = np.abs(rows).max(axis=1)
    safe = np.where(largest > 0, largest, 1.0)
    return largest * np.linalg.norm(rows / safe[:, None], axis=1)
