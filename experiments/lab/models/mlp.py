"""Fully connected networks: Keskar et al. 2017's F1 (784, 5 x 512 with batch norm and ReLU, 10) and smaller."""

from __future__ import annotations

import math

from torch import nn

from experiments.lab.models.norms import Normalizer


def mlp(shape: tuple[int, ...], classes: int, norm: Normalizer, *, width: int, depth: int) -> nn.Sequential:
    """[B, C, H, W] -> [B, classes] through `depth` hidden layers of `width` units: linear, norm, ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = math.prod(shape)
    for _ in range(depth):
        layers += [nn.Linear(features, width), norm(width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))
