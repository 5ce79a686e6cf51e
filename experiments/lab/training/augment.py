"""Augmentation as a pure function of (seed, epoch, example)."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.lab.training.order import AUGMENT, stream

PAD = 4


def draws(seed: int, epoch: int, n: int) -> Tensor:
    """[n, 3] int64: vertical and horizontal crop offset in 0..2 PAD and flip in 0..1, of every example in `epoch`."""
    return torch.from_numpy(stream(seed, AUGMENT, epoch).integers(0, [2 * PAD + 1, 2 * PAD + 1, 2], size=(n, 3)))


def crop_flip(images: Tensor, draw: Tensor) -> Tensor:
    """Zero-pad [B, C, H, W] by PAD, crop each at its own offset, mirror where its flip says so; `draw` is [B, 3]."""
    b, _, h, w = images.shape
    padded = torch.nn.functional.pad(images, (PAD, PAD, PAD, PAD))
    rows = draw[:, 0, None] + torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device).expand(b, w)
    columns = torch.where(draw[:, 2, None] == 1, w - 1 - columns, columns) + draw[:, 1, None]
    example = torch.arange(b, device=images.device)[:, None, None]
    # advanced indices apart from the channel slice put it last: [B, H, W, C]
    return padded[example, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
