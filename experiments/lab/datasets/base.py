"""What every data set is once loaded, and the one error the loaders raise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class DataError(Exception):
    """A data file is missing, damaged or mislabelled: one sentence naming file, expectation and remedy."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] in 0..255 and their labels int64 [N] in 0..classes-1."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    mean, std: statistics of each channel over all training pixels, in units where a pixel is 0..1.
    sha256: hash of the decoded files, training files first; it does not depend on how they were compressed.
    """

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    former_classes: int | None = None
    """outputs that a user's data had before `classes` fitted their labels: of runs that were made so, in file order"""
