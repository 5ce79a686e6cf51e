"""Ours, as the benchmarks of training use it: every import of the engine stands here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.lab import models
from experiments.lab.datasets import Dataset, Split
from experiments.lab.declare.config import Augment, Budget, Machine, Model, Norm, Optimizer, RunConfig
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.sweep.process import keep_freed_memory
from experiments.lab.training.data import Data, Examples, prepare, read
from experiments.lab.training.engine import Engine, SingleEngine
from experiments.lab.training.initial import initial_model, set_arithmetic
from experiments.lab.training.loop import train
from experiments.lab.training.state import Checkpoint

SHAPE, CLASSES = (1, 28, 28), 10
WARM = 60
"""first updates of a run that are not timed: ours records what it repeats after 30"""


@dataclass(frozen=True)
class Case:
    """A network and what it is trained on; Adam at 1e-3 throughout."""

    name: str
    model: Model
    batch_sizes: tuple[int, ...]
    n: int = 5000
    norm: Norm = Norm.NONE
    width: int | None = None
    depth: int | None = None

    def config(self, batch_size: int, steps: int) -> RunConfig:
        return RunConfig(model=self.model, norm=self.norm, width=self.width, depth=self.depth, n_train=self.n,
                         batch_size=batch_size, optimizer=Optimizer.ADAM, lr=1e-3, budget=Budget.STEPS, steps=steps)


MLP = Case("mlp 2 x 128", Model.MLP, (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 5000), width=128, depth=2)
CONV = Case("small-conv", Model.SMALL_CONV, MLP.batch_sizes)
C1 = Case("keskar-c1, batch norm", Model.KESKAR_C1, (8, 64, 512), n=512, norm=Norm.BATCH)


@dataclass(frozen=True)
class Block:
    """`updates` updates: processor and wall seconds."""

    updates: int
    cpu: float
    wall: float


class Stopwatch:
    """A log that keeps nothing, times blocks of `each` updates after `WARM` and does something else between them.

    `between()` runs after the first, third, ... block. Points of the training curves are not counted; they lie between a row
    of kind train and one of kind eval.
    """

    def __init__(self, each: int, between: Callable[[], None]) -> None:
        self.each, self.between = each, between
        self.blocks: list[Block] = []
        self._since = self._paused = (0.0, 0.0)

    def load(self, newest: int | None = None) -> Checkpoint | None:
        return None

    def wants_checkpoint(self, step: int) -> bool:
        if step >= WARM and (step - WARM) % self.each == 0:
            self._boundary(step)
        return False

    def row(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            self._paused = _now()
        elif row["kind"] == "eval":
            now = _now()
            self._since = (self._since[0] + now[0] - self._paused[0], self._since[1] + now[1] - self._paused[1])

    def finish(self) -> None:
        """The last block ends with the last row of kind train."""
        self._close(self._paused)

    def history_bytes(self) -> int:
        return 0

    def save(self, checkpoint: Checkpoint) -> None:
        raise AssertionError("nobody asked for a checkpoint")

    def _boundary(self, step: int) -> None:
        if step > WARM:
            self._close(_now())
            if len(self.blocks) % 2:
                self.between()
        self._since = _now()

    def _close(self, now: tuple[float, float]) -> None:
        self.blocks.append(Block(self.each, now[0] - self._since[0], now[1] - self._since[1]))


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def as_a_worker() -> None:
    """Set up the process as ours are, which serves whatever else is measured in it too."""
    torch.set_num_threads(1)
    keep_freed_memory()


def data_of(config: RunConfig) -> Data:
    """With few test examples: evaluation is not what is timed."""
    data = prepare(config, Machine(), read(config.dataset, None))
    return replace(data, test=Examples(data.test.inputs[:100], data.test.targets[:100]))


def initial_weights(config: RunConfig, shape: tuple[int, int, int] = SHAPE) -> list[Tensor]:
    return [p.detach() for p in models.build(config, shape, CLASSES).parameters()]


def interleaved(
    config: RunConfig, data: Data, each: int, rounds: int, other: Callable[[], Block]
) -> tuple[list[Block], list[Block], float]:
    """One run of ours, stopped after every other block of `each` updates to let `other` run twice: ours, other, other, ours.

    Returns the blocks of ours, those of the other, and the mean training loss (nats) that ours ends with.
    """
    others: list[Block] = []
    watch = Stopwatch(each, lambda: others.extend([other(), other()]))
    steps = WARM + 2 * rounds * each
    values = train(config.replace(steps=steps), Machine(), data, watch).values
    watch.finish()
    return watch.blocks, others, values["train_loss"]


def loss_after(config: RunConfig, data: Data) -> float:
    """The mean training loss (nats) of a run."""
    return train(config, Machine(), data, Stopwatch(config.steps or 1, lambda: None)).values["train_loss"]


def program(configs: Sequence[RunConfig], machine: Machine, data: Data, nets: Sequence[nn.Module] | None = None) -> Engine:
    """The runs as one program (alone where there is one), without a log or a budget; `advance(step)` updates up to `step`.

    `nets` replaces the networks that the configurations name.
    """
    set_arithmetic(configs[0])
    made = list(nets or [initial_model(config, machine, data) for config in configs])
    return fused_engine(configs, machine, data, made)


def noise_images(n: int) -> Dataset:
    """Images [n, 3, 32, 32] of noise: input pipelines do not look at what they carry."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (n, 3, 32, 32)).astype(np.uint8), generator.integers(0, 10, n)
    half = (0.5, 0.5, 0.5)
    return Dataset("noise", Split(images, labels), Split(images[:100], labels[:100]), CLASSES, half, half, "0" * 64)


def learnable_images(n: int, side: int) -> Dataset:
    """Noisy copies of ten images, [n, 3, side, side]: for machines without CIFAR-10."""
    generator = np.random.default_rng(0)
    prototypes = generator.integers(0, 256, (CLASSES, 3, side, side), dtype=np.int16)

    def split(count: int) -> Split:
        labels = generator.integers(0, CLASSES, count)
        images = prototypes[labels] + generator.integers(-120, 121, (count, 3, side, side), dtype=np.int16)
        return Split(np.clip(images, 0, 255).astype(np.uint8), labels)

    half = (0.5, 0.5, 0.5)
    return Dataset("made up", split(n), split(max(100, n // 5)), CLASSES, half, half, "0" * 64)


def augmented(batch_size: int) -> RunConfig:
    """small-conv on crops and flips of `noise_images`."""
    return CONV.config(batch_size, 1).replace(augment=Augment.CROP_FLIP, n_train=None)


def noise_data(config: RunConfig, dataset: Dataset) -> Data:
    return prepare(config, Machine(), dataset)


def feed(config: RunConfig, data: Data, updates: int) -> Block:
    """Our input pipeline alone: order, draws and batches of `updates` updates, after as many that are not counted."""
    moving = SingleEngine(config, Machine(), data, models.build(config, data.shape, CLASSES))
    total, cpu, wall = torch.zeros(()), 0.0, 0.0
    for first in (0, updates):
        cpu, wall = time.process_time(), time.perf_counter()
        for step in range(first, first + updates, moving.block_steps):
            block = moving.streams[0].block(step, min(moving.block_steps, first + updates - step))
            assert block.draws is not None
            for positions, draws in zip(block.positions.unbind(), block.draws.unbind(), strict=True):
                total += data.train.at(positions, draws)[0][0, 0, 0, 0]
    return Block(updates, time.process_time() - cpu, time.perf_counter() - wall)
