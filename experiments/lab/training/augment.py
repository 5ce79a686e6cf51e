"""Augmentation as a pure function of (seed, epoch, example)."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.lab.training.shuffle import AUGMENT, generator

PAD = 4


def draws(seed: int, epoch: int, n: int) -> Tensor:
    """[n, 3] int64: vertical and horizontal crop offset in 0..2 PAD and flip in 0..1, of every example in `epoch`."""
    return torch.from_numpy(generator(seed, AUGMENT, epoch).integers(0, [2 * PAD + 1, 2 * PAD + 1, 2], size=(n, 3)))


class Crops:
    """Zero-pad inputs [N, C, H, W] by PAD, crop each at its own offset, mirror where its flip says so.

    By one gather of strided windows of a padded copy and its mirror image, which keep 2 (H + 2 PAD) (W + 2 PAD) / (H W)
    times the inputs' memory. Crops are channels-last.
    """

    def __init__(self, inputs: Tensor) -> None:
        n, c, h, w = self.shape = inputs.shape
        self.height, self.width = h + 2 * PAD, w + 2 * PAD
        padded = inputs.new_zeros(2, n, self.height, self.width, c)
        padded[0, :, PAD : PAD + h, PAD : PAD + w] = inputs.permute(0, 2, 3, 1)
        padded[1] = padded[0].flip(2)
        pixels = 2 * n * self.height * self.width
        last = (h - 1) * self.width + w
        self.windows = padded.view(-1).as_strided((pixels - last + 1, h, w * c), (c, self.width * c, 1))

    def take(self, positions: Tensor, draws: Tensor) -> Tensor:
        """Inputs [..., B, C, H, W] at positions [..., B], drawn [..., B, 3]."""
        n, c, h, w = self.shape
        top, left, flip = draws.unbind(-1)
        left = torch.where(flip == 1, self.width - w - left, left)  # of the mirrored image
        first = ((flip * n + positions) * self.height + top) * self.width + left
        crops = self.windows.index_select(0, first.flatten()).view(*positions.shape, h, w, c)
        return crops.movedim(-1, -3)
