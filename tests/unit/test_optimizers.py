"""Optimizers against their papers' equations, schedules against their closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import toy_config

from experiments.lab.declare.config import Budget, Optimizer, RunConfig, Scaling, Schedule
from experiments.lab.fused.ensemble import StackedUpdate
from experiments.lab.training.batch_stream import BatchStream
from experiments.lab.training.optimizers import Update
from experiments.lab.training.schedules import lr_at

Array = np.ndarray
CURVATURES = np.array([0.1, 1.0, 3.0, 10.0])


def gradient(w: Array) -> Array:
    return CURVATURES * w + 0.5


def sgd(w: Array, c: RunConfig, steps: int) -> Array:
    """Heavy ball v <- m v + g, w <- w - lr v; Nesterov (as Sutskever et al. 2013 in torch's form) w <- w - lr (g + m v)."""
    v = np.zeros_like(w)
    for _ in range(steps):
        g = gradient(w) + c.weight_decay * w
        v = c.momentum * v + g
        w = w - c.lr * (g + c.momentum * v if c.nesterov else v)
    return w


def adam(w: Array, c: RunConfig, steps: int) -> Array:
    """Kingma & Ba 2015, Algorithm 1; decay joins the gradient, in AdamW (Loshchilov & Hutter 2019) it shrinks w by lr * decay."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    decoupled = c.optimizer is Optimizer.ADAMW
    for t in range(1, steps + 1):
        g = gradient(w) + (0 if decoupled else c.weight_decay * w)
        if decoupled:
            w = w * (1 - c.lr * c.weight_decay)
        m = c.beta1 * m + (1 - c.beta1) * g
        v = c.beta2 * v + (1 - c.beta2) * g**2
        w = w - c.lr * (m / (1 - c.beta1**t)) / (np.sqrt(v / (1 - c.beta2**t)) + c.eps)
    return w


CASES: list[tuple[Callable[[Array, RunConfig, int], Array], dict[str, Any]]] = [
    (sgd, {}),
    (sgd, {"momentum": 0.9}),
    (sgd, {"momentum": 0.9, "nesterov": True}),
    (sgd, {"momentum": 0.9, "weight_decay": 0.1}),
    (adam, {"optimizer": Optimizer.ADAM}),
    (adam, {"optimizer": Optimizer.ADAM, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}),
    (adam, {"optimizer": Optimizer.ADAMW, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("equation", "fields"), CASES)
def test_optimizer_follows_its_paper(equation: Callable[[Array, RunConfig, int], Array], fields: dict[str, Any]) -> None:
    """Dampening, a decoupled decay or another epsilon would pass for the same optimizer."""
    config = toy_config(lr=0.03, **fields)
    start = np.linspace(-1, 2, 4)
    weights = torch.tensor(start)
    optimizer = Update(config, [weights])
    for _ in range(20):
        optimizer([torch.from_numpy(gradient(weights.numpy()))], config.lr)
    np.testing.assert_allclose(weights.numpy(), equation(start, config, 20), rtol=1e-11)


@pytest.mark.parametrize("kind", [case[1].get("optimizer", Optimizer.SGD) for case in CASES[::3]])
def test_members_keep_their_own_hyper_parameters(kind: Optimizer) -> None:
    """In an ensemble, one member's learning rate, decay, momentum or betas would act on another."""
    own: dict[str, Any] = {"momentum": (0.9, 0.5, 0.7)}
    if kind is not Optimizer.SGD:
        own = {"beta1": (0.9, 0.5, 0.7), "eps": (1e-8, 1e-3, 1e-2)}
    fields = own | {"lr": (0.03, 0.01, 0.02), "weight_decay": (0.0, 0.1, 0.2)}
    configs = [toy_config(optimizer=kind, **{name: values[i] for name, values in fields.items()}) for i in range(3)]
    start = np.random.default_rng(0).normal(size=(3, 4))
    weights = torch.tensor(start)
    optimizer = StackedUpdate(configs, weights)
    for _ in range(20):
        optimizer(torch.from_numpy(gradient(weights.numpy())), torch.tensor([[c.lr] for c in configs], dtype=torch.float64))
    equation = sgd if kind is Optimizer.SGD else adam
    for row, (w, config) in enumerate(zip(start, configs, strict=True)):
        np.testing.assert_allclose(weights[row].numpy(), equation(w, config, 20), rtol=1e-11)


def test_scaled_lr_reaches_the_optimizer() -> None:
    """The scaling rule would be on paper only."""
    config = toy_config(batch_size=64, scaling=Scaling.LINEAR, base_batch_size=16)
    assert BatchStream(config, 72).block(0, 2).lr.tolist() == pytest.approx([4 * config.lr] * 2)


def lrs(steps: int = 100, **fields: Any) -> list[float]:
    config = toy_config(lr=2.0, steps=steps, **fields)
    return [lr_at(config, step, steps) for step in range(steps)]


def test_constant_schedule() -> None:
    """A constant LR would not be one, with or without a known length."""
    assert set(lrs()) == {2.0}
    plateau = toy_config(lr=2.0, budget=Budget.PLATEAU, patience=1, max_epochs=2)
    assert lr_at(plateau, 10**6, None) == 2.0


def test_linear_schedule() -> None:
    """The decay would end elsewhere than at final_lr."""
    lr = lrs(schedule=Schedule.LINEAR, final_lr=0.1)
    assert lr == pytest.approx([2 * (1 - 0.9 * t / 100) for t in range(100)])


def test_cosine_schedule() -> None:
    """The half-way point of a cosine is the mean of its ends."""
    lr = lrs(schedule=Schedule.COSINE, final_lr=0.1)
    assert [lr[0], lr[50], lr[25]] == pytest.approx([2, 1.1, 2 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)])


def test_step_schedule() -> None:
    """Drops at other fractions of the budget."""
    lr = lrs(schedule=Schedule.STEP)
    assert [lr[49], lr[50], lr[74], lr[75], lr[99]] == pytest.approx([2, 0.2, 0.2, 0.02, 0.02])


def test_warmup() -> None:
    """An LR of 0 at the first step, a jump at the end of warm-up, or decay measured from step 0."""
    lr = lrs(schedule=Schedule.LINEAR, warmup=0.2)
    assert lr[:20] == pytest.approx([2 * (t + 1) / 20 for t in range(20)])
    assert lr[20:] == pytest.approx([2 * (1 - (t - 20) / 80) for t in range(20, 100)])


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_tiny_budgets_have_an_lr(schedule: Schedule, steps: int) -> None:
    """Division by zero, or an LR above the peak, in runs of a few steps."""
    for warmup in (0.0, 0.5, 0.99):
        assert all(0 <= lr <= 2 for lr in lrs(steps, schedule=schedule, warmup=warmup))
        assert lrs(steps, schedule=schedule, warmup=warmup)[0] > 0
