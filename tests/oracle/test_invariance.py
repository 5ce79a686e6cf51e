"""What a measurement must not depend on: batches, the order of the data, threads, and how often it was made."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch

import sharpness

MEASURES: dict[str, Callable] = {
    "lambda": lambda *a, **o: sharpness.top_eigenvalues(sharpness.hessian(*a, **o), tol=1e-8).value,
    "ggn lambda": lambda *a, **o: sharpness.top_eigenvalues(sharpness.ggn(*a, **o), tol=1e-8).value,
    "trace": lambda *a, **o: sharpness.trace(sharpness.hessian(*a, **o), matvecs=20).value,
    "phi": lambda *a, **o: sharpness.epsilon_sharpness(*a, **o).value,
    "phi, subspace": lambda *a, **o: sharpness.epsilon_sharpness(*a, subspace=5, **o).value,
    "random": lambda *a, **o: sharpness.random_perturbation(*a, sigma=0.05, **o).value,
    "pac-bayes": lambda *a, **o: sharpness.pac_bayes_sigma(*a, quantity="loss", loss_rise=0.1, **o).value,
    "worst case": lambda *a, **o: sharpness.worst_case_sharpness(*a, rho=0.1, adaptive=True, **o).value,
    "average": lambda *a, **o: sharpness.average_case_sharpness(*a, rho=0.1, **o).value,
    "fisher-rao": lambda *a, **o: sharpness.fisher_rao_norm(*a, **o).value,
    "relative trace": lambda *a, **o: sharpness.relative_trace(*a, probes=5, **o).value,
    "noise": lambda *a, **o: sharpness.gradient_noise(*a, **o).data_value,
    "basin": lambda *a, **o: sharpness.basin_radius(*a, rise=0.5, directions=3, **o).value,
}


@pytest.mark.parametrize("name", list(MEASURES))
def test_batches_and_order_change_rounding_only(make_case, name):
    """13 examples in batches of 5, and in another order: a batch counted by itself would show."""
    case = make_case("mlp")
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    shuffled = case.inputs[order], case.targets[order]
    expected = MEASURES[name](case.model, case.loss, case.data)
    assert np.isfinite(expected) and expected != 0
    for data, options in ((case.data, {"batch_size": 5}), (shuffled, {}), (shuffled, {"batch_size": 4})):
        found = MEASURES[name](case.model, case.loss, data, **options)
        assert abs(found - expected) <= 1e-6 * abs(expected), (options, found, expected)


@pytest.mark.parametrize("name", ["lambda", "trace", "phi", "worst case", "noise"])
def test_threads_change_rounding_only(make_case, name):
    case = make_case("bn eval")
    expected = MEASURES[name](case.model, case.loss, case.data)
    torch.set_num_threads(2)
    try:
        found = MEASURES[name](case.model, case.loss, case.data)
    finally:
        torch.set_num_threads(1)
    assert abs(found - expected) <= 1e-6 * abs(expected)


@pytest.mark.parametrize("name", list(MEASURES))
def test_the_same_call_gives_the_same_number(make_case, name):
    """Anything drawn from a global generator would differ, and so would a state left behind."""
    case = make_case("mlp")
    first = MEASURES[name](case.model, case.loss, case.data)
    torch.rand(5)
    np.random.rand(5)
    assert MEASURES[name](case.model, case.loss, case.data) == first


@pytest.mark.parametrize("memory", [0, 2**30])
def test_hundreds_of_products_leave_nothing_behind(make_case, memory):
    """No graph, gradient or cycle may stay with a product."""
    case = make_case("mlp")
    op = sharpness.hessian(case.model, case.loss, case.data, batch_size=5, memory=memory)
    v = np.ones(op.shape[0])

    def tensors_after(products: int) -> int:
        for _ in range(products):
            op @ v
        gc.collect()
        return sum(issubclass(type(obj), torch.Tensor) for obj in gc.get_objects())

    before = tensors_after(50)
    assert tensors_after(300) <= before
