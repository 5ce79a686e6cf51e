"""Input as most image training reads it: transforms of one PIL image at a time, a Dataset, a DataLoader.

What RandomCrop(32, padding=4), RandomHorizontalFlip(), ToTensor(), Normalize(mean, std) of torchvision do to each image,
random draws, copies and the check of std included, its type checks not. torchvision itself has no build for every machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from engine import Block
from loops import net, optimizer_of
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.lab.datasets import Dataset
from experiments.lab.declare.config import RunConfig

PADDING = 4


def crop(image: Image.Image, top: int, left: int) -> Image.Image:
    """The part of the padded image that begins at (top, left)."""
    width, height = image.size
    return ImageOps.expand(image, border=PADDING, fill=0).crop((left, top, left + width, top + height))


def flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def to_tensor(image: Image.Image) -> Tensor:
    """[H, W, C] uint8 to [C, H, W] float32 in 0..1."""
    pixels = torch.from_numpy(np.array(image, copy=True))
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    centre, scale = (torch.as_tensor(values, dtype=image.dtype) for values in (mean, std))
    if (scale == 0).any():
        raise ValueError("a standard deviation is 0")
    return image.clone().sub_(centre.view(-1, 1, 1)).div_(scale.view(-1, 1, 1))


class RandomCrop(nn.Module):
    def forward(self, image: Image.Image) -> Image.Image:
        top, left = (int(torch.randint(0, 2 * PADDING + 1, (1,)).item()) for _ in range(2))
        return crop(image, top, left)


class RandomFlip(nn.Module):
    def forward(self, image: Image.Image) -> Image.Image:
        return flip(image) if torch.rand(1) < 0.5 else image


class Normalise(nn.Module):
    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.mean, self.std = dataset.mean, dataset.std

    def forward(self, image: Tensor) -> Tensor:
        return normalise(image, self.mean, self.std)


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One transformed image and its label an index."""

    def __init__(self, dataset: Dataset) -> None:
        self.images = np.ascontiguousarray(dataset.train.inputs.transpose(0, 2, 3, 1))
        self.labels = dataset.train.targets.tolist()
        self.transforms: list[Any] = [RandomCrop(), RandomFlip(), to_tensor, Normalise(dataset)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Any = Image.fromarray(self.images[index])
        for transform in self.transforms:
            image = transform(image)
        return image, self.labels[index]


def loader(dataset: Dataset, batch_size: int, workers: int) -> DataLoader[Any]:
    return DataLoader(
        Images(dataset), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )


def feed(batches: DataLoader[Any], epochs: int) -> Block:
    """The batches of `epochs` epochs and nothing else, after an epoch that is not counted; workers' seconds are wall only."""
    count, total = 0, torch.zeros(())
    for _ in batches:
        pass
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(epochs):
        for inputs, _labels in batches:
            total += inputs[0, 0, 0, 0]
            count += 1
    return Block(count, time.process_time() - cpu, time.perf_counter() - wall)


class Training:
    """The same network trained from that loader, continued epoch by epoch."""

    def __init__(self, config: RunConfig, weights: list[Tensor], batches: DataLoader[Any]) -> None:
        self.model, self.batches = net(config, (3, 32, 32), weights).train(), batches
        self.optimizer = optimizer_of(self.model, config.lr)

    def epoch(self) -> Block:
        count, cpu, wall = 0, time.process_time(), time.perf_counter()
        for inputs, labels in self.batches:
            loss = nn.functional.cross_entropy(self.model(inputs.to(memory_format=torch.channels_last)), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            count += 1
        return Block(count, time.process_time() - cpu, time.perf_counter() - wall)
