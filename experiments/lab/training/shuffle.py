"""Which examples step t takes: [tB, (t+1)B) of the concatenated epoch permutations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHUFFLE, AUGMENT, NOISE, LABELS = 0, 1, 2, 3
"""What a counter-based stream is for; part of its key, so that no two purposes share numbers."""


def generator(seed: int, purpose: int, epoch: int) -> np.random.Generator:
    """The random stream of (seed, purpose, epoch): counter-based (Philox), so no other stream's use can move it."""
    return np.random.Generator(np.random.Philox(key=[seed, (purpose << 32) + epoch]))


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """[n] int64: the order of the training examples in `epoch`, a pure function of its arguments."""
    return generator(seed, SHUFFLE, epoch).permutation(n)


def noise(seed: int, step: int, batch_size: int, noise_batch: int) -> np.ndarray:
    """[B] float64 weights 1 + s xi of the examples of `step`, s^2 = B/b - 1: a pure function of its arguments.

    xi = (z - mean z) sqrt(B / (B - 1)), z iid N(0, 1): sum xi = 0 and E xi^2 = 1. With g_i the examples' gradients, the
    weighted mean has the plain mean as its expectation and, given the batch, the covariance (1/b - 1/B) C, C = sum (g_i - g)
    (g_i - g)^T / (B - 1). The batch's own sampling noise is Cov / B, so that together they are Cov / b, b drawn with
    replacement (without: Cov (1/B - 1/N) and Cov (1/b - 1/N)).
    """
    z = generator(seed, NOISE, step).standard_normal(batch_size)
    s = np.sqrt(batch_size / noise_batch - 1)
    return 1 + s * np.sqrt(batch_size / (batch_size - 1)) * (z - z.mean())


class Shuffle:
    """Positions of any step's examples. Nothing is dropped, and no batch is ragged.

    Caches the permutations of the last two epochs used and nothing else, so asking in any sequence gives the same answer.
    """

    def __init__(self, seed: int, n: int) -> None:
        self.seed, self.n = seed, n
        self._cache: dict[int, Tensor] = {}

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._cache:
            self._cache = {k: v for k, v in self._cache.items() if k == epoch - 1}
            self._cache[epoch] = torch.from_numpy(permutation(self.seed, epoch, self.n))
        return self._cache[epoch]

    def between(self, first: int, last: int) -> list[tuple[int, Tensor]]:
        """[first, last) of the concatenated permutations as (epoch, positions [b]) pieces, cut only where an epoch ends."""
        pieces = []
        while first < last:
            epoch, offset = divmod(first, self.n)
            taken = min(last - first, self.n - offset)
            pieces.append((epoch, self._epoch(epoch)[offset : offset + taken]))
            first += taken
        return pieces
