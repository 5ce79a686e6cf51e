"""Three small networks, briefly trained on 1,000 embedded images: Hessians of the usual shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.lab.datasets import load

EXAMPLES = 1000
EPOCHS = 3


@dataclass(frozen=True)
class Net:
    """A trained model in eval mode, and the data on which its curvature is measured."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def key(self) -> str:
        """Changes with any weight or input: what a cached reference must agree with."""
        digest = hashlib.sha256()
        for tensor in [*self.model.state_dict().values(), self.inputs, self.targets]:
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


class Block(nn.Module):
    """Two convolutions with batch normalisation, and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(torch.relu(self.norm1(self.conv1(x))))
        return torch.relu(self.norm2(inner) + self.shortcut(x))


class Transformer(nn.Module):
    """Patches of 7 x 7 pixels, two pre-norm layers, the mean over patches."""

    def __init__(self, dim: int = 48, patch: int = 7, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, dim, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn((28 // patch) ** 2, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x).flatten(2).transpose(1, 2) + self.place).mean(dim=1))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
                         nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 7 * 7, 36), nn.ReLU(), nn.Linear(36, 10))


def resnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Block(8, 8, 1), Block(8, 16, 2),
                         Block(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


MAKERS: dict[str, Callable[[], nn.Module]] = {"conv": conv, "resnet": resnet, "transformer": Transformer}


def make(name: str, examples: int = EXAMPLES) -> Net:
    """The network `name`, trained from a fixed seed; the caller's generator is left alone."""
    split = load("fashion-mini").train
    inputs = (torch.from_numpy(split.inputs[:examples]).float() / 255 - 0.286) / 0.353
    targets = torch.from_numpy(split.targets[:examples])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MAKERS[name]()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(EPOCHS):
            for batch in torch.randperm(examples).split(50):
                loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for p in model.parameters():
        p.grad = None
    return Net(name, model.eval(), inputs, targets)
