"""A data set as the tensors of one run: normalised, split, on the device."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.lab.datasets import DataError, Dataset, Split, load
from experiments.lab.declare.config import Machine, Model, Precision, RunConfig, TrainDraw, check_fits
from experiments.lab.training.augment import Crops

DRAW_KEY = 20170424
"""changing it changes what every run of `train_draw` fixed is"""


@dataclass(frozen=True)
class Examples:
    """inputs [N, C, H, W], normalised; targets [N] int64."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @functools.cached_property
    def crops(self) -> Crops:
        """For `at` with draws; made when first asked for."""
        return Crops(self.inputs)

    @functools.cached_property
    def _rows(self) -> Tensor:
        """Each input as one row in its memory order: a gather of whole rows is faster than one by index, and keeps it."""
        stored = self.inputs if self.inputs.is_contiguous() else self.inputs.permute(0, 2, 3, 1)
        return stored.reshape(len(self), -1)

    def at(self, positions: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs [..., B, C, H, W], cropped and mirrored as `draws` [..., B, 3] say, and targets [..., B]."""
        targets = self.targets[positions]
        if draws is not None:
            return self.crops.take(positions, draws), targets
        taken = self._rows.index_select(0, positions.flatten())
        c, h, w = self.inputs.shape[1:]
        if self.inputs.is_contiguous():
            return taken.view(*positions.shape, c, h, w), targets
        return taken.view(*positions.shape, h, w, c).movedim(-1, -3), targets


@dataclass(frozen=True)
class Data:
    """The examples of one run: training, validation (the end of the training split; may be empty) and test."""

    train: Examples
    validation: Examples
    test: Examples
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.train.inputs.shape[1:]
        return c, h, w


@functools.lru_cache(maxsize=1)
def read(name: str, data_dir: Path | None) -> Dataset:
    """`datasets.load`, remembering the last: a worker trains many runs on the same examples."""
    return load(name, data_dir)


def dtype_of(config: RunConfig) -> torch.dtype:
    return torch.float64 if config.precision is Precision.FLOAT64 else torch.float32


def prepare(config: RunConfig, machine: Machine, dataset: Dataset) -> Data:
    """The tensors of `config`; raises `ConfigError` where the data set is too small for it, `DataError` where it is another."""
    if config.data_sha256 not in (None, dataset.sha256):
        raise DataError(f"{config.dataset} has changed: its SHA-256 is {dataset.sha256[:12]}..., and this run is of "
                        f"{config.data_sha256[:12]}...; bring the old files back, or run the study anew on the new ones.")
    available = len(dataset.train.labels)
    n_train = check_fits(config, available)
    # strided convolutions on CPU run a third faster on channels-last inputs
    layout = torch.contiguous_format if config.model is Model.MLP else torch.channels_last
    fixed = config.train_draw is TrainDraw.FIXED
    data = _tensors(dataset, n_train, available - config.n_validation, fixed, machine.device, dtype_of(config), layout)
    return data if fixed or dataset.former_classes is None else replace(data, classes=dataset.former_classes)


@functools.lru_cache(maxsize=1)
def _tensors(dataset: Dataset, n_train: int, held_out: int, fixed: bool, device: str, dtype: torch.dtype,
             layout: torch.memory_format) -> Data:
    """Remembered like `read`: nothing writes to them."""
    mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (dataset.mean, dataset.std))

    def examples(split: Split, part: slice) -> Examples:
        taken = order_of(len(split.labels))[part] if fixed else part
        inputs = ((torch.from_numpy(split.images[taken].astype(np.float32)) / 255 - mean) / std).to(device, dtype)
        if not math.isfinite(inputs.sum().item()):
            raise DataError(
                f"{dataset.name} has inputs that are not finite once its mean {dataset.mean} is taken away and what is left is "
                f"divided by its standard deviation {dataset.std}; a channel's must be above 0, and pixels must be numbers."
            )
        return Examples(inputs.contiguous(memory_format=layout), torch.from_numpy(split.labels[taken].copy()).to(device))

    return Data(
        train=examples(dataset.train, slice(n_train)),
        validation=examples(dataset.train, slice(held_out, None)),
        test=examples(dataset.test, slice(None)),
        classes=dataset.classes,
    )


def order_of(count: int) -> np.ndarray:
    """The order of `train_draw` fixed: random, and always the same for so many examples. Made from the generator's raw output,
    which no version of numpy changes."""
    return np.argsort(np.random.Philox(key=DRAW_KEY).random_raw(count), kind="stable")
