"""A data set as the tensors of one run: normalised, split, on the device, with label noise and imbalance where asked for."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.lab.datasets import DataError, Dataset, Kind, Split, identity, in_files, load
from experiments.lab.declare.config import Augment, Loss, Machine, Model, Precision, RunConfig, TrainDraw, check_fits
from experiments.lab.declare.errors import ConfigError
from experiments.lab.training.augment import Crops
from experiments.lab.training.losses import CLASSIFICATION, Task, task_of
from experiments.lab.training.shuffle import LABELS, generator

DRAW_KEY = 20170424
"""changing it changes what every run of `train_draw` fixed is"""


@dataclass(frozen=True)
class Examples:
    """inputs [N, ...], images normalised; targets as `Kind` says."""

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
        """Inputs [..., B, ...], cropped and mirrored as `draws` [..., B, 3] say, and targets [..., B, ...]."""
        targets = self.targets[positions]
        if draws is not None:
            return self.crops.take(positions, draws), targets
        taken = self._rows.index_select(0, positions.flatten())
        if self.inputs.is_contiguous():
            return taken.view(*positions.shape, *self.inputs.shape[1:]), targets
        c, h, w = self.inputs.shape[1:]
        return taken.view(*positions.shape, h, w, c).movedim(-1, -3), targets


@dataclass(frozen=True)
class Data:
    """The examples of one run: training, validation (the end of the training split; may be empty) and test."""

    train: Examples
    validation: Examples
    test: Examples
    outputs: int
    task: Task = CLASSIFICATION

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.train.inputs.shape[1:])


def read(name: str, data_dir: Path | None) -> Dataset:
    """`datasets.load`, remembering the last: a worker trains many runs on the same examples. Files that have changed are read
    anew."""
    return _read(name, data_dir, identity(name, data_dir) if in_files(name) else None)


@functools.lru_cache(maxsize=1)
def _read(name: str, data_dir: Path | None, sha256: str | None) -> Dataset:
    return load(name, data_dir)


def dtype_of(config: RunConfig) -> torch.dtype:
    return torch.float64 if config.precision is Precision.FLOAT64 else torch.float32


def prepare(config: RunConfig, machine: Machine, dataset: Dataset) -> Data:
    """The tensors of `config`; raises `ConfigError` where the data set is too small for it, `DataError` where it is another."""
    if config.data_sha256 not in (None, dataset.sha256):
        raise DataError(f"{config.dataset} has changed: its SHA-256 is {dataset.sha256[:12]}..., and this run is of "
                        f"{config.data_sha256[:12]}...; bring the old files back, or run the study anew on the new ones.")
    available, apart = len(dataset.train.targets), dataset.validation
    n_train = check_fits(config, available, None if apart is None else len(apart.targets))
    _check_kind(config, dataset)
    # strided convolutions on CPU run a third faster on channels-last inputs
    images = dataset.train.inputs.dtype == np.uint8
    layout = torch.channels_last if images and config.model is not Model.MLP else torch.contiguous_format
    fixed = config.train_draw is TrainDraw.FIXED
    held_out = available - config.n_validation if apart is None else config.n_validation
    data = _tensors(dataset, n_train, held_out, fixed, machine.device, dtype_of(config), layout)
    task = task_of(config, dataset.kind)
    data = data if task.plain else replace(data, task=task)
    if config.label_noise or config.imbalance > 1:
        data = replace(data, train=_altered(data.train, config, data.outputs))
    return data if fixed or dataset.former_outputs is None else replace(data, outputs=dataset.former_outputs)


def _check_kind(config: RunConfig, dataset: Dataset) -> None:
    """Raise `ConfigError` where an option of the task has no meaning for these data."""
    if config.augment is Augment.CROP_FLIP and dataset.train.inputs.ndim != 4:
        raise ConfigError(f"augment crop-flip is for images, and inputs of {dataset.name} are "
                          f"{list(dataset.train.inputs.shape[1:])}; leave it out")
    if dataset.kind is not Kind.CLASSES and (config.label_noise or config.imbalance > 1):
        raise ConfigError(f"label_noise and imbalance are for classes, and targets of {dataset.name} are {dataset.kind}")
    if dataset.kind is Kind.NUMBERS and config.loss is Loss.CROSS_ENTROPY:
        raise ConfigError(f"targets of {dataset.name} are numbers, so loss cross_entropy has no meaning; take mse")
    if config.model is Model.CAUSAL_TRANSFORMER:
        if dataset.kind is not Kind.TOKENS or dataset.train.inputs.dtype != np.int64:
            raise ConfigError(f"model causal-transformer is for tokens, and {dataset.name} has none; take another model")
        return
    if isinstance(config.model, Model) and dataset.train.inputs.ndim != 4 and config.model is not Model.MLP:
        raise ConfigError(f"model {config.model} is for images, and inputs of {dataset.name} are "
                          f"{list(dataset.train.inputs.shape[1:])}; take mlp, or a model of your own")
    if config.model is Model.MLP and dataset.train.inputs.dtype == np.int64:
        raise ConfigError(f"model mlp is for numbers, and inputs of {dataset.name} are tokens; take "
                          "causal-transformer, or a model of your own")


def _altered(train: Examples, config: RunConfig, classes: int) -> Examples:
    """Training examples with `imbalance`, then `label_noise`: pure functions of their order, and the noise of the seed."""
    inputs, targets = train.inputs, train.targets
    if config.imbalance > 1:
        kept = _long_tail(targets.cpu().numpy(), config.imbalance, classes)
        if len(kept) < (largest := config.batch_size * config.batch_growth**2):
            raise ConfigError(f"imbalance {config.imbalance:g} leaves {len(kept)} training examples, fewer than a batch of "
                              f"{largest}; choose a smaller one")
        chosen = torch.from_numpy(kept).to(targets.device)
        layout = torch.contiguous_format if inputs.is_contiguous() else torch.channels_last
        inputs, targets = inputs[chosen].contiguous(memory_format=layout), targets[chosen]
    if config.label_noise:
        draw = generator(config.seed, LABELS, 0)
        wrong = torch.from_numpy(draw.permutation(len(targets))[: round(config.label_noise * len(targets))]).to(targets.device)
        shift = torch.from_numpy(draw.integers(1, classes, len(wrong))).to(targets.device)
        targets = targets.clone()
        targets[wrong] = (targets[wrong] + shift) % classes
    return Examples(inputs, targets)


def _long_tail(labels: np.ndarray, imbalance: float, classes: int) -> np.ndarray:
    """Positions, in order: of class k the first m r^(-k / (classes - 1)), rounded, with the largest m for which every class has
    enough. ConfigError where that is less than one example of the last class."""
    counts = np.bincount(labels, minlength=classes)
    shares = imbalance ** -(np.arange(classes) / (classes - 1))
    wanted = min(counts / shares) * shares
    if wanted[-1] < 1 - 1e-9:
        raise ConfigError(f"imbalance {imbalance:g} leaves no training example of class {classes - 1} where class 0 keeps "
                          f"{wanted[0]:.0f}; choose a smaller one, or more examples")
    wanted = np.round(wanted).astype(int)
    rank = np.empty(len(labels), int)
    for k in range(classes):
        rank[labels == k] = np.arange(counts[k])
    return np.flatnonzero(rank < wanted[labels])


@functools.lru_cache(maxsize=1)
def _tensors(dataset: Dataset, n_train: int, held_out: int, fixed: bool, device: str, dtype: torch.dtype,
             layout: torch.memory_format) -> Data:
    """Remembered like `read`: nothing writes to them. Validation examples: the training split's from `held_out` on, or the first
    `held_out` of those that the data keep for it."""
    mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (dataset.mean, dataset.std))

    def examples(split: Split, part: slice) -> Examples:
        taken = order_of(len(split.targets))[part] if fixed else part
        inputs, targets = split.inputs[taken], torch.from_numpy(split.targets[taken].copy()).to(device)
        if inputs.dtype == np.int64:
            return Examples(torch.from_numpy(inputs.copy()).to(device), targets)
        if dataset.kind is Kind.NUMBERS:
            targets = targets.to(dtype)
        if inputs.dtype != np.uint8:
            return Examples(torch.from_numpy(inputs.copy()).to(device, dtype), targets)
        pixels = ((torch.from_numpy(inputs.astype(np.float32)) / 255 - mean) / std).to(device, dtype)
        if not math.isfinite(pixels.sum().item()):
            raise DataError(
                f"{dataset.name} has inputs that are not finite once its mean {dataset.mean} is taken away and what is left is "
                f"divided by its standard deviation {dataset.std}; a channel's must be above 0, and pixels must be numbers."
            )
        return Examples(pixels.contiguous(memory_format=layout), targets)

    apart = dataset.validation
    return Data(
        train=examples(dataset.train, slice(n_train)),
        validation=examples(dataset.train, slice(held_out, None)) if apart is None else examples(apart, slice(held_out)),
        test=examples(dataset.test, slice(None)),
        outputs=dataset.outputs,
    )


def order_of(count: int) -> np.ndarray:
    """The order of `train_draw` fixed: random, and always the same for so many examples. Made from the generator's raw output,
    which no version of numpy changes."""
    return np.argsort(np.random.Philox(key=DRAW_KEY).random_raw(count), kind="stable")
