"""Residual networks for CIFAR (He et al. 2016, Section 4.2): 6n + 2 layers, three stages of n blocks, identity shortcuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.lab.models.norms import Normalizer

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), 3x3 convolutions without bias.

    Where the stage changes, the first convolution has stride 2 and the shortcut takes every other pixel and pads the new
    channels with zeros (the paper's option A), so that it has no weights.
    """

    def __init__(self, channels: int, width: int, norm: Normalizer) -> None:
        super().__init__()
        self.stride = 1 if channels == width else 2
        self.padding = width - channels
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3, self.stride, 1, bias=False), norm(width), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.padding:
            half = self.padding // 2
            shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.padding - half))
        return torch.relu(shortcut + self.body(x))


def resnet(shape: tuple[int, int, int], classes: int, norm: Normalizer, *, depth: int) -> nn.Sequential:
    """[B, C, H, W] -> [B, classes]; `depth` = 6n + 2. Global average pooling, one linear layer. He et al. 2015's
    normal initialisation (fan-in, Section 2.2) for convolutions; 0.27, 0.46, 0.66 and 0.85 million parameters at depth 20,
    32, 44 and 56."""
    layers: list[nn.Module] = [nn.Conv2d(shape[0], WIDTHS[0], 3, 1, 1, bias=False), norm(WIDTHS[0]), nn.ReLU()]
    channels = WIDTHS[0]
    for width in WIDTHS:
        for _ in range((depth - 2) // 6):
            layers.append(Block(channels, width, norm))
            channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model
