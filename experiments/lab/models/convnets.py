"""Convolutional networks: a small one for minutes on a CPU, and Keskar et al. 2017's C1 (C3) and C2 (C4), Appendix A."""

from __future__ import annotations

import torch
from torch import nn

from experiments.lab.declare.errors import ConfigError
from experiments.lab.models.dropout import Dropout
from experiments.lab.models.norms import Normalizer


def _features(body: nn.Sequential, shape: tuple[int, int, int]) -> int:
    """Outputs of `body` an example, by passing one blank image in evaluation mode."""
    with torch.no_grad():
        return body.eval()(torch.zeros(1, *shape)).numel()


def small_conv(shape: tuple[int, int, int], classes: int, norm: Normalizer) -> nn.Sequential:
    """Three stride-2 convolutions (5x5x16, 3x3x32, 3x3x32), then 64 units; 48 thousand parameters at 28 x 28."""
    body = nn.Sequential(
        nn.Conv2d(shape[0], 16, 5, stride=2, padding=2), norm(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), norm(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), norm(32), nn.ReLU(),
        nn.Flatten(),
    )
    head = [nn.Linear(_features(body, shape), 64), norm(64), nn.ReLU(), nn.Linear(64, classes)]
    return nn.Sequential(*body, *head).train()


def keskar_c1(shape: tuple[int, int, int], classes: int, norm: Normalizer, *, dropout: bool) -> nn.Sequential:
    """AlexNet-like: 2 x [conv 5x5x64, norm, ReLU, max-pool 3/2], then 384 and 192 units (norm, ReLU, dropout 1/2)."""
    p = 0.5 if dropout else 0.0
    body = nn.Sequential(nn.Conv2d(shape[0], 64, 5, padding=2), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2),
                         nn.Conv2d(64, 64, 5, padding=2), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2),
                         nn.Flatten())
    head = [nn.Linear(_features(body, shape), 384), norm(384), nn.ReLU(), Dropout(p),
            nn.Linear(384, 192), norm(192), nn.ReLU(), Dropout(p),
            nn.Linear(192, classes)]
    return nn.Sequential(*body, *head).train()


def keskar_c2(shape: tuple[int, int, int], classes: int, norm: Normalizer, *, dropout: bool) -> nn.Sequential:
    """VGG-like: 3x3 convolutions 64x2, 128x2, 256x3, 512x3, 512x3 (norm, ReLU, max-pool 2 a block), then 512 units.

    Dropout .3 inside the first block, .4 inside the others, .5 around the hidden layer.
    """
    if min(shape[1:]) < 32:
        raise ConfigError(f"keskar-c2 halves the image five times: it needs 32 x 32 pixels, not {shape[1]} x {shape[2]}")
    layers: list[nn.Module] = []
    channels = shape[0]
    for block, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for position in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), norm(width), nn.ReLU()]
            if dropout and position < count - 1:
                layers.append(Dropout(0.3 if block == 0 else 0.4))
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    body = nn.Sequential(*layers, nn.Flatten())
    p = 0.5 if dropout else 0.0
    head = [Dropout(p), nn.Linear(_features(body, shape), 512), norm(512), nn.ReLU(), Dropout(p), nn.Linear(512, classes)]
    return nn.Sequential(*body, *head).train()
