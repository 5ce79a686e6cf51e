"""Functions of the weights, small networks and data for the tests of the loss landscape."""

from __future__ import annotations

import torch
from torch import nn

LOSS = nn.CrossEntropyLoss()
NOTHING = (torch.zeros(4, 1), torch.zeros(4))


class Function(nn.Module):
    """f(w) is whatever `of` makes of the weights, so that losses are known in closed form."""

    def __init__(self, w, of, dtype=torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=dtype))
        self.of = of

    def forward(self, x):
        return self.of(self.w).expand(len(x))


def mean(outputs, targets):
    return outputs.mean()


def data(n: int = 40, seed: int = 2):
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(n, 4, generator=generator, dtype=torch.float64) + 1
    return inputs, torch.randint(0, 3, (n,), generator=generator)


def relu_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def bn_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    net(3 * torch.randn(64, 4, dtype=torch.float64))
    return net.eval()
