"""The noisy quadratic model of Zhang et al. 2019 (arXiv 1907.04164, section 2) as a network of 256 weights.

With H = diag(1 / j) and an example s of d random signs (data set `noisy-quadratic`), its loss is

    v(w; s) = 1/2 |H^(1/2) w - s|^2 = 1/2 sum_j h_j (w_j - s_j / sqrt(h_j))^2,

so that the mean gradient is H w, the covariance of an example's gradient is H (the paper's choice C = H, noise H / B in a
batch of B drawn with replacement), and the expected loss is 1/2 w^T H w + d/2. The initial weights are N(0, 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Quadratic(nn.Module):
    """[B, C, H, W] of d = C H W signs -> two logits [B, 2] whose cross-entropy against class 0 is the loss.

    In training mode that of each example, v(w; s); in evaluation mode the expected loss above its irreducible part d/2,
    1/2 w^T H w, the same for every example: what the paper calls the risk.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(math.prod(shape)))

    def forward(self, inputs: Tensor) -> Tensor:
        theta = self.theta
        # made here and not kept: only what is computed from weights and inputs can be recorded and replayed
        numbers = torch.arange(1, len(theta) + 1, dtype=theta.dtype, device=theta.device)
        centre = theta * numbers.rsqrt()
        residuals = centre - inputs.flatten(1) if self.training else centre.expand(len(inputs), -1)
        return logits_of(residuals.square().sum(1) / 2)


def logits_of(loss: Tensor) -> Tensor:
    """(0, log(exp(v) - 1)) [B, 2] for losses v > 0 [B]: the cross-entropy against class 0 is log(1 + exp(v) - 1) = v."""
    second = loss + torch.log(-torch.expm1(-loss))
    return torch.stack([torch.zeros_like(second), second], 1)
