"""What ours is compared with: hand-written training loops in plain PyTorch, as fast as eager PyTorch allows.

The loop of `bare`: all tensors in memory, a gather by index of whole rows, channels-last convolutions, activations in
place, the fused optimizer, gradients dropped and not zeroed, micro-batches where they pay; no log, no checkpoint, no
evaluation, nothing converted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from engine import CLASSES, Block
from torch import Tensor, nn

from experiments.lab.declare.config import Model, Norm, RunConfig
from experiments.lab.training.data import Data

MICRO = 512
"""examples of a micro-batch, tried where a batch has more"""


def mlp(shape: tuple[int, int, int], config: RunConfig) -> nn.Sequential:
    features, layers = shape[0] * shape[1] * shape[2], []
    for _ in range(config.depth or 5):
        layers += [nn.Linear(features, config.width or 512), nn.ReLU(inplace=True)]
        features = config.width or 512
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(features, CLASSES))


def small_conv(shape: tuple[int, int, int]) -> nn.Sequential:
    side = -(-shape[1] // 8)
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 5, stride=2, padding=2), nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(32 * side * side, 64), nn.ReLU(inplace=True), nn.Linear(64, CLASSES),
    )


def keskar_c1(shape: tuple[int, int, int]) -> nn.Sequential:
    side = ((shape[1] - 1) // 2 - 1) // 2
    return nn.Sequential(
        nn.Conv2d(shape[0], 64, 5, padding=2), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 64, 5, padding=2), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(64 * side * side, 384), nn.BatchNorm1d(384), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(384, 192), nn.BatchNorm1d(192), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(192, CLASSES),
    )


def net(config: RunConfig, shape: tuple[int, int, int], weights: list[Tensor]) -> nn.Module:
    """The same network written by hand, with the same weights."""
    match config.model, config.norm:
        case Model.MLP, Norm.NONE:
            made: nn.Module = mlp(shape, config)
        case Model.SMALL_CONV, Norm.NONE:
            made = small_conv(shape).to(memory_format=torch.channels_last)
        case Model.KESKAR_C1, Norm.BATCH:
            made = keskar_c1(shape).to(memory_format=torch.channels_last)
        case _:
            raise ValueError(f"{config.model} with norm {config.norm} is not written by hand")
    with torch.no_grad():
        for own, weight in zip(made.parameters(), weights, strict=True):
            own.copy_(weight)
    return made


class Rows:
    """Inputs [N, C, H, W] as rows in memory order, so that a gather copies whole rows and keeps the layout."""

    def __init__(self, inputs: Tensor) -> None:
        self.last = inputs.is_contiguous(memory_format=torch.channels_last)
        stored = inputs.permute(0, 2, 3, 1) if self.last else inputs
        self.rows, self.shape = stored.reshape(len(inputs), -1), stored.shape[1:]

    def take(self, positions: Tensor) -> Tensor:
        batch = self.rows.index_select(0, positions).view(-1, *self.shape)
        return batch.permute(0, 3, 1, 2) if self.last else batch


def shuffled(n: int, batch_size: int, seed: int = 0) -> Iterator[Tensor]:
    """Whole batches of one permutation after another."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for positions in torch.randperm(n, generator=generator).split(batch_size):
            if len(positions) == batch_size:
                yield positions


def optimizer_of(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr, fused=True)


def update_all(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, batches: Iterator[Tensor], updates: int,
               size: int | None = None) -> None:
    """The bare loop; `size`: examples of a micro-batch."""
    inputs, targets = Rows(data.train.inputs), data.train.targets
    parameters, loss_of = list(model.parameters()), nn.functional.cross_entropy
    for _ in range(updates):
        positions = next(batches)
        for part in (positions,) if size is None else positions.split(size):
            loss = loss_of(model(inputs.take(part)), targets.index_select(0, part))
            if size is not None:
                loss = loss * (len(part) / len(positions))
            loss.backward()
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None


class Bare:
    """A run of the bare loop, continued block by block; large batches in micro-batches where those are faster."""

    def __init__(self, config: RunConfig, data: Data, weights: list[Tensor]) -> None:
        self.model, self.data = net(config, data.shape, weights).train(), data
        self.optimizer = optimizer_of(self.model, config.lr)
        self.batches = shuffled(len(data.train), config.batch_size)
        self.size: int | None = None
        if config.batch_size > MICRO and config.norm is Norm.NONE:
            times: dict[int | None, float] = {}
            for self.size in (None, MICRO, None, MICRO):
                times[self.size] = min(self.run(3).cpu, times.get(self.size, math.inf))
            self.size = min(times, key=lambda size: times[size])

    def run(self, updates: int) -> Block:
        cpu, wall = time.process_time(), time.perf_counter()
        update_all(self.model, self.optimizer, self.data, self.batches, updates, self.size)
        return Block(updates, time.process_time() - cpu, time.perf_counter() - wall)


@torch.no_grad()
def loss_on_all(model: nn.Module, data: Data) -> float:
    """Mean training loss as `train` reports it, except for the statistics of batch norm, which are torch's running ones."""
    model.eval()
    pairs = zip(data.train.inputs.split(1000), data.train.targets.split(1000), strict=True)
    total = sum(nn.functional.cross_entropy(model(x), y, reduction="sum").item() for x, y in pairs)
    return total / len(data.train)
