"""Dropout whose masks are a pure function of (seed, step, layer, position).

A mask is a hash of its counter, not a draw from a stream: micro-batches, devices, workers and resumes cannot change it.
The counter is a tensor, so that updates can be recorded and replayed, and members of an ensemble have their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift right: an arithmetic one with the sign bits masked away."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele et al. 2014) on int64, whose products wrap."""
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def key(counter: Tensor, layer: int) -> Tensor:
    """0-d int64: a hash of counter [3] (seed, step, first example; the last does not enter) and the layer's number."""
    found = _mix(counter[0] + _GOLDEN)
    found = _mix(found + _GOLDEN + counter[1])
    return _mix(found + _GOLDEN + layer)


def uniform(key: Tensor, first: Tensor, count: int) -> Tensor:
    """[count] float32 in [0, 1): hashes of the positions first, ..., first + count - 1 under `key`, in 24 bits."""
    z = (first + torch.arange(count, dtype=torch.int64, device=key.device)) * _GOLDEN + key
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return _shift(z, 40).float() / float(1 << 24)


class Dropout(nn.Module):
    """x * m / (1 - p) in training mode, m ~ Bernoulli(1 - p) from the counter; the identity in evaluation mode.

    `counter` is [3] int64: seed, step, and the number within its batch of the first example of this pass.
    """

    counter: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.layer = 0
        self.register_buffer("counter", torch.zeros(3, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        per_example = x.shape[1:].numel()
        u = uniform(key(self.counter, self.layer), self.counter[2] * per_example, x.shape.numel())
        return x * (u >= self.p).view(x.shape).to(x.dtype) / (1 - self.p)


def number_dropout_layers(model: nn.Module) -> None:
    for number, layer in enumerate(m for m in model.modules() if isinstance(m, Dropout)):
        layer.layer = number


def counter_names(model: nn.Module) -> list[str]:
    """Names of the counters of a network's dropout layers that drop anything."""
    return [f"{name}.counter" for name, m in model.named_modules() if isinstance(m, Dropout) and m.p > 0]
