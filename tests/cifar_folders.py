"""Small folders in CIFAR's layouts for the tests."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

Examples = tuple[np.ndarray, np.ndarray]
"""pixels uint8 [N, 3072] and labels [N]"""


def two_kinds(count: int, seed: int, *, sort: bool = False) -> Examples:
    """Dark images of class 0 and bright ones of class 1, as many of each."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % 2)
    pixels = generator.normal(90 + 60 * labels[:, None], 40, (count, 3072)).clip(0, 255).astype(np.uint8)
    order = np.argsort(labels, kind="stable") if sort else np.arange(count)
    return pixels[order], labels[order]


def records(examples: Examples, coarse: int | None = None) -> bytes:
    pixels, labels = examples
    columns = [labels] if coarse is None else [np.full(len(labels), coarse), labels]
    return np.concatenate([*(column[:, None] for column in columns), pixels], 1).astype(np.uint8).tobytes()


def write_binary(folder: Path, train: Examples, test: Examples) -> Path:
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(records(train))
    (folder / "test_batch.bin").write_bytes(records(test))
    return folder


def batch(examples: Examples, key: type = bytes) -> dict[Any, Any]:
    """As the official pickles have it; `key` is the type of its names."""
    pixels, labels = examples
    names = [f"{k}.png" for k in range(len(labels))]
    named = {"batch_label": "batch", "labels": labels.tolist(), "data": pixels, "filenames": names}
    return {name.encode() if key is bytes else name: value for name, value in named.items()}


def write_pickled(folder: Path, train: Examples, test: Examples, protocol: int = 2, key: type = bytes) -> Path:
    folder.mkdir(parents=True)
    for name, examples in (("data_batch_1", train), ("test_batch", test)):
        (folder / name).write_bytes(pickle.dumps(batch(examples, key), protocol))
    return folder
