"""Make the embedded data set from Fashion-MNIST's four original files.

usage: python -m experiments.lab.datasets.make_fashion_mini FOLDER

FOLDER holds train-images-idx3-ubyte.gz and its three siblings (Debian's package dataset-fashion-mnist puts
them into /usr/share/datasets/fashion-mnist). Takes about 15 seconds.
"""

from __future__ import annotations

import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np

from . import embedded, idx, mnist
from .base import DataError, Split

SEED = 20170825
PER_CLASS = embedded.TRAIN_COUNT // embedded.CLASSES


def _rank(purpose: str, index: int) -> bytes:
    """A pseudo-random sort key; a hash, because no library version can ever change it."""
    return hashlib.sha256(f"{SEED}/{purpose}/{index}".encode()).digest()


def choose(labels: np.ndarray) -> np.ndarray:
    """Indices int64 [10,000] of the chosen training examples, given all labels [60,000].

    Block k of ten holds the k-th chosen example of each class, in random order.
    """
    chosen = np.array([
        sorted(np.flatnonzero(labels == label).tolist(), key=lambda index: _rank("choose", index))[:PER_CLASS]
        for label in range(embedded.CLASSES)
    ])
    return np.array([sorted(block, key=lambda index: _rank("order", index)) for block in chosen.T.tolist()]).ravel()


def make(source: Path, out: Path) -> str:
    """Write the four .xz files to `out`; returns the SHA-256 of their content.

    DataError when a file in `source` is missing or wrong.
    """
    full = mnist.load_idx(mnist.FASHION_MNIST, source, download=False)
    order = choose(full.train.targets)
    train = Split(full.train.inputs[order], full.train.targets[order])
    contents = [encode(part)
                for split in (train, full.test)
                for encode, part in ((idx.encode_images, split.inputs), (idx.encode_labels, split.targets))]
    out.mkdir(parents=True, exist_ok=True)
    for (name, _), content in zip(embedded.FILES, contents, strict=True):
        (out / name).write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    pixels = train.inputs / 255
    print(f"mean {pixels.mean():.4f}, standard deviation {pixels.std():.4f}", file=sys.stderr)
    return hashlib.sha256(b"".join(contents)).hexdigest()


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status: 1 for a wrong source or an unexpected result, 2 for usage."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        digest = make(Path(arguments[0]), embedded.FOLDER)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    print(digest)
    return 0 if digest == embedded.SHA256 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
