"""teacher: numbers that a fixed random network gives, for a student to learn; a regression without noise, so R^2 can reach 1.

Inputs and weights are odd integers in -255..255, made from a counter-based generator's raw output, and the network is computed
in integers: exact on every machine. Pinned by its hash.
"""

from __future__ import annotations

import hashlib

import numpy as np

from .base import DataError, Dataset, Kind, Split

COUNT, TEST_COUNT = 10_000, 5_000
INPUTS, HIDDEN = 32, 32
KEY = 20261128
SCALE = 2.0**26
"""near the standard deviation of the answers"""
SHA256 = "ef4a26c265da8c8c5659608b48dd42d313190f00888807d230135246b3e7be82"


def odd(rows: int, columns: int, key: int) -> np.ndarray:
    """[rows, columns] int64, each of the 256 odd numbers in -255..255 equally likely."""
    raw = np.random.Philox(key=key).random_raw(rows * columns // 8)
    return 2 * raw.astype("<u8").view(np.uint8).astype(np.int64).reshape(rows, columns) - 255


def answers(inputs: np.ndarray) -> np.ndarray:
    """[N] int64: sum_j v_j relu(u_j . x), of 32 hidden units."""
    first, second = odd(INPUTS, HIDDEN, KEY + 2), odd(HIDDEN, 1, KEY + 3)
    return (np.maximum(inputs @ first, 0) @ second)[:, 0]


def load_teacher() -> Dataset:
    """10,000 training and 5,000 test examples: 32 numbers in -2..2 each, and one of mean 0 and about unit variance to be told.

    Inputs are the integers over 128, targets less their training mean over 2^26. DataError unless exactly the pinned
    ones.
    """
    inputs = [odd(count, INPUTS, key) for count, key in ((COUNT, KEY), (TEST_COUNT, KEY + 1))]
    targets = [answers(x) for x in inputs]
    mean = int(targets[0].sum()) // COUNT
    splits = [Split((x / 128).astype(np.float32), ((y - mean) / SCALE).astype(np.float32))
              for x, y in zip(inputs, targets, strict=True)]
    digest = hashlib.sha256(b"".join(s.inputs.tobytes() + s.targets.tobytes() for s in splits)).hexdigest()
    if digest != SHA256:
        raise DataError(f"teacher came out with SHA-256 {digest}, expected {SHA256}; take another version of numpy.")
    return Dataset("teacher", splits[0], splits[1], 1, (), (), digest, kind=Kind.NUMBERS)
