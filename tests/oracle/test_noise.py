"""Gradient noise against loops, closed forms and known distributions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import MSE, Failing, linear, loop, state

from sharpness.gradients.alignment import batch_sharpness, gradient_hessian_overlap
from sharpness.gradients.noise import gradient_noise, noise_scale_from_batches


def test_moments_and_independence_of_batches(make_case):
    case = make_case("tied")
    g = loop(case.model, case.loss, *case.data)
    sigma = np.cov(g.T)
    for batch_size in (None, 1, 5):
        noise = gradient_noise(case.model, case.loss, case.data, batch_size=batch_size)
        squared = np.sum(g.mean(axis=0) ** 2)
        assert noise.trace == pytest.approx(np.trace(sigma), rel=1e-12)
        assert noise.gradient_squared == pytest.approx(squared, rel=1e-12)
        assert noise.population_gradient_squared == pytest.approx(squared - np.trace(sigma) / 13, rel=1e-11)
        assert noise.data_value == pytest.approx(np.trace(sigma) / squared, rel=1e-12)


def test_the_jackknife_is_that_of_leaving_out(make_case):
    """The closed form of all N leave-one-out values, against leaving out."""
    case = make_case("regression")
    g = loop(case.model, case.loss, *case.data)
    noise = gradient_noise(case.model, case.loss, case.data)

    def parts(rows):
        trace = np.trace(np.cov(rows.T))
        return trace, np.sum(rows.mean(axis=0) ** 2) - trace / len(rows)

    without = np.array([parts(np.delete(g, i, axis=0)) for i in range(13)])
    errors = np.sqrt(12 / 13 * np.sum((without - without.mean(axis=0)) ** 2, axis=0))
    np.testing.assert_allclose([noise.trace_error, noise.population_gradient_squared_error], errors, rtol=1e-9)


def test_linear_regression_covariance():
    """g = 2 x (x.w - y); with y = e independent noise of variance s^2 and w = 0: Sigma = 4 s^2 E[x x^T]."""
    rng = np.random.default_rng(0)
    scales = np.array([1.0, 2.0, 0.5])
    x = torch.from_numpy(rng.standard_normal((40000, 3)) * scales)
    y = torch.from_numpy(0.7 * rng.standard_normal((40000, 1)))
    noise = gradient_noise(linear(np.zeros(3)), MSE, (x, y))
    assert abs(noise.trace - 4 * 0.49 * np.sum(scales**2)) < 4 * noise.trace_error
    assert noise.status == "unresolved" and np.isnan(noise.value) and noise.data_value > 1000


def by_gradients(g):
    """Data whose per-example gradients at w = 0 are the rows given: loss = w . g_i."""
    data = torch.from_numpy(g), torch.zeros(len(g), 1, dtype=torch.float64)
    return gradient_noise(linear(np.zeros(g.shape[1])), lambda outputs, _: outputs.mean(), data)


def test_interval_covers_the_true_noise_scale():
    """B_simple of a known normal distribution lies within the stated interval in at least 90% of draws."""
    rng, deviations, mean = np.random.default_rng(1), np.array([3.0, 2.0, 1.0, 1.0]), np.array([1.0, 1.0, 0, 0])
    true = np.sum(deviations**2) / 2
    inside, values = 0, []
    for _ in range(300):
        noise = by_gradients(mean + deviations * rng.standard_normal((300, 4)))
        assert noise.status == "ok"
        inside += noise.interval[0] <= true <= noise.interval[1]
        values.append(noise.value)
    assert 270 <= inside <= 298
    assert abs(np.mean(values) - true) < 4 * np.std(values) / np.sqrt(300) + 0.05 * true


def test_denominator_is_unbiased_where_the_naive_one_is_not():
    rng, true = np.random.default_rng(2), 0.25
    found = [by_gradients(0.25 + rng.standard_normal((30, 4))) for _ in range(225)]
    unbiased = np.array([f.population_gradient_squared for f in found])
    naive = np.array([f.gradient_squared for f in found])
    error = unbiased.std() / 15
    assert abs(unbiased.mean() - true) < 4 * error and naive.mean() - true > 4 * error


def test_degenerate_noise():
    """Equal examples have no noise; no gradient has no ratio; overflow has no value."""
    same = by_gradients(np.ones((5, 2)))
    assert same.value == 0.0 and same.status == "ok" and same.interval.tolist() == [0.0, 0.0]
    none = by_gradients(np.zeros((5, 2)))
    assert none.status == "unresolved" and np.isnan(none.value) and np.isnan(none.data_value)
    with np.errstate(all="ignore"):
        big = by_gradients(np.full((5, 2), 1e200))
    assert big.status == "nonfinite" and np.isnan(big.value)
    assert '"value": null' in json.dumps(big.to_dict())


def test_two_batch_sizes_recover_the_scale():
    """The estimate is unbiased; without replacement it needs N to be that of the data."""
    rng, g = np.random.default_rng(3), np.random.default_rng(4).standard_normal((60, 5)) + 0.5
    trace, squared = np.trace(np.cov(g.T)), np.sum(g.mean(axis=0) ** 2)

    def norms(size, m, replace):
        picks = [rng.choice(60, size, replace=replace) for _ in range(m)]
        return np.array([np.sum(g[p].mean(axis=0) ** 2) for p in picks])

    small, big = norms(4, 20000, False), norms(30, 20000, False)
    scale = noise_scale_from_batches(small, big, small=4, big=30, examples=60)
    assert scale.trace == pytest.approx(trace, rel=0.03)
    assert scale.gradient_squared == pytest.approx(squared, rel=0.03)
    assert scale.interval[0] < trace / squared < scale.interval[1]
    population = noise_scale_from_batches(small, big, small=4, big=30)
    assert population.gradient_squared == pytest.approx(scale.gradient_squared - scale.trace / 60)
    shards = noise_scale_from_batches(np.stack([small, small], axis=1), big, small=4, big=30)
    assert shards.value == pytest.approx(population.value)


def test_batch_estimator_refuses_and_reports():
    for arguments in (([1.0, 2.0], [1.0, 2.0]), ([1.0], [1.0, 2.0, 3.0]), ([[[1.0]]], [1.0])):
        with pytest.raises(ValueError):
            noise_scale_from_batches(*arguments, small=1, big=2)
    with pytest.raises(ValueError, match="small < big"):
        noise_scale_from_batches([1.0] * 3, [1.0] * 3, small=2, big=2)
    noisy = noise_scale_from_batches([4.0, 9.0, 1.0], [2.0, 5.0, 0.1], small=1, big=2)
    assert noisy.status == "unresolved" and np.isnan(noisy.value)
    assert noise_scale_from_batches([np.nan, 1, 1], [1, 1, 1], small=1, big=2).status == "nonfinite"


class Counter(nn.Module):
    """Replaces its buffer at each forward pass: inside a map, that buffer would outlive the map."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.calls = self.calls + x.detach().mean()
        return x


def measures(model, loss):
    torch.manual_seed(3)
    data = torch.randn(9, 4), torch.randint(0, 3, (9,))
    gradient_noise(model, loss, data, batch_size=4)
    n = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gradient_hessian_overlap(model, loss, data, np.eye(n), np.eye(n)[:2], mixtures=2)
    batch_sharpness(model, loss, data, batch=3, batches=2)


@pytest.mark.parametrize("at", [np.inf, 2, 5, 9, 12, 20, 24, 26])
def test_model_untouched(at):
    """Exceptions at any call included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), Counter(), nn.Dropout(0.5), nn.Linear(6, 3))
    model(torch.randn(8, 4)).sum().backward()
    model[4].requires_grad_(False)
    model[3].eval()
    torch.manual_seed(3)
    torch.randn(9, 4), torch.randint(0, 3, (9,))

    before = state(model)
    try:
        measures(model, Failing(at))
    except KeyboardInterrupt:
        assert at < np.inf
    assert state(model) == before
