"""Random perturbations against closed forms of quadratics and linear classifiers."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import CROSS_ENTROPY, classification, expected_drop, own_labels, quadratic_model, regression, relu_net, state

from sharpness.flatness.average_case import average_case_sharpness
from sharpness.flatness.pac_bayes import pac_bayes_sigma
from sharpness.flatness.perturbation import random_perturbation


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("scaling", ["plain", "magnitude", "average"])
def test_mean_rise_of_a_quadratic(scaling, antithetic):
    """sigma^2 tr(H) / 2, and sum_i (sigma^2 w_i^2 + epsilon^2) H_ii / 2, off the minimum."""
    model, data, H, _, w = quadratic_model()
    sigma, options = 0.3, {"draws": 4000, "antithetic": antithetic, "seed": 1}
    if scaling == "average":
        found = average_case_sharpness(model, nn.MSELoss(), data, rho=sigma, **options)
        expected = sigma**2 * (w**2 * np.diag(H)).sum() / 2
    else:
        found = random_perturbation(model, nn.MSELoss(), data, sigma=sigma, scaling=scaling, epsilon=0.1, **options)
        variance = sigma**2 if scaling == "plain" else sigma**2 * w**2 + 0.1**2
        expected = (variance * np.diag(H)).sum() / 2
    assert abs(found.value - expected) < 4 * found.standard_error
    assert found.standard_error < 0.12 * expected and found.evaluations == 4001 and found.status == "ok"


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_standard_error_is_the_spread_over_seeds(antithetic):
    """Pairs counted as two independent draws would understate it."""
    model, data, *_ = quadratic_model()
    found = [random_perturbation(model, nn.MSELoss(), data, sigma=0.3, draws=20, antithetic=antithetic, seed=seed)
             for seed in range(150)]
    spread = np.std([r.value for r in found], ddof=1)
    assert spread == pytest.approx(math.sqrt(np.mean([r.standard_error**2 for r in found])), rel=0.2)


def test_pairs_cancel_the_linear_term():
    """At small sigma the gradient dominates single draws by far."""
    model, data, *_ = quadratic_model()
    single, pairs = (random_perturbation(model, nn.MSELoss(), data, sigma=1e-3, draws=40, antithetic=antithetic)
                     for antithetic in (False, True))
    assert pairs.standard_error < 0.02 * single.standard_error


def test_accuracy_drop():
    found = random_perturbation(*classification(), sigma=0.6, draws=2000)
    assert abs(found.accuracy_drop - expected_drop(0.6)) < 4 * found.accuracy_drop_error
    assert found.accuracy == pytest.approx(55 / 60) and found.accuracy_drop_error < 0.01
    other = random_perturbation(*regression(), sigma=0.1, draws=2)
    assert (other.accuracy, other.accuracy_drop, other.accuracy_drop_error) == (None,) * 3
    assert other.standard_error is None  # a single pair


def test_exact_zeros_stay_under_relative_noise():
    """And a zero weight does move under epsilon."""
    model, data, *_ = quadratic_model(zero=True)
    seen = []

    def loss(outputs, targets):
        seen.append(float(model.weight[0, 1].detach()))
        return nn.functional.mse_loss(outputs, targets)

    average_case_sharpness(model, loss, data, rho=0.5)
    random_perturbation(model, loss, data, sigma=0.5, scaling="magnitude", epsilon=0.0)
    assert not any(seen)
    random_perturbation(model, loss, data, sigma=0.5, scaling="magnitude", draws=2)
    assert 0 < max(map(abs, seen)) < 0.01


def test_average_case_is_relative_noise():
    """Of two implementations of one definition neither may be another's square or half."""
    model, data = relu_net(), own_labels()
    relative = random_perturbation(model, CROSS_ENTROPY, data, sigma=0.4, scaling="magnitude", epsilon=0.0, draws=400)
    for m in (None, 10):
        average = average_case_sharpness(model, CROSS_ENTROPY, data, rho=0.4, draws=400, m=m)
        error = math.hypot(average.standard_error, relative.standard_error)
        assert abs(average.value - relative.value) < 4 * error
        assert average.loss == pytest.approx(relative.loss, rel=1e-12)
    assert average.rises.shape == (5, 200) and average.batches == 5


def test_two_seeds_agree_and_one_seed_repeats():
    def measure(seed, **options):
        return random_perturbation(relu_net(), CROSS_ENTROPY, own_labels(), sigma=0.2, draws=100, seed=seed, **options)

    a, b = measure(0), measure(1)
    assert a.value != b.value and abs(a.value - b.value) < 4 * math.hypot(a.standard_error, b.standard_error)
    assert measure(0).value == a.value
    assert measure(0, batch_size=7).value == pytest.approx(a.value, rel=1e-10)
    batches = list(zip(*(t.split(7) for t in own_labels()), strict=True))
    from_list = random_perturbation(relu_net(), CROSS_ENTROPY, batches, sigma=0.2, draws=100)
    assert from_list.value == pytest.approx(a.value, rel=1e-10)
    assert from_list.accuracy_drop == pytest.approx(a.accuracy_drop, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rescaled_relu_layers(dtype):
    """Dinh et al. 2017: relative noise sees the same function, absolute noise does not."""
    model, data = relu_net(dtype), own_labels(dtype)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.mul_(10.0)
        twin[0].bias.mul_(10.0)
        twin[2].weight.div_(10.0)
    relative, plain = (
        [
            random_perturbation(net, CROSS_ENTROPY, data, sigma=0.8, scaling=scaling, epsilon=0.0).value
            for net in (model, twin)
        ]
        for scaling in ("magnitude", "plain")
    )
    assert relative[1] == pytest.approx(relative[0], rel=1e-9 if dtype == torch.float64 else 1e-3)
    assert plain[1] > 2.5 * plain[0]
    sigmas = [pac_bayes_sigma(net, CROSS_ENTROPY, data, scaling="magnitude", epsilon=0.0).sigma for net in (model, twin)]
    assert sigmas[1] == pytest.approx(sigmas[0], rel=1e-9 if dtype == torch.float64 else 1e-2)


def test_all_cases(case):
    """Every kind of network of the shared fixture: sigma^2 tr(H) / 2 from its dense Hessian."""
    found = random_perturbation(case.model, case.loss, case.data, sigma=1e-3, draws=400, mode=case.mode, params=case.params)
    expected = 1e-6 * np.trace(case.dense_hessian()) / 2
    assert abs(found.value - expected) < 4 * found.standard_error + 1e-3 * expected
    assert found.standard_error < 0.2 * abs(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite(bad):
    """Met at perturbed weights, in the loss or in the outputs: NaN and a status, no exception, not 0."""
    model, data = relu_net(), own_labels()
    start = model[0].weight.detach().clone()

    def loss(outputs, targets):
        moved = not torch.equal(model[0].weight, start)
        return CROSS_ENTROPY(outputs, targets) * (bad if moved else 1.0)

    class Breaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x) * (1.0 if torch.equal(model[0].weight, start) else bad)

    for found in (
        random_perturbation(model, loss, data, sigma=0.1),
        random_perturbation(Breaking(), CROSS_ENTROPY, data, sigma=0.1),
        pac_bayes_sigma(model, loss, data, quantity="loss", loss_rise=0.1),
        pac_bayes_sigma(Breaking(), CROSS_ENTROPY, data),
    ):
        assert math.isnan(found.value) and found.standard_error is None and found.status == "nonfinite"
        json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -1.0}, "sigma is -1.0: it must be a positive"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"draws": 3}, "draws is 3: antithetic pairs need an even number"),
        ({"draws": 0}, "draws is 0"),
        ({"scaling": "filter"}, "scaling is 'filter'"),
        ({"epsilon": -1e-3}, "epsilon is -0.001"),
        ({"seed": -1}, "seed is -1"),
        ({"mode": "test"}, "mode is 'test'"),
    ],
)
def test_wrong_input(options, message):
    with pytest.raises(ValueError, match=message):
        random_perturbation(relu_net(), CROSS_ENTROPY, own_labels(), **{"sigma": 0.1} | options)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("measure", [random_perturbation, pac_bayes_sigma])
def test_the_model_is_left_as_it_came(measure, mode):
    """After success, and after an exception at any of the loss's calls."""
    data = own_labels()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 3)).double()
    model[1].eval()
    before, calls, at = state(model), [], 0

    def loss(outputs, targets):
        calls.append(0)
        if len(calls) == at:
            raise RuntimeError("out of memory")
        return CROSS_ENTROPY(outputs, targets)

    options = {"mode": mode, "batch_size": 20} | ({"sigma": 0.1} if measure is random_perturbation else {})
    first = measure(model, loss, data, **options)
    assert state(model) == before
    total = len(calls)
    for at in (3, total // 2, total):  # noqa: B007 read by the loss
        calls.clear()
        with pytest.raises(RuntimeError, match="out of memory"):
            measure(model, loss, data, **options)
        assert state(model) == before
    at = 0
    assert measure(model, loss, data, **options).value == pytest.approx(first.value, nan_ok=True)
