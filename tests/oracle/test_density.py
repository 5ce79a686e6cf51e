"""Stochastic Lanczos quadrature against dense spectra; its errors against the true ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm

from sharpness.linalg.density import spectral_density
from sharpness.operators.curvature import hessian

N = 60
SPECTRA = {"fast decay": 2.0 ** -np.arange(N),
           "flat": 1 + 0.5 * np.random.default_rng(1).random(N),
           "indefinite": np.random.default_rng(2).standard_normal(N)}


def dense(eigenvalues):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_stated_errors_are_the_true_ones(spectrum):
    eigenvalues = np.sort(SPECTRA[spectrum])
    matrix, sigma = dense(eigenvalues), np.ptp(eigenvalues) / 10
    grid = np.linspace(eigenvalues[0], eigenvalues[-1], 5)
    found = [spectral_density(matrix, probes=6, steps=25, grid=grid, sigma=sigma, seed=s) for s in range(250)]
    z = (grid[:, None] - eigenvalues) / sigma
    for name, errors, truth in (("values", "standard_error", norm.pdf(z).mean(1) / sigma),
                                ("cumulative", "cumulative_error", norm.cdf(z).mean(1))):
        true = np.mean([(getattr(f, name) - truth) ** 2 for f in found], axis=0)
        ratio = np.sqrt(np.mean([getattr(f, errors) ** 2 for f in found], axis=0) / true)
        assert np.all((ratio > 0.8) & (ratio < 1.5)), (name, ratio)
    for f in (np.tanh, np.square, np.exp):
        value, stated = np.array([d.integrate(f) for d in found]).T
        ratio = np.sqrt(np.mean(stated**2) / np.mean((value - f(eigenvalues).mean()) ** 2))
        assert 0.8 < ratio < 1.5, ratio


def test_no_ghosts():
    """Without reorthogonalisation an outlier comes back as a second node long before 200 steps."""
    n = 400
    matrix = np.diag(np.r_[100.0, np.random.default_rng(0).random(n - 1)])
    found = spectral_density(matrix, probes=60, steps=200)
    for nodes in found.nodes:
        assert len(nodes) == 200 and np.sum(nodes > 1.01) == 1 and abs(nodes[-1] - 100) < 1e-9
    weights = np.array([w[-1] for w in found.weights])
    assert abs(weights.mean() - 1 / n) < 3.5 * weights.std() / np.sqrt(60)
    value, error = found.integrate(lambda t: t > 50)
    assert value == pytest.approx(weights.mean()) and 0 < error < value


def test_breakdown_is_exact():
    """Few distinct eigenvalues: the chain ends, and what is left is the exact measure of each start."""
    matrix = dense(np.repeat([-3.0, 0.0, 2.0], N // 3))
    found = spectral_density(matrix, probes=40)
    assert found.matvecs == 3 * 40 and found.status == "ok"
    np.testing.assert_allclose(np.array(found.nodes), [[-3, 0, 2]] * 40, atol=1e-12)
    weights = np.array(found.weights)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    assert np.all(np.abs(weights.mean(0) - 1 / 3) < 3.5 * weights.std(0) / np.sqrt(40))


def test_single_precision_products_break_down_too():
    class Single:
        shape, dtype = (N, N), np.dtype(np.float32)
        matrix = dense(np.repeat([-3.0, 0.0, 2.0], N // 3)).astype(np.float32)

        def __matmul__(self, v):
            return self.matrix @ v.astype(np.float32)

    found = spectral_density(Single(), probes=4)
    assert found.dtype == "float32" and np.trapezoid(found.values, found.grid) == pytest.approx(1, abs=2e-3)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        near = np.min(np.abs(nodes[:, None] - [-3, 0, 2]), axis=1)
        assert np.sum(weights[near > 1e-4]) < 1e-6


def test_each_probe_is_exact_for_polynomials():
    """k steps integrate degree 2 k - 1: compared with v^T f(H) v of the same start."""
    matrix = dense(SPECTRA["indefinite"])
    found = spectral_density(matrix, probes=2, steps=4, seed=5)
    starts = np.random.default_rng(5).standard_normal((2, N))
    for v, nodes, weights in zip(starts, found.nodes, found.weights, strict=True):
        v = v / np.linalg.norm(v)
        for degree in range(8):
            truth = v @ np.linalg.matrix_power(matrix, degree) @ v
            assert weights @ nodes**degree == pytest.approx(truth, rel=1e-10, abs=1e-12)


def test_density_is_one():
    found = spectral_density(dense(SPECTRA["indefinite"]))
    assert np.trapezoid(found.values, found.grid) == pytest.approx(1, abs=1e-3)
    assert np.all(np.diff(found.cumulative) >= 0) and found.cumulative[-1] == pytest.approx(1, abs=1e-3)
    slope = np.gradient(found.cumulative, found.grid)
    np.testing.assert_allclose(slope, found.values, atol=0.02 * found.values.max())
    moments, errors = found.moments(3)
    truth = [np.mean(SPECTRA["indefinite"] ** k) for k in (1, 2, 3)]
    assert np.all(np.abs(moments - truth) < 4 * errors)


@pytest.mark.parametrize("diagonal", [[5.0, -5, 1], [3.0], [0.0] * 9, [2.0] * 5, [1e-30, 2e-30], [-1e100]])
def test_small(diagonal):
    found = spectral_density(np.diag(diagonal), probes=3)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        np.testing.assert_allclose(nodes, np.unique(diagonal), rtol=1e-12)
        assert weights.sum() == pytest.approx(1)
    assert found.sigma > 0 and np.trapezoid(found.values, found.grid) == pytest.approx(1, abs=1e-3)


def test_nonfinite():
    found = spectral_density(np.full((9, 9), np.nan), grid=[0.0, 1.0])
    assert found.status == "nonfinite" and np.isnan(found.values).all() and len(found.values) == 2
    assert np.isnan(found.integrate(np.exp)).all() and np.isnan(found.moments()[0]).all()
    assert json.loads(json.dumps(found.to_dict()))["values"] == [None, None]


def test_refusals():
    matrix = dense(SPECTRA["flat"])
    for wrong in ({"probes": 1}, {"steps": 0}, {"steps": 2.5}, {"sigma": 0.0}, {"sigma": np.nan}, {"sigma": 1e-9},
                  {"grid": [np.nan]}, {"grid": []}, {"grid": 512}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            spectral_density(matrix, **wrong)
    with pytest.raises(ValueError, match="order"):
        spectral_density(matrix).moments(0)
    with pytest.raises(ValueError, match="symmetric"):
        spectral_density(np.triu(np.ones((9, 9))))
    with pytest.raises(ValueError, match="square"):
        spectral_density(np.ones((2, 3)))


def test_network(make_case):
    """On a real Hessian: two seeds agree within their errors, and with the dense spectrum."""
    case = make_case("mlp")
    h, op = case.dense_hessian(), hessian(case.model, case.loss, case.data)
    eigenvalues, grid = np.linalg.eigvalsh(h), np.linspace(-0.2, 1.0, 7)
    first, second = (spectral_density(op, probes=8, steps=60, grid=grid, sigma=0.1, seed=s) for s in (0, 1))
    truth = norm.pdf(grid[:, None], eigenvalues, 0.1).mean(1)
    together = np.hypot(first.standard_error, second.standard_error)
    assert np.all(np.abs(first.values - second.values) < 4.5 * together)
    assert np.all(np.abs(first.values - truth) < 5 * first.standard_error + 1e-12)
    value, error = first.integrate(np.abs)
    assert abs(value - np.abs(eigenvalues).mean()) < 4 * error
    assert (first.n, first.examples, first.mode) == (len(h), 13, "eval")
    # Softmax has a null space: 7 of 57 eigenvalues are 0, and the chains end before n steps.
    assert first.matvecs == op.matvecs - second.matvecs == sum(map(len, first.nodes)) < 8 * len(h)


def test_same_seed_same_bits():
    matrix = dense(SPECTRA["flat"])
    first, second, other = (spectral_density(matrix, probes=3, steps=20, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.values, second.values)
    assert not np.array_equal(first.values, other.values)


def test_groups_of_probes_change_nothing(monkeypatch):
    """Large n: probes go a few at a time."""
    matrix = dense(SPECTRA["flat"])
    whole = spectral_density(matrix, probes=5, steps=20)
    monkeypatch.setattr("sharpness.linalg.density._BASIS_BYTES", 8 * N * 20 * 2)
    parts = spectral_density(matrix, probes=5, steps=20)
    assert parts.matvecs == whole.matvecs and len(parts.nodes) == 5
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-6)
