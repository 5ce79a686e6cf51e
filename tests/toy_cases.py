"""Tiny float64 networks whose Hessians can be computed densely, by another route than the one under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call


class Tied(nn.Module):
    """One matrix used twice, under two names: its curvature has cross terms that a copy would lose."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Images(nn.Module):
    """Convolution and batch normalisation on images of 1 x 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.norm(self.conv(x))).mean(dim=(2, 3)))


@dataclass(frozen=True)
class Case:
    """A network, its data, the mode and the parameters to measure (None: all that require gradients)."""

    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    mode: Any = "eval"
    params: tuple[str, ...] | None = None

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.inputs, self.targets

    def dense_hessian(self) -> np.ndarray:
        """By torch.autograd.functional on a functional call: no operator, no batches, no graph of ours."""
        named = dict(self.model.named_parameters())
        names = list(self.params or [name for name, p in named.items() if p.requires_grad])
        sizes = [named[name].numel() for name in names]
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}

        def mean_loss(flat: Tensor) -> Tensor:
            parts = zip(names, flat.split(sizes), strict=True)
            weights = {name: part.reshape(named[name].shape) for name, part in parts}
            copies = {name: b.clone() for name, b in buffers.items()}
            return self.loss(functional_call(self.model, weights | copies, (self.inputs,)), self.targets)

        flags = [module.training for module in self.model.modules()]
        self.model.train(self.mode == "train")
        flat = torch.cat([named[name].detach().reshape(-1) for name in names])
        hessian = torch.autograd.functional.hessian(mean_loss, flat)
        for module, flag in zip(self.model.modules(), flags, strict=True):
            module.training = flag
        assert isinstance(hessian, Tensor)
        return hessian.detach().numpy()


def make_case(name: str) -> Case:
    torch.manual_seed(7)
    inputs, targets = torch.randn(13, 5, dtype=torch.float64), torch.randint(0, 3, (13,))
    cross_entropy = nn.CrossEntropyLoss()
    mlp = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    if name == "linear softmax":
        return Case(nn.Linear(5, 3).double(), cross_entropy, inputs, targets)
    if name == "mlp":
        return Case(mlp, cross_entropy, inputs, targets)
    if name == "regression":
        return Case(mlp, nn.MSELoss(), inputs, torch.randn(13, 3, dtype=torch.float64))
    if name == "dropout in eval":
        return Case(nn.Sequential(mlp, nn.Dropout(0.5), nn.Linear(3, 3).double()), cross_entropy, inputs, targets)
    if name == "tied":
        return Case(Tied().double(), cross_entropy, inputs, targets)
    if name == "frozen":
        mlp[0].requires_grad_(False)
        return Case(mlp, cross_entropy, inputs, targets)
    if name == "named, though frozen":
        mlp.requires_grad_(False)
        return Case(mlp, cross_entropy, inputs, targets, params=("2.weight", "0.bias"))
    images = Images().double()
    images.norm.running_mean = torch.randn(3, dtype=torch.float64)
    images.norm.running_var = torch.rand(3, dtype=torch.float64) + 0.5
    pictures = torch.randn(13, 1, 4, 4, dtype=torch.float64)
    return Case(images, cross_entropy, pictures, targets, mode="train" if name == "bn train" else "eval")


CASES = "linear softmax", "mlp", "regression", "dropout in eval", "tied", "frozen", "named, though frozen", "bn eval", "bn train"
