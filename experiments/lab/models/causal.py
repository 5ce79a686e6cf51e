"""A small causal transformer (Vaswani et al. 2017, arXiv 1706.03762; layer norms first, as in GPT-2) for sequences of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.lab.models.vit import TransformerBlock

WIDTH, DEPTH, HEADS, MLP_RATIO = 64, 2, 4, 4


class Tokens(nn.Module):
    """[B, T] int64 -> [B, T, width]: a learned vector of each token, plus one of its position (both first N(0, 0.02^2))."""

    def __init__(self, tokens: int, length: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.embedding(x, self.vectors) + self.positions[: x.shape[1]]


def causal_transformer(length: int, tokens: int) -> nn.Sequential:
    """[B, T] -> [B, T, tokens], what follows each token: 2 blocks of width 64 with 4 heads and 256 hidden units, layer norm, one
    linear layer; 0.11 million parameters for 64 characters of 75 kinds. T may be shorter than `length`."""
    blocks = [TransformerBlock(WIDTH, HEADS, MLP_RATIO, causal=True) for _ in range(DEPTH)]
    return nn.Sequential(Tokens(tokens, length, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, tokens))
