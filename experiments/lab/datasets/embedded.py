"""fashion-mini: the data set that lies in the repository, so that nothing needs a download."""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import idx
from .base import DataError, Dataset
from .compressed import read_exactly

FOLDER = Path(__file__).parent / "fashion_mini"
TRAIN_COUNT = 10_000
TEST_COUNT = 10_000
CLASSES = 10
# File, decompressed size: in the order in which they are hashed.
FILES = (
    ("train-images-idx3-ubyte.xz", idx.images_size(TRAIN_COUNT)),
    ("train-labels-idx1-ubyte.xz", idx.labels_size(TRAIN_COUNT)),
    ("t10k-images-idx3-ubyte.xz", idx.images_size(TEST_COUNT)),
    ("t10k-labels-idx1-ubyte.xz", idx.labels_size(TEST_COUNT)),
)
SHA256 = "b3f2c23daf36eff3550b71a16a36beb7122ddfc2aa997cf369f685535bc3b844"
MEAN = (0.2870,)
STD = (0.3542,)
REMEDY = "restore it with `git checkout -- experiments/lab/datasets/fashion_mini`"


def load_fashion_mini(folder: Path = FOLDER) -> Dataset:
    """10,000 training and 10,000 test images [N, 1, 28, 28]; DataError unless exactly the pinned ones.

    Every block of ten training examples holds each class once, so any prefix of 10 k examples is balanced.
    """
    files = [(folder / name, read_exactly(folder / name, size, "xz", REMEDY)) for name, size in FILES]
    digest = hashlib.sha256(b"".join(content for _, content in files)).hexdigest()
    if digest != SHA256:
        raise DataError(f"{folder} was altered: its content has SHA-256 {digest}, expected {SHA256}; {REMEDY}.")
    train = idx.decode_split(files[0], files[1], TRAIN_COUNT, CLASSES, REMEDY)
    test = idx.decode_split(files[2], files[3], TEST_COUNT, CLASSES, REMEDY)
    return Dataset("fashion-mini", train, test, CLASSES, MEAN, STD, digest)
