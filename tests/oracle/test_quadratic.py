"""The noisy quadratic model against its equations: gradients, the expected loss, and a whole run's mean loss in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from toy_runs import Memory

from experiments.lab import models
from experiments.lab.datasets import load
from experiments.lab.declare.config import Budget, Machine, Model, Precision, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.models.quadratic import logits_of
from experiments.lab.training.data import Data, prepare
from experiments.lab.training.loop import train

torch.set_num_threads(1)
BASE = RunConfig(dataset="noisy-quadratic", model=Model.QUADRATIC, precision=Precision.FLOAT64, batch_size=4, lr=0.3,
                 budget=Budget.STEPS, steps=12)
H = 1 / np.arange(1.0, 257.0)


@pytest.fixture(scope="module")
def examples() -> Data:
    return prepare(BASE, Machine(), load("noisy-quadratic"))


def test_signs_are_balanced(examples: Data) -> None:
    """The minimum would not be at 0, nor the noise have the covariance H."""
    signs = examples.train.inputs.flatten(1)
    assert signs.abs().eq(1).all() and signs.sum(0).abs().max() == 0
    products = signs.T @ signs / len(signs) - torch.eye(256, dtype=torch.float64)
    assert products.abs().max() < 5 / len(signs) ** 0.5


def test_loss_and_gradient(examples: Data) -> None:
    """v(w; s) = 1/2 sum h (w - s / sqrt h)^2 through a cross-entropy, its gradient h w - sqrt(h) s, and the risk 1/2 w^T H w."""
    model = models.build(BASE, examples.shape, examples.outputs).double()
    (weights,) = model.parameters()
    w, s = weights.detach().numpy(), examples.train.inputs[:3].flatten(1).numpy()
    loss = cross_entropy(model.train()(examples.train.inputs[:3]), examples.train.targets[:3])
    assert loss.item() == pytest.approx((H * (w - s / np.sqrt(H)) ** 2).sum(1).mean() / 2, rel=1e-13)
    (gradient,) = torch.autograd.grad(loss, weights)
    np.testing.assert_allclose(gradient.numpy(), (H * w - np.sqrt(H) * s).mean(0), rtol=1e-10, atol=1e-12)
    risk = cross_entropy(model.eval()(examples.test.inputs), examples.test.targets)
    assert risk.item() == pytest.approx((H * w**2).sum() / 2, rel=1e-13)
    far = torch.tensor([1e-6, 1.0, 1e4, 1e300], dtype=torch.float64)
    found = cross_entropy(logits_of(far), torch.zeros(4, dtype=torch.int64), reduction="none")
    torch.testing.assert_close(found, far, rtol=1e-9, atol=0)


def test_mean_risk_of_sgd(examples: Data) -> None:
    """E w_j^2 <- (1 - lr h)^2 E w_j^2 + lr^2 h / B: without it no batch size has the noise that the model says."""
    start = {"theta": torch.ones(256)}
    risks = [train(BASE.replace(seed=seed), Machine(), examples, Memory(), start).values["train_loss"] for seed in range(60)]
    squares = np.ones(256)
    for _ in range(BASE.steps or 0):
        squares = (1 - BASE.lr * H) ** 2 * squares + BASE.lr**2 * H / BASE.batch_size
    error = np.std(risks, ddof=1) / len(risks) ** 0.5
    expected = float(H @ squares) / 2
    assert abs(np.mean(risks) - expected) < 3.5 * error < 0.1 * expected


def test_model_and_data_go_together() -> None:
    """Pictures have no noisy quadratic, and signs no classes."""
    with pytest.raises(ConfigError, match="belong together"):
        BASE.replace(dataset="fashion-mini")
