"""Code as users bring it: nothing here knows of this project."""

import random

import numpy as np
import torch
from torch import nn


def images():
    """Twelve kinds of stripes, uint8 [N, H, W, C] as Keras stores them, with labels [N, 1]."""
    draw = np.random.default_rng(7)
    labels = draw.integers(0, 4, 320)
    x = draw.integers(0, 120, (320, 12, 12, 3))
    for i, k in enumerate(labels):
        x[i, k :: 4, :, k % 3] += 110
    x, y = x.astype(np.uint8), labels[:, None].astype(np.uint8)
    return {"train": (x[:240], y[:240]), "test": (x[240:], y[240:])}


def cnn(input_shape, outputs, width=8, drop=0.2):
    c = input_shape[0]
    return nn.Sequential(
        nn.Conv2d(c, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(drop),
        nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, outputs),
    )


def plain_cnn(input_shape, outputs):
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(400, outputs))


class Causal(nn.Module):
    def __init__(self, tokens, length, width=16):
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Parameter(torch.zeros(length, width))
        self.attention, self.out = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(width, tokens)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        h = self.embed(x) + self.place[: x.shape[1]]
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        a, _ = self.attention(h, h, h, attn_mask=hidden, need_weights=False)
        return self.out(self.norm(h + a))


def lm(input_shape, outputs):
    return Causal(outputs, input_shape[0])


def tokens():
    """Next tokens of a noisy cycle; the first few of each sequence are padding, which does not count."""
    draw = np.random.default_rng(3)
    start = draw.integers(0, 7, (200, 1))
    x = (start + np.arange(13) + (draw.random((200, 13)) < 0.1)) % 7
    inputs, targets = x[:, :-1], x[:, 1:].copy()
    for i, pad in enumerate(draw.integers(0, 10, 200)):
        targets[i, :pad] = -100
    return torch.tensor(inputs), torch.tensor(targets)


def points():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=g)
    return x, (x[:, :1] ** 2 + x[:, 1:2]).clone()


def regressor(input_shape, outputs):
    return nn.Sequential(nn.Linear(input_shape[0], 16), nn.Tanh(), nn.Linear(16, outputs))


def mse():
    return nn.functional.mse_loss


def huber(outputs, targets):
    return nn.functional.huber_loss(outputs, targets, reduction="none").mean(1)


def rmsprop(parameters, lr):
    return torch.optim.RMSprop(parameters, lr=lr)


class SignMomentum(torch.optim.Optimizer):
    """Lion's rule, with a Python number in its group."""

    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "count": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p))
                m.mul_(group["beta"]).add_(p.grad, alpha=1 - group["beta"])
                p.add_(m.sign(), alpha=-group["lr"] / (1 + 0.01 * group["count"]))


def sign_momentum(parameters, lr):
    return SignMomentum(parameters, lr)


class Noisy(nn.Module):
    def __init__(self, n, k):
        super().__init__()
        self.linear = nn.Linear(n, k)

    def forward(self, x):
        return self.linear(nn.functional.dropout(x, 0.5, self.training))


def noisy(input_shape, outputs):
    return Noisy(input_shape[0], outputs)


def _net(layers):
    def made(input_shape, outputs):
        return nn.Sequential(nn.Linear(input_shape[0], 16), layers(), nn.Linear(16, outputs))

    return made


class Layer(nn.Module):
    """A layer of one function, with what it remembers."""

    def __init__(self, function, buffer=None, persistent=True):
        super().__init__()
        self.function, self.count = function, 0
        if buffer is not None:
            self.register_buffer("kept", buffer, persistent=persistent)

    def forward(self, x):
        return self.function(self, x)


def _counting(self, x):
    self.count += 1
    return x * self.count


def _average(self, x):
    if self.training:
        self.kept = 0.9 * self.kept + 0.1 * x.detach().mean(0)
    return x * (1 + self.kept)


def _rare(self, x):
    return x if random.random() < 0.97 else 2 * x


dropped = _net(lambda: nn.Dropout(0.5))
undropped = _net(nn.Identity)
centred = _net(lambda: Layer(lambda self, x: x - x.mean(0)))
batch_norm = _net(lambda: nn.BatchNorm1d(16))
attending = _net(lambda: Layer(lambda self, x: torch.softmax(x @ x.T, 1) @ x))
group_norm = _net(lambda: nn.GroupNorm(4, 16))
layer_norm = _net(lambda: nn.LayerNorm(16))
functional_dropout = _net(lambda: Layer(lambda self, x: nn.functional.dropout(x, 0.5, self.training)))
torch_noise = _net(lambda: Layer(lambda self, x: x + torch.randn(16)))
numpy_noise = _net(lambda: Layer(lambda self, x: x * np.random.rand()))
fresh_noise = _net(lambda: Layer(lambda self, x: x * float(np.random.default_rng().random())))
python_noise = _net(lambda: Layer(lambda self, x: x * random.random()))
rare_noise = _net(lambda: Layer(_rare))
counting = _net(lambda: Layer(_counting))
average = _net(lambda: Layer(_average, torch.zeros(16)))
hidden_average = _net(lambda: Layer(_average, torch.zeros(16), persistent=False))
spectral = _net(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)))
old_spectral = _net(lambda: nn.utils.spectral_norm(nn.Linear(16, 16)))


def mean_of_counted(outputs, targets):
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def sum_of_counted(outputs, targets):
    found = nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum")
    return found, (targets != -100).sum()


class Forgetful(torch.optim.SGD):
    """SGD whose steps shrink by a count that its state_dict lacks."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        self.param_groups[0]["lr"] /= self.count
        return super().step(closure)


def forgetful(parameters, lr):
    return Forgetful(parameters, lr)


class Langevin(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad.add_(torch.randn_like(p), alpha=0.1)
        return super().step(closure)


def langevin(parameters, lr):
    return Langevin(parameters, lr)


def _apart(pair, count):
    return {"train": tuple(part[:count] for part in pair), "test": tuple(part[count:] for part in pair)}


def tokens_apart():
    return _apart(tokens(), 160)


def points_apart():
    return _apart(points(), 150)
