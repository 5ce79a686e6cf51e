"""Worst-case sharpness against closed forms, enumerated vertices and brute force."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from toy_nets import CROSS_ENTROPY, class_data, quadratic_model, relu_net

from sharpness.flatness.apgd import checkpoints, maximise_in_ball
from sharpness.flatness.worst_case import worst_case_sharpness


def ball_maximum(H, g, rho):
    """max g.d + d.H d / 2 with ||d|| <= rho, H positive definite: (mu I - H) d = g with mu above all of H."""
    values, vectors = np.linalg.eigh(H)
    h = vectors.T @ g
    top = values[-1]
    mu = brentq(lambda mu: np.linalg.norm(h / (mu - values)) - rho, top * (1 + 1e-12), 1e6 * (top + 1))
    d = h / (mu - values)
    return float(h @ d + d @ (values * d) / 2)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.01, 0.3, 3.0])
def test_l2_maximum_of_a_quadratic(rho, adaptive):
    model, data, H, g, w = quadratic_model()
    c = np.abs(w) if adaptive else np.ones_like(w)
    expected = ball_maximum(c[:, None] * H * c, c * g, rho)
    found = worst_case_sharpness(model, nn.MSELoss(), data, rho=rho, adaptive=adaptive, steps=60)
    assert found.value == pytest.approx(expected, rel=1e-5) and found.value <= expected * (1 + 1e-10)
    assert (found.status, found.standard_error, found.batches, found.evaluations) == ("ok", None, 1, 61)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.01, 0.3, 3.0])
def test_linf_maximum_of_a_quadratic(rho, adaptive):
    """A convex function is largest at a vertex; other vertices can be local maxima, so starts are many."""
    model, data, H, g, w = quadratic_model()
    c = np.abs(w) if adaptive else np.ones_like(w)
    vertices = [rho * c * np.array(signs) for signs in itertools.product((-1.0, 1.0), repeat=len(w))]
    expected = max(g @ d + d @ H @ d / 2 for d in vertices)
    found = worst_case_sharpness(model, nn.MSELoss(), data, rho=rho, norm="linf", adaptive=adaptive, steps=20, starts=24)
    assert found.value == pytest.approx(expected, rel=1e-10) and found.evaluations == 24 * 21


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_one_step(norm, adaptive):
    model, data, H, g, w = quadratic_model()
    c, rho = np.abs(w) if adaptive else np.ones_like(w), 0.2
    d = rho * c**2 * g / np.linalg.norm(c * g) if norm == "l2" else rho * c * np.sign(g)
    found = worst_case_sharpness(model, nn.MSELoss(), data, rho=rho, norm=norm, adaptive=adaptive, steps=1)
    assert found.value == pytest.approx(g @ d + d @ H @ d / 2, rel=1e-12) and found.evaluations == 2


def test_checkpoints_of_the_paper():
    assert sorted(checkpoints(20)) == [5, 9, 12, 14, 16, 18, 19, 20]
    assert sorted(checkpoints(100))[:4] == [22, 41, 57, 70]
    assert checkpoints(1) == {1}


def transcription(f, df, x, rho, steps):
    """Algorithm 1 of Croce & Hein 2020, l2, written in one piece in numpy: all iterates kept."""

    def onto_ball(y):
        return y * min(1.0, rho / max(np.linalg.norm(y), 1e-300))

    marks = [0, *sorted(checkpoints(steps))]
    xs, seen, etas, best, ascents = [x], [x], [2 * rho], [f(x)], []
    for k in range(steps):
        g = df(xs[-1])
        new = onto_ball(xs[-1] + etas[-1] * g / np.linalg.norm(g))
        if k:
            new = onto_ball(xs[-1] + 0.75 * (new - xs[-1]) + 0.25 * (xs[-1] - xs[-2]))
        ascents.append(f(new) > f(xs[-1]))
        seen.append(new)
        xs.append(new)
        best.append(max(best[-1], f(new)))
        etas.append(etas[-1])
        if k + 1 in marks:
            last = marks[marks.index(k + 1) - 1]
            stuck = etas[last] == etas[k] and best[last] == best[k + 1]
            if stuck or sum(ascents[last:]) < 0.75 * (k + 1 - last):
                etas[-1] = etas[k] / 2
                xs[-1] = max(seen, key=f)
    return best[-1]


@pytest.mark.parametrize("steps", [7, 20, 45])
def test_the_search_is_the_papers(steps):
    """On a wavy function, where step sizes are halved and the search returns to its best point."""
    rng = np.random.default_rng(steps)
    A, b = 3 * rng.standard_normal((6, 5)), rng.standard_normal(6)

    def f(x):
        return float(np.sin(A @ x + b).sum())

    def df(x):
        return A.T @ np.cos(A @ x + b)

    found = maximise_in_ball(lambda x, _: (f(x.numpy()), torch.from_numpy(df(x.numpy()))),
                             torch.zeros(5, dtype=torch.float64), rho=1.5, norm="l2", steps=steps)
    assert found.value == pytest.approx(transcription(f, df, np.zeros(5), 1.5, steps), rel=1e-9)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_against_brute_force_on_a_tiny_net(norm):
    """Two weights: the maximum over the ball on a fine grid. Never above it, and not far below."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    x = torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None]
    data, rho = (x, torch.sin(2 * x)), 0.8
    a, b = (p.item() for p in model.parameters())
    if norm == "l2":
        radius, angle = np.meshgrid(np.linspace(0, rho, 200), np.linspace(0, 2 * np.pi, 400))
        da, db = radius * np.cos(angle), radius * np.sin(angle)
    else:
        da, db = np.meshgrid(np.linspace(-rho, rho, 301), np.linspace(-rho, rho, 301))
    X, T = (t.numpy()[:, 0] for t in data)
    outputs = (b + db)[..., None] * np.tanh((a + da)[..., None] * X)
    start = ((b * np.tanh(a * X) - T) ** 2).mean()
    expected = ((outputs - T) ** 2).mean(axis=-1).max() - start
    found = worst_case_sharpness(model, nn.MSELoss(), data, rho=rho, norm=norm, starts=4)
    assert found.value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_more_steps_find_no_less(norm, adaptive):
    """The first step of the search is the one step, and the best iterate counts."""
    rho = {("l2", False): 0.5, ("l2", True): 1.0}.get((norm, adaptive), 0.05)
    values = [
        worst_case_sharpness(
            relu_net(), CROSS_ENTROPY, class_data(), rho=rho, norm=norm, adaptive=adaptive, steps=steps
        ).value
        for steps in (1, 20)
    ]
    assert values[1] >= values[0] > 0


def test_all_cases(case):
    """Every kind of network of the shared fixture: for small rho rho ||g|| + O(rho^2), from its gradient."""
    found = worst_case_sharpness(case.model, case.loss, case.data, rho=1e-5, mode=case.mode, params=case.params)
    named = dict(case.model.named_parameters())
    names = list(case.params or [name for name, p in named.items() if p.requires_grad])
    twin = copy.deepcopy(case.model)
    twin.train(case.mode == "train").requires_grad_(True)
    chosen = [dict(twin.named_parameters())[name] for name in names]
    gradients = torch.autograd.grad(case.loss(twin(case.inputs), case.targets), chosen)
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert found.value == pytest.approx(1e-5 * length, rel=1e-3) and found.mode == case.mode


def test_cost_and_repr():
    """Eight batches, 20 steps: 20 gradients and 21 losses of each batch, and one pass of the first look, no more."""
    calls: list[bool] = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(torch.is_grad_enabled())
            return x

    model = nn.Sequential(Counted(), relu_net())
    found = worst_case_sharpness(model, CROSS_ENTROPY, class_data(64), rho=0.1, m=8, batch_size=8)
    assert sum(calls) == 160 and len(calls) - sum(calls) <= 8 + 8 + 3
    assert "value=" in repr(found) and found.to_dict()["batches"] == 8
