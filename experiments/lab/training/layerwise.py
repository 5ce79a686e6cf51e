"""Optimizers whose step in each weight tensor has a length relative to that tensor: LARS and LAMB.

Tensors of one dimension (biases, the scale and shift of normalisation layers) are not adapted: their ratio is 1. The
papers say nothing of them; the authors' implementation of LAMB and the common ones of LARS leave them out so. Weight
decay acts on all tensors alike, as with this project's other optimizers. A ratio is 1 too where a norm in it is 0.

With `axis` 1 every tensor has a leading axis of members, hyper-parameters are [M], and every member has its own norms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.lab.training.gradient import norms

Number = float | Tensor
"""a float, a tensor 0-d, or [M] with one value per member"""


def lars_(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], buffers: Sequence[Tensor | None], *, lr: Number, trust: float,
    momentum: Number, decay: Number, axis: int = 0,
) -> None:
    """One update in place: v <- m v + lr r (g + d w), w <- w - v, r = trust ||w|| / (||g|| + d ||w||).

    You, Gitman & Ginsburg 2017, Algorithm 1 and eq. 6, with m the momentum and d the weight decay: the learning rate is
    inside of v, so that a change of it reaches no earlier gradient. Without buffers m is 0.
    """
    for w, g, v in zip(parameters, gradients, buffers, strict=True):
        rate = lr
        if w.dim() - axis > 1:
            length, slope = norms([w], axis), norms([g], axis)
            rate = lr * torch.where((length > 0) & (slope > 0), trust * length / (slope + decay * length), 1.0)
        step = _each(rate, w) * (g + _each(decay, w) * w)
        w.sub_(step if v is None else v.mul_(_each(momentum, w)).add_(step))


def lamb_(parameters: Sequence[Tensor], gradients: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], *,
          count: Tensor, lr: Number, beta1: Number, beta2: Number, eps: Number, decay: Number, axis: int = 0) -> None:
    """One update in place, the `count`-th: w <- w - lr (||w|| / ||u||) u, u = m' / (sqrt(v') + eps) + d w.

    m' and v' are Adam's moments, corrected for their bias; d is the weight decay (You et al. 2020, Algorithm 2, phi the
    identity). `count` is 0-d.
    """
    bias1, bias2 = 1 - beta1 ** count.double(), 1 - beta2 ** count.double()
    for w, g, m, v in zip(parameters, gradients, first, second, strict=True):
        m.mul_(_each(beta1, w)).add_(_each(1 - beta1, w) * g)
        v.mul_(_each(beta2, w)).add_(_each(1 - beta2, w) * g.square())
        u = m / _each(bias1, w) / ((v / _each(bias2, w)).sqrt() + _each(eps, w)) + _each(decay, w) * w
        rate = lr
        if w.dim() - axis > 1:
            length, step = norms([w], axis), norms([u], axis)
            rate = lr * torch.where((length > 0) & (step > 0), length / step, 1.0)
        w.sub_(_each(rate, w) * u)


def _each(value: Number, like: Tensor) -> Number:
    """`value` so that it meets `like`'s own member, in its type."""
    if not isinstance(value, Tensor):
        return value
    return value.to(like.dtype).view(*value.shape, *[1] * (like.dim() - value.dim()))
