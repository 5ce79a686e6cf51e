"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1) for images of 28 to 32 pixels per side.

Attention is written out as products and a softmax, and not as torch's fused kernel: second derivatives and several runs as
one program need the former.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.lab.declare.errors import ConfigError

PATCH, WIDTH, DEPTH, HEADS, MLP_RATIO = 4, 128, 6, 4, 2


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v in each of `heads` heads of d = width / heads, and a linear map; [B, T, width] -> the same.

    With `causal` a token sees itself and those before it alone.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = split[0], split[1], split[2]
        scores = q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5
        if self.causal:
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        weights = torch.softmax(scores, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): layer norms come first, the hidden layer has GELU."""

    def __init__(self, width: int, heads: int, ratio: int, *, causal: bool = False) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, causal=causal))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Patches(nn.Module):
    """[B, C, H, W] -> [B, T, width]: a linear map of each patch, plus a learned vector for its position (first N(0, 0.02^2))."""

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(shape[0], width, PATCH, PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn((shape[1] // PATCH) * (shape[2] // PATCH), width))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.positions


class MeanToken(nn.Module):
    """[B, T, width] -> [B, width], the mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """[B, C, H, W] -> [B, classes]: patches of 4 x 4 pixels, 6 blocks of width 128 with 4 heads and 256 hidden units, layer norm,
    mean over tokens, one linear layer; 0.81 million parameters at 32 x 32 x 3. Raises `ConfigError` where 4 does not divide
    the sides of the image."""
    if shape[1] % PATCH or shape[2] % PATCH:
        raise ConfigError(f"vit cuts images into {PATCH} x {PATCH} pixels, but the images are {shape[1]} x {shape[2]}")
    blocks = [TransformerBlock(WIDTH, HEADS, MLP_RATIO) for _ in range(DEPTH)]
    return nn.Sequential(Patches(shape, WIDTH), *blocks, nn.LayerNorm(WIDTH), MeanToken(), nn.Linear(WIDTH, classes))
