"""Normalisation layers whose statistics are explicit.

In training mode batch normalisation uses the statistics of its batch (of each group of `norm_batch` examples: ghost
batch norm, Hoffer et al. 2017, Algorithm 1) and keeps none. The statistics that evaluation uses are set by `calibrate`
and nothing else: running averages collected while training are stale after few updates at large batch and would bias a
comparison against it. So neither a resume, a micro-batch nor a curvature product can move them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from experiments.lab.declare.config import Norm
from sharpness.problem.recalibration import recalibrate, watched_statistics

EPS = 1e-5
GROUP_CHANNELS = 16


class BatchNorm(nn.Module):
    """y = weight * (x - mean) / sqrt(var + 1e-5) + bias per channel, for x [B, C] or [B, C, H, W].

    mean and (biased) var are those of each consecutive group of `norm_batch` examples in training mode (None: of the
    whole forward pass), and the calibrated buffers in evaluation mode. Raises ValueError where `norm_batch` does not
    divide the examples of a training-mode pass.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, norm_batch: int | None = None) -> None:
        super().__init__()
        self.norm_batch = norm_batch
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=EPS
            )
        groups = 1 if self.norm_batch is None else len(x) // self.norm_batch
        if self.norm_batch is not None and groups * self.norm_batch != len(x):
            raise ValueError(f"norm_batch {self.norm_batch} does not divide the {len(x)} examples of this pass")
        if groups == 1:
            return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=EPS)
        # Groups become channels: [G * n, C, ...] -> [n, G * C, ...], so that one call normalises each group apart.
        rest = x.shape[2:]
        split = x.reshape(groups, -1, x.shape[1], *rest).transpose(0, 1).reshape(-1, groups * x.shape[1], *rest)
        normed = nn.functional.batch_norm(
            split, None, None, self.weight.repeat(groups), self.bias.repeat(groups), training=True, eps=EPS
        )
        return normed.reshape(-1, groups, x.shape[1], *rest).transpose(0, 1).reshape(x.shape)


class Normalizer:
    """Makes the normalisation layer of a configuration: `normalizer(channels)`."""

    def __init__(self, norm: Norm, norm_batch: int | None) -> None:
        self.norm, self.norm_batch = norm, norm_batch

    def __call__(self, channels: int) -> nn.Module:
        match self.norm:
            case Norm.NONE:
                return nn.Identity()
            case Norm.BATCH | Norm.GHOST:
                return BatchNorm(channels, self.norm_batch)
            case Norm.GROUP:
                return nn.GroupNorm(_groups(channels), channels, eps=EPS)
            case Norm.LAYER:  # over all channels and pixels of an example, as Wu & He 2018, section 3.1, define it for images
                return nn.GroupNorm(1, channels, eps=EPS)


def _groups(channels: int) -> int:
    """Groups of at least 16 channels (Wu & He 2018, Table 3): smaller ones leave of a feature vector little but signs."""
    return max(g for g in range(1, channels + 1) if channels % g == 0 and (g == 1 or channels // g >= GROUP_CHANNELS))


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the evaluation statistics of every `BatchNorm` to the average over `batches` of the batch mean and variance, and those
    of torch's own layers in a user's network likewise (`sharpness.recalibrate_batch_norm`).

    Each pass normalises with its own statistics, as training does, with dropout off. The order of batches and their size
    are the caller's: comparisons use one fixed size for every run. Leaves each layer in the mode it had.
    """
    layers = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if not layers:
        return recalibrate(model, batches, model)
    groups = {layer: layer.norm_batch for layer in layers}
    sums = {layer: [torch.zeros_like(layer.running_mean), torch.zeros_like(layer.running_var)] for layer in layers}

    def observe(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, BatchNorm)
        var, mean = torch.var_mean(args[0].to(layer.running_mean.dtype), [0, *range(2, args[0].dim())], correction=0)
        sums[layer][0] += mean
        sums[layer][1] += var

    count = 0
    try:
        for layer in layers:
            layer.norm_batch = None
        with watched_statistics(model, layers, observe):
            for inputs in batches:
                model(inputs)
                count += 1
    finally:
        for layer, group in groups.items():
            layer.norm_batch = group
    for layer, (mean, var) in sums.items():
        layer.running_mean.copy_(mean / count)
        layer.running_var.copy_(var / count)
