"""Small runs for the tests: a learnable toy data set, and a log that keeps everything in memory."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import torch

from experiments.lab.datasets import Dataset, Split
from experiments.lab.declare.config import Budget, Machine, Model, Norm, RunConfig
from experiments.lab.training.data import Data, prepare
from experiments.lab.training.loop import train
from experiments.lab.training.outcome import Outcome
from experiments.lab.training.state import Checkpoint, Tensors

SIZES = {Model.KESKAR_C1: 10, Model.KESKAR_C2: 32}
"""pixels per side that a network needs, where 8 are too few"""
NORMS: dict[Norm, dict[str, Any]] = {norm: {"norm": norm} for norm in Norm} | {Norm.GHOST: {"norm": Norm.GHOST, "norm_batch": 4}}
ONE_NORM = {Model.RESNET32: Norm.BATCH, Model.RESNET44: Norm.GROUP, Model.RESNET56: Norm.LAYER, Model.VIT: Norm.NONE}
"""deeper networks of blocks that resnet8 and resnet20 try with every norm, and the one that takes none"""
NETWORKS = [
    (model, norm)
    for model in Model
    if model not in (Model.QUADRATIC, Model.CAUSAL_TRANSFORMER, Model.WRN28_10)  # no images, twice; 36.5 million weights
    for norm in Norm if norm is ONE_NORM.get(model, norm) and (model, norm) != (Model.KESKAR_C2, Norm.LAYER)
]


def toy_config(**fields: Any) -> RunConfig:
    """A run of a few updates on `toy_data`."""
    defaults: dict[str, Any] = {"batch_size": 16, "lr": 0.05, "budget": Budget.STEPS}
    if fields.get("model", Model.MLP) is Model.MLP:
        defaults |= {"width": 16, "depth": 2}
    if fields.get("budget", Budget.STEPS) is Budget.STEPS:
        defaults |= {"steps": 8}
    return RunConfig(**(defaults | fields))


@functools.cache
def toy_images(size: int = 8, n: int = 72, classes: int = 4) -> Dataset:
    """Noisy copies of one random image per class, [n, 1, size, size]."""
    generator = np.random.default_rng(0)
    prototypes = generator.integers(0, 256, (classes, 1, size, size))

    def split(count: int) -> Split:
        labels = generator.integers(0, classes, count)
        noise = generator.normal(0, 60, (count, 1, size, size))
        return Split(np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8), labels)

    return Dataset("toy", split(n), split(24), classes, (0.5,), (0.3,), "0" * 64)


def toy_data(config: RunConfig, size: int = 8) -> Data:
    return prepare(config, Machine(), toy_images(size))


class Memory:
    """A log that is never interrupted and keeps rows, as text and parsed, and a checkpoint of every step."""

    def __init__(self) -> None:
        self.text = b""
        self.checkpoints: dict[int, Checkpoint] = {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def load(self, newest: int | None = None) -> Checkpoint | None:
        return None

    def row(self, row: dict[str, Any]) -> None:
        self.text += json.dumps(row, allow_nan=False).encode() + b"\n"

    def history_bytes(self) -> int:
        return len(self.text)

    def wants_checkpoint(self, step: int) -> bool:
        return True

    def save(self, checkpoint: Checkpoint) -> None:
        self.checkpoints[checkpoint.current.step] = checkpoint


def run(config: RunConfig, *, machine: Machine | None = None, size: int = 8,
        parent: Tensors | None = None) -> tuple[Outcome, Memory]:
    """Train `config` on the toy data in memory."""
    log = Memory()
    return train(config, machine or Machine(), toy_data(config, size), log, parent), log


def identical(first: Tensors, second: Tensors) -> bool:
    """Same names, same types, same bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def same_checkpoint(first: Checkpoint, second: Checkpoint) -> bool:
    """Weights, optimizer, losses since the last row, and the stop rule's memory, bitwise."""
    for part in ("current", "above", "below"):
        a, b = getattr(first, part), getattr(second, part)
        if (a is None) != (b is None) or (a is not None and not (a.step == b.step and identical(a.tensors, b.tensors))):
            return False
    return first.passes == second.passes and first.history_bytes == second.history_bytes
