"""Dropout whose masks are a pure function of (seed, step, layer, position).

A mask is a hash of its counter, not a draw from a stream: micro-batches, devices, workers and resumes cannot change it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    """splitmix64's finaliser (Steele et al. 2014) on a Python integer."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _key(*counters: int) -> int:
    key = 0
    for counter in counters:
        key = _mix((key + _GOLDEN + counter) & _MASK64)
    return key


def uniform(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """[count] float32 in [0, 1): hashes of the positions first, ..., first + count - 1 under `key`, in 24 bits."""
    z = torch.arange(first, first + count, dtype=torch.int64, device=device) * _signed(_GOLDEN) + _signed(key)
    # int64 products wrap; the logical shift is an arithmetic one with the sign bits masked away
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return ((z >> 40) & 0xFFFFFF).float() / float(1 << 24)


class Dropout(nn.Module):
    """x * m / (1 - p) in training mode, m ~ Bernoulli(1 - p) from the counter; the identity in evaluation mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.layer = 0
        self.seed_and_step: tuple[int, int] = (0, 0)
        self.first_example = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        per_example = x[0].numel()
        u = uniform(_key(*self.seed_and_step, self.layer), self.first_example * per_example, x.numel(), x.device)
        return x * (u >= self.p).view(x.shape).to(x.dtype) / (1 - self.p)


def number_dropout_layers(model: nn.Module) -> None:
    for number, layer in enumerate(m for m in model.modules() if isinstance(m, Dropout)):
        layer.layer = number


def dropout_layers(model: nn.Module) -> list[Dropout]:
    return [m for m in model.modules() if isinstance(m, Dropout)]
