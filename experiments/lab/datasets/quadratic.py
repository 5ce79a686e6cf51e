"""noisy-quadratic: random signs, the examples of Zhang et al.'s noisy quadratic model (see `lab.models.quadratic`).

Made from a counter-based generator's raw output, which no version of numpy changes, and pinned by its hash.
"""

from __future__ import annotations

import hashlib

import numpy as np

from .base import DataError, Dataset, Split

COUNT, SIDE, TEST_COUNT = 16_384, 16, 64
KEY = 20190709
SHA256 = "a0e47c9589f58a2cfb5ac57d81a4217e0dc1d2a9c6d25565aad14688f1978e80"


def signs(count: int, columns: int, key: int) -> np.ndarray:
    """[count, columns] uint8, 0 for -1 and 255 for +1; each column is a random arrangement of equally many of both."""
    raw = np.random.Philox(key=key).random_raw(count * columns).reshape(count, columns)
    median = np.partition(raw, count // 2, axis=0)[count // 2]
    return np.where(raw < median, np.uint8(0), np.uint8(255))


def load_noisy_quadratic() -> Dataset:
    """16,384 training and 64 test examples [N, 1, 16, 16] of pixels 0 and 255, all of class 0; normalised they are signs.

    Over the training examples each of the 256 signs has mean 0 exactly. DataError unless exactly the pinned ones.
    """
    splits = []
    for count, key in ((COUNT, KEY), (TEST_COUNT, KEY + 1)):
        images = signs(count, SIDE * SIDE, key).reshape(count, 1, SIDE, SIDE)
        splits.append(Split(images, np.zeros(count, np.int64)))
    digest = hashlib.sha256(b"".join(split.inputs.tobytes() for split in splits)).hexdigest()
    if digest != SHA256:
        raise DataError(f"noisy-quadratic came out with SHA-256 {digest}, expected {SHA256}; take another version of numpy.")
    return Dataset("noisy-quadratic", splits[0], splits[1], 2, (0.5,), (0.5,), digest)
