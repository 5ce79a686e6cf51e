"""The diagonal and the curvature of activations against dense float64 Hessians."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import CROSS_ENTROPY, class_data, relu_net, state

from sharpness import (
    add_offset,
    diagonal,
    flat_weights,
    ggn,
    hessian,
    named_tensors,
    top_eigenvalues,
    trace,
    worst_case_sharpness,
)

torch.set_num_threads(1)


def test_exact_diagonal(case):
    op = hessian(case.model, case.loss, case.data, params=case.params, mode=case.mode)
    dense = case.dense_hessian()
    for found in (diagonal(op, exact=True, matvecs=2), diagonal(op, matvecs=10**6)):
        np.testing.assert_allclose(found.values, np.diag(dense), atol=1e-12)
        assert found.status == "exact" and not found.standard_error.any() and found.method == "unit vectors"
    assert found.trace == pytest.approx(np.trace(dense)) and found.matvecs == len(dense)


def test_estimates_are_unbiased_and_their_errors_right():
    """Over 400 seeds: mean within its error, and the stated error that of the scatter."""
    a = np.random.default_rng(0).standard_normal((12, 12))
    matrix = a + a.T
    found = [diagonal(matrix, matvecs=6, seed=seed) for seed in range(400)]
    off = np.array([f.values - np.diag(matrix) for f in found])
    assert np.abs(off.mean(axis=0)).max() < 4 * off.std(axis=0).max() / 20
    stated = np.sqrt(np.mean([f.standard_error**2 for f in found], axis=0))
    np.testing.assert_allclose(stated, off.std(axis=0), rtol=0.12)
    truth = np.sqrt((np.square(matrix).sum(axis=1) - np.diag(matrix) ** 2) / 6)
    np.testing.assert_allclose(stated, truth, rtol=0.1)
    assert diagonal(np.diag([1.0, 2.0, 3.0]), matvecs=2).standard_error.max() == 0  # no error: nothing off the diagonal


def test_diagonal_that_is_not_finite():
    found = diagonal(np.full((5, 5), np.nan), matvecs=3)
    assert found.status == "nonfinite" and np.isnan(found.values).all() and np.isnan(found.standard_error).all()


def test_named_tensors_are_the_inverse_of_flat_weights():
    model = relu_net()
    for params in (None, ["4.bias", "0.weight"]):
        named = named_tensors(model, flat_weights(model, params=params), params=params)
        own = dict(model.named_parameters())
        assert list(named) == (params or list(own)) and all(torch.equal(t, own[k]) for k, t in named.items())
    op = hessian(model, CROSS_ENTROPY, class_data(), params=["0.weight"])
    assert named_tensors(model, top_eigenvalues(op).vectors[0], params=op.names)["0.weight"].shape == (12, 6)


class Nested(nn.Module):
    """A module inside a module, and batch normalisation on the way."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), "second": nn.Linear(5, 3)})

    def forward(self, x):
        return self.body["second"](torch.tanh(self.body["first"](x)))

    def after(self, name, z):
        """The rest of the network, from what `name` gave."""
        if name == "":
            return self(z)
        z = self.body["first"][1](z) if name == "body.first.0" else z
        return z if name == "body.second" else self.body["second"](torch.tanh(z))

    def until(self, name, x):
        if name == "":
            return x
        first = self.body["first"][0](x)
        return {"body.first.0": first, "body.first": self.body["first"](x)}.get(name, self(x))


@pytest.mark.parametrize("at", ["", "body.first.0", "body.first", "body.second"])
@pytest.mark.parametrize("shared", [False, True])
def test_curvature_of_activations(at, shared):
    torch.manual_seed(0)
    model, (x, t) = Nested().double(), class_data(7)
    model(x)  # running statistics that are not those of a new layer
    model.eval()
    before = state(model)
    shifted, name = add_offset(model, x, at=at, shared=shared)
    assert torch.equal(shifted(x), model(x)) and name == (f"{at}.offset" if at else "offset")
    data = [(x, t)]
    z = model.until(at, x).detach()
    d = torch.zeros_like(z[:1] if shared else z)
    dense = torch.autograd.functional.hessian(lambda d: CROSS_ENTROPY(model.after(at, z + d), t), d)
    dense = dense.reshape(d.numel(), d.numel()).numpy()
    op = hessian(shifted, CROSS_ENTROPY, data, params=[name])
    np.testing.assert_allclose(op @ np.eye(len(dense)), dense, atol=1e-13)
    assert top_eigenvalues(op, tol=1e-8).value == pytest.approx(np.linalg.eigvalsh(dense)[-1])
    assert trace(op, matvecs=1000).value == pytest.approx(np.trace(dense))
    assert worst_case_sharpness(shifted, CROSS_ENTROPY, data, rho=0.1, params=[name]).value > 0
    assert ggn(shifted, CROSS_ENTROPY, data, params=[name]).shape == dense.shape
    assert state(model) == before


def test_an_offset_shares_the_models_weights_and_leaves_its_tree():
    model, (x, _) = Nested().double().eval(), class_data(4)
    tree, copied = [id(m) for m in model.modules()], copy.deepcopy(model.state_dict())
    shifted, _ = add_offset(model, x, at="body.first.0")
    assert {id(p) for p in model.parameters()} < {id(p) for p in shifted.parameters()}
    assert [id(m) for m in model.modules()] == tree and model.state_dict().keys() == copied.keys()
    with torch.no_grad():
        model.body["second"].bias += 1.0
    assert torch.equal(shifted(x), model(x))


def test_offsets_that_have_no_meaning_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return self.inner(self.inner(x))

    x, t = class_data(4, torch.float32)
    with pytest.raises(ValueError, match="runs 2 times"):
        add_offset(Twice(), x, at="inner")
    with pytest.raises(ValueError, match="floating-point tensor"):
        add_offset(nn.Embedding(9, 3), t)
    with pytest.raises(ValueError, match="name a module"):
        add_offset(Twice(), x, at="outer")
