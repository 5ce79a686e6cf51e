"""Against other tools: the same products and eigenvalues, in float64 and float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from sharpness import fisher, ggn, hessian, top_eigenvalues

REASON = "a peer, installed by make test"
curvlinops: Any = pytest.importorskip("curvlinops", reason=REASON)
eigenthings: Any = pytest.importorskip("hessian_eigenthings", reason=REASON)
pyhessian: Any = pytest.importorskip("pyhessian", reason=REASON)
lanczos: Any = pytest.importorskip("hessian_eigenthings.algorithms.lanczos", reason=REASON).lanczos
losses: Any = pytest.importorskip("hessian_eigenthings.loss_fns.standard", reason=REASON)

pytestmark = pytest.mark.filterwarnings("ignore:Using backward")  # PyHessian's leak, as torch sees it


def parameters(case):
    named = dict(case.model.named_parameters())
    return [named[name] for name in case.params or [n for n, p in named.items() if p.requires_grad]]


def in_dtype(case, dtype):
    """The case's model and data in another precision."""
    targets = case.targets.to(dtype) if case.targets.is_floating_point() else case.targets
    return case.model.to(dtype), [(case.inputs.to(dtype), targets)]


def linear_operator(case, dtype=torch.float64, kind="Hessian", **options):
    if case.mode == "train":
        pytest.skip("curvlinops refuses running statistics that change under vmap")
    model, data = in_dtype(case, dtype)
    make = getattr(curvlinops, f"{kind}LinearOperator")
    return make(model.eval(), case.loss, parameters(case), data, check_deterministic=False, **options)


def ours(case, dtype=torch.float64, make=hessian, **options):
    model, data = in_dtype(case, dtype)
    return make(model, case.loss, data, params=case.params, mode=case.mode, **options)


TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def test_products_equal_curvlinops(case, dtype):
    """Forward over reverse mode there: another route to the same product."""
    op = ours(case, dtype)
    v = np.random.default_rng(0).standard_normal((op.shape[0], 3))
    theirs = (linear_operator(case, dtype) @ torch.from_numpy(v).to(dtype)).double().numpy()
    np.testing.assert_allclose(op @ v, theirs, rtol=0, atol=TOLERANCE[dtype] * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("kind", "make", "options"),
    [
        ("GGN", ggn, {}),
        ("GGN", fisher, {"kind": "true"}),  # equal for cross-entropy and squared error (Martens 2020)
        ("EF", fisher, {"kind": "empirical"}),
    ],
    ids=["ggn", "true Fisher", "empirical Fisher"],
)
def test_other_matrices_equal_curvlinops(case, dtype, kind, make, options):
    if kind == "EF" and isinstance(case.loss, nn.MSELoss):
        pytest.skip("curvlinops takes each entry of the outputs for an example there")
    theirs = linear_operator(case, dtype, kind)
    op = ours(case, dtype, make, **options)
    v = np.random.default_rng(0).standard_normal((op.shape[0], 2))
    expected = (theirs @ torch.from_numpy(v).to(dtype)).double().numpy()
    np.testing.assert_allclose(op @ v, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


def test_the_mean_of_sampled_fishers_equals_the_mean_of_curvlinops(make_case):
    """Both sample targets from the model: many draws of either are the true Fisher."""
    case, draws = make_case("linear softmax"), 80
    exact = ours(case, make=fisher) @ np.eye(18)
    mine = sum(ours(case, make=fisher, kind="sampled", seed=s) @ np.eye(18) for s in range(draws)) / draws
    theirs = linear_operator(case, kind="FisherMC", mc_samples=draws) @ torch.eye(18, dtype=torch.float64)
    for estimate in (mine, theirs.numpy()):
        assert np.linalg.norm(estimate - exact) < 4 * np.linalg.norm(exact) / np.sqrt(13 * draws) * 2


def test_eigenvalues_equal_curvlinops_and_scipy(case, dtype):
    theirs = eigsh(linear_operator(case, dtype).to_scipy(), 3, which="LA", return_eigenvectors=False)
    found = top_eigenvalues(ours(case, dtype), 3, tol=1e-5)
    np.testing.assert_allclose(found.values, np.sort(theirs)[::-1], rtol=10 * TOLERANCE[dtype] + 1e-6)


@pytest.mark.parametrize("name", ["linear softmax", "mlp", "regression", "dropout in eval", "tied", "bn eval"])
def test_products_and_eigenvalues_equal_hessian_eigenthings(make_case, name):
    """Their Lanczos, with as many steps as there are parameters, is exact."""
    case = make_case(name)
    case.model.eval()
    theirs = eigenthings.HessianOperator(case.model, [case.data], losses.supervised_loss(case.loss))
    op = ours(case)
    n = op.shape[0]
    v = np.random.default_rng(0).standard_normal(n)
    product = theirs.matvec(torch.from_numpy(v)).numpy()
    np.testing.assert_allclose(op @ v, product, rtol=0, atol=1e-12 * np.abs(product).max())
    values = lanczos(theirs, k=3, max_iter=min(n, 40), which="LA", reorthogonalize=True, seed=0).eigenvalues
    np.testing.assert_allclose(top_eigenvalues(op, 3, tol=1e-6).values, values.numpy(), rtol=1e-5)


def test_eigenvalue_equals_pyhessian(make_case):
    """Power iteration: far from exact, but by another hand."""
    case = make_case("mlp")
    model, data = in_dtype(case, torch.float32)
    found = top_eigenvalues(hessian(model, case.loss, data)).value
    torch.manual_seed(0)
    (value,), _ = pyhessian.hessian(model, case.loss, data=data[0], cuda=False).eigenvalues(1000, 1e-6)
    assert found == pytest.approx(value, rel=2e-3)
