"""PAC-Bayes sigma against closed forms, a fine grid and its own spread over seeds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from toy_nets import CROSS_ENTROPY, classification, expected_drop, own_labels, quadratic_model, regression, relu_net

from sharpness.flatness.pac_bayes import bracket_crossing, pac_bayes_sigma
from sharpness.flatness.perturbation import random_perturbation


@pytest.mark.parametrize(("scaling", "epsilon"), [("plain", 1e-3), ("magnitude", 0.05)])
def test_sigma_of_a_linear_classifier(scaling, epsilon):
    expected = brentq(lambda s: expected_drop(s, scaling, epsilon) - 0.1, 1e-2, 10)
    found = pac_bayes_sigma(*classification(), draws=600, scaling=scaling, epsilon=epsilon)
    assert found.status == "ok" and found.sigma_error < 0.06 * expected
    assert abs(found.sigma - expected) < 4 * found.sigma_error + 0.01 * expected
    assert found.value == pytest.approx(found.sigma**-2)
    assert found.standard_error == pytest.approx(2 * found.sigma**-3 * found.sigma_error)


def test_sigma_of_a_quadratic_loss():
    """sigma^2 tr(H) / 2 = rise."""
    model, loss, data = regression()
    trace = np.trace(quadratic_model()[2])
    found = pac_bayes_sigma(model, loss, data, quantity="loss", loss_rise=0.7, draws=600)
    expected = math.sqrt(2 * 0.7 / trace)
    assert abs(found.sigma - expected) < 4 * found.sigma_error + 0.01 * expected
    assert found.sigma_error < 0.08 * expected


def test_sigma_against_a_fine_grid():
    """The same draws at every sigma: the mean drop on a grid crosses the limit inside the bracket."""
    model, data = relu_net(), own_labels()
    found = pac_bayes_sigma(model, CROSS_ENTROPY, data, tolerance=1e-3)
    lower, upper = found.bracket
    assert lower == found.sigma and 1 < upper / lower <= 1.001
    drops = [random_perturbation(model, CROSS_ENTROPY, data, sigma=s, epsilon=1e-3).accuracy_drop
             for s in (lower, upper, *np.geomspace(0.3, 3, 25) * lower)]
    assert drops[0] == pytest.approx(found.drop, abs=1e-12) and drops[0] <= 0.1 < drops[1]
    grid = np.array(drops[2:])
    assert (grid[:8] <= 0.1).all() and (grid[-8:] > 0.1).all()
    assert found.evaluations == 1 + 20 * len(found.sigmas) and len(found.drops) == len(found.sigmas)


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_error_of_sigma_is_the_spread_over_seeds(antithetic):
    found = [pac_bayes_sigma(*classification(), draws=20, antithetic=antithetic, seed=seed) for seed in range(40)]
    spread = np.std([np.log(r.sigma) for r in found], ddof=1)
    reported = math.sqrt(np.mean([(r.sigma_error / r.sigma) ** 2 for r in found]))
    assert spread == pytest.approx(reported, rel=0.35)


def test_unbounded():
    """A constant accuracy never drops: 1 / sigma^2 = 0, not an arbitrary large sigma."""
    model, _, (x, _) = classification()
    data = (x, (torch.arange(len(x)) % 2))
    found = pac_bayes_sigma(model, CROSS_ENTROPY, data, accuracy_drop=0.5, draws=2)
    assert (found.status, found.sigma, found.value, found.bracket) == ("unbounded", math.inf, 0.0, None)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["sigma"] is None


def test_epsilon_alone_is_too_much():
    found = pac_bayes_sigma(*classification(), scaling="magnitude", epsilon=50.0, draws=4)
    assert found.status == "floor" and math.isnan(found.value) and math.isnan(found.sigma)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda s: s, 7.0),
        (lambda s: s**2, math.sqrt(7)),
        (lambda s: float(s > 3e-9) * 8, 3e-9),
        (lambda s: float(s > 900) * 8, 900),
    ],
)
def test_bisection(function, expected):
    (lower, upper), status = bracket_crossing(function, 7.0, 1.0, 1e-6)
    assert status == "ok" and lower <= expected * (1 + 1e-12) and expected <= upper
    assert upper <= lower * (1 + 1e-6) and function(lower) <= 7 < function(upper)


def test_bisection_at_the_limit_of_floats_ends():
    (lower, upper), status = bracket_crossing(lambda s: s, 7.0, 1.0, 1e-300)
    assert status == "ok" and np.nextafter(lower, 8) == upper


def test_bisection_without_a_bracket():
    assert bracket_crossing(lambda s: 0.0, 7.0, 1.0, 0.01) == (None, "unbounded")
    assert bracket_crossing(lambda s: 8.0, 7.0, 1.0, 0.01) == (None, "floor")
    assert bracket_crossing(lambda s: math.nan if s > 3 else 0.0, 7.0, 1.0, 0.01) == (None, "nonfinite")
    assert bracket_crossing(lambda s: math.nan if s < 1 else 8.0, 7.0, 1.0, 0.01) == (None, "nonfinite")


def test_weights_all_zero():
    """A start for the search that does not depend on their size, which is 0."""
    model, loss, data = regression()
    nn.init.zeros_(model.weight)
    assert pac_bayes_sigma(model, loss, data, quantity="loss", loss_rise=0.7).status == "ok"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy_drop": 0.0}, "accuracy_drop is 0.0"),
        ({"accuracy_drop": 10}, "accuracy_drop is 10: it is a fraction"),
        ({"quantity": "error"}, "quantity is 'error'"),
        ({"quantity": "loss"}, "loss_rise is None"),
        ({"loss_rise": 0.1}, "pass quantity='loss'"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
    ],
)
def test_wrong_input_of_sigma(options, message):
    with pytest.raises(ValueError, match=message):
        pac_bayes_sigma(relu_net(), CROSS_ENTROPY, own_labels(), **options)


def test_accuracy_of_a_regression():
    with pytest.raises(ValueError, match="accuracy needs finite outputs"):
        pac_bayes_sigma(*regression())
