"""Small networks and data with known answers, for the tests of `sharpness`."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm as gaussian
from torch import nn

CROSS_ENTROPY = nn.CrossEntropyLoss()
MSE = nn.MSELoss()


def quadratic_model(p=4, seed=0, zero=False):
    """Linear regression: f(w) = mean (x.w - t)^2, with its Hessian H, its gradient g at w, and w."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(9, p, generator=generator, dtype=torch.float64)
    t = torch.randn(9, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(p, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, p, generator=generator, dtype=torch.float64))
        if zero:
            model.weight[0, 1] = 0.0
    w = model.weight.detach().numpy()[0].copy()
    X = x.numpy()
    return model, (x, t), 2 * X.T @ X / 9, 2 * X.T @ (X @ w - t.numpy()[:, 0]) / 9, w


def linear(w, bias=False):
    """One output, w.x, with the weights given."""
    model = nn.Linear(len(w), 1, bias=bias).double()
    model.weight.data = torch.as_tensor(w)[None].double()
    return model


def relu_net(dtype=torch.float64, seed=0):
    """Six inputs, three classes; seeds torch."""
    torch.manual_seed(seed)
    layers = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    return nn.Sequential(*layers).to(dtype)


def class_data(examples=48, dtype=torch.float64, seed=1):
    """Three classes that `relu_net` could learn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 6, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def own_labels(dtype=torch.float64):
    """Labels of the net itself, so that accuracy has room to fall."""
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return x, relu_net(dtype)(x).argmax(1)


def linear_classifier(examples=60):
    """Two classes, weights chosen; the margin of example i is (w_1 - w_0).x_i, signed by its class."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(examples, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -0.5, 0.2], [-1.0, 0.4, 0.3]]))
    t = model(x).argmax(1)
    t[:5] = 1 - t[:5]
    return model, (x, t)


def expected_drop(sigma, scaling="plain", epsilon=0.0):
    """Phi(-margin / sd) of each example, minus the errors at w: exact for a linear classifier."""
    model, (x, t) = linear_classifier()
    w, X = model.weight.detach().numpy(), x.numpy()
    sign = np.where(t.numpy() == 1, 1.0, -1.0)
    variance = np.full_like(w, sigma**2) if scaling == "plain" else sigma**2 * w**2 + epsilon**2
    deviation = np.sqrt((X**2) @ variance.sum(axis=0))
    margin = sign * (X @ (w[1] - w[0]))
    return float((gaussian.cdf(-margin / deviation) - (margin < 0)).mean())


def classification():
    """Model, loss and data."""
    model, data = linear_classifier()
    return model, CROSS_ENTROPY, data


def regression():
    """Model, loss and data."""
    model, data, *_ = quadratic_model()
    return model, MSE, data


def loop(model, loss, inputs, targets, params=None):
    """[N, n] by plain backward on one example after another."""
    named = dict(model.named_parameters())
    chosen = [named[k] for k in params or [k for k, p in named.items() if p.requires_grad]]
    flags = [p.requires_grad for p in named.values()]
    model.eval()
    for p in chosen:
        p.requires_grad_(True)
    rows = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(model(x[None]), t[None]), chosen)])
            for x, t in zip(inputs, targets, strict=True)]
    for p, flag in zip(named.values(), flags, strict=True):
        p.requires_grad_(flag)
    return torch.stack(rows).numpy()


class Failing:
    """Cross-entropy until the given call, then Ctrl-C; counts its calls."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, outputs, targets):
        self.calls += 1
        if self.calls >= self.at:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, targets)


def state(model):
    """All that a measurement must leave as it found it."""
    tensors = [*model.parameters(), *model.buffers()]
    seen = [(id(t), t.data_ptr(), t._version, t.requires_grad, t.detach().numpy().tobytes()) for t in tensors]
    grads = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
    return seen, grads, [m.training for m in model.modules()], torch.get_rng_state().numpy().tobytes()
