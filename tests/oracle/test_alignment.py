"""Gradients beside the Hessian's leading directions, and the sharpness of batches, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_nets import MSE, linear, loop

from sharpness import hessian, top_eigenvalues
from sharpness.gradients.alignment import batch_sharpness, gradient_hessian_overlap
from sharpness.problem.make_problem import make_problem


def test_overlap_against_dense(make_case):
    case = make_case("mlp")
    g, h = loop(case.model, case.loss, *case.data), make_case("mlp").dense_hessian()
    mean, sigma = g.mean(axis=0), np.cov(g.T)
    op = hessian(case.model, case.loss, case.data)
    vectors = np.linalg.eigh(h)[1][:, ::-1][:, :3].T
    found = gradient_hessian_overlap(case.model, case.loss, case.data, op, vectors, mixtures=200, batch_size=5)
    squared = mean @ mean
    np.testing.assert_allclose(found.shares, (vectors @ mean) ** 2 / squared, rtol=1e-8)
    assert found.value == pytest.approx(np.sum((vectors @ mean) ** 2) / squared)
    assert found.noise_share == pytest.approx(np.trace(vectors @ sigma @ vectors.T) / np.trace(sigma))
    assert found.curvature == pytest.approx(mean @ h @ mean / squared)
    assert found.lambda_max == pytest.approx(np.linalg.eigvalsh(h)[-1])
    true = np.trace(h @ sigma) / np.trace(sigma)
    assert abs(found.noise_curvature - true) < 4 * found.noise_curvature_error
    each = np.einsum("ij,jk,ik->", g, h, g) / np.sum(g**2)
    assert abs(found.example_curvature - each) < 4 * found.noise_curvature_error
    other = gradient_hessian_overlap(case.model, case.loss, case.data, op, vectors, mixtures=200, seed=1)
    assert abs(other.noise_curvature - found.noise_curvature) < 5 * found.noise_curvature_error
    without = [np.delete(g, i, axis=0).mean(axis=0) for i in range(13)]
    shares = np.array([np.sum((vectors @ m) ** 2) / (m @ m) for m in without])
    assert found.standard_error == pytest.approx(np.sqrt(12 * np.mean((shares - shares.mean()) ** 2)))
    assert found.chance == 3 / len(mean) and found.status == "ok"


def test_overlap_takes_ritz_vectors_and_refuses_what_is_wrong(make_case):
    case = make_case("mlp")
    op = hessian(case.model, case.loss, case.data)
    vectors = top_eigenvalues(op, 2).vectors
    assert 0 < gradient_hessian_overlap(case.model, case.loss, case.data, op, vectors).value < 1
    n = op.shape[0]
    everything = gradient_hessian_overlap(case.model, case.loss, case.data, np.eye(n), np.eye(n))
    assert everything.value == pytest.approx(1) and everything.curvature == pytest.approx(1)
    for wrong in (vectors[:, 1:], np.vstack([vectors, vectors[:1]]), vectors[0], None):
        with pytest.raises(ValueError):
            gradient_hessian_overlap(case.model, case.loss, case.data, op, wrong)
    with pytest.raises(ValueError, match="same params"):
        gradient_hessian_overlap(case.model, case.loss, case.data, np.eye(3), vectors)
    flat = gradient_hessian_overlap(
        linear(np.zeros(2)),
        MSE,
        (torch.ones(4, 2).double(), torch.zeros(4, 1).double()),
        np.eye(2),
        np.eye(2)[:1],
    )
    assert flat.status == "undefined" and np.isnan([flat.value, flat.noise_share, flat.example_curvature]).all()


def test_batch_sharpness_of_a_quadratic():
    """loss = mean (x.w - y)^2: g_B and H_B = 2 X^T X / B are known for each batch."""
    rng = np.random.default_rng(0)
    x, y, w = rng.standard_normal((20, 3)), rng.standard_normal((20, 1)), np.array([0.5, -1.0, 2.0])
    data, model = (torch.from_numpy(x), torch.from_numpy(y)), linear(w)

    def one(a, b):
        h, g = 2 * a.T @ a / len(a), 2 * a.T @ (a @ w - b[:, 0]) / len(a)
        return g @ h @ g, g @ g

    full = batch_sharpness(model, MSE, data, batch=20, batches=2)
    top, bottom = one(x, y)
    assert full.value == pytest.approx(top / bottom) and full.standard_error == pytest.approx(0, abs=1e-12)
    parts = [(data[0][i : i + 7], data[1][i : i + 7]) for i in (0, 7, 14)]
    ragged = batch_sharpness(model, MSE, parts)
    forms = np.array([one(a.numpy(), b.numpy()) for a, b in parts])
    np.testing.assert_allclose(ragged.curvatures, forms[:, 0], rtol=1e-12)
    np.testing.assert_allclose(ragged.squares, forms[:, 1], rtol=1e-12)
    assert ragged.value == pytest.approx(forms[:, 0].sum() / forms[:, 1].sum()) and ragged.evaluations == 1
    assert batch_sharpness(model, MSE, parts, batches=1).standard_error is None
    single = batch_sharpness(model, MSE, data, batch=1, batches=600)
    pairs = np.array([one(a[None], b[None]) for a, b in zip(x, y, strict=True)]).sum(axis=0)
    assert abs(single.value - pairs[0] / pairs[1]) < 4 * single.standard_error
    again = batch_sharpness(model, MSE, data, batch=1, batches=300, seed=5)
    assert abs(single.value - again.value) < 4 * np.hypot(single.standard_error, again.standard_error)


def test_batch_sharpness_with_batch_statistics_and_dropout(make_case):
    """In train mode g and H of a batch belong to the same function: same statistics, same masks."""
    case = make_case("bn train")
    found = batch_sharpness(case.model, case.loss, [case.data], mode="train")
    h = case.dense_hessian()
    op = hessian(case.model, case.loss, case.data, mode="train")
    problem = make_problem(case.model, case.loss, case.data, mode="train")
    with problem.untouched():
        g = problem.mean_loss_and_gradient()[1]
    assert found.value == pytest.approx(g @ h @ g / (g @ g)) == pytest.approx(g @ (op @ g) / (g @ g))


def test_batch_sharpness_edges(make_case):
    case = make_case("mlp")
    for options in ({}, {"batch": 0}, {"batch": 14}, {"batch": 2, "batches": 0}, {"batch": True}):
        with pytest.raises(ValueError):
            batch_sharpness(case.model, case.loss, case.data, **options)
    with pytest.raises(ValueError, match="None for data in batches"):
        batch_sharpness(case.model, case.loss, [case.data], batch=2)
    zero = batch_sharpness(linear([0.0]), MSE, [(torch.ones(2, 1).double(), torch.zeros(2, 1).double())])
    assert zero.status == "undefined" and np.isnan(zero.value)
