"""What every data set is once loaded, and the one error the loaders raise."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class DataError(Exception):
    """A data file is missing, damaged or mislabelled: one sentence naming file, expectation and remedy."""


class Kind(StrEnum):
    """What the targets are, and with them what is scored."""

    CLASSES = "classes"
    """int64 [N] in 0..outputs-1: accuracy in percent"""
    NUMBERS = "numbers"
    """floats [N] or [N, outputs]: R^2"""
    TOKENS = "tokens"
    """int64 [N, T] in 0..outputs-1, or -100 where nothing counts: accuracy in percent of those that count"""


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs [N, ...]: images uint8 [N, C, H, W] in 0..255, floats of any shape, or tokens int64 [N, T]; and targets (`Kind`)."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    outputs: how many classes, columns or tokens there are.
    mean, std: statistics of each channel over all training pixels, in units where a pixel is 0..1; of images alone.
    sha256: hash of the content, training examples first; it does not depend on how files were compressed.
    """

    name: str
    train: Split
    test: Split
    outputs: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    former_outputs: int | None = None
    """outputs that a user's data had before `outputs` fitted their labels: of runs that were made so, in file order"""
    kind: Kind = Kind.CLASSES
    validation: Split | None = None
    """examples that the data themselves keep for tuning; without any they are taken from `train`"""
