"""Worst-case sharpness at stationary points, where something is not finite, and of wrong input."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from toy_nets import CROSS_ENTROPY, class_data, quadratic_model, relu_net

from sharpness.flatness.apgd import one_step
from sharpness.flatness.average_case import average_case_sharpness
from sharpness.flatness.worst_case import worst_case_sharpness


def test_exactly_at_a_minimum():
    """No gradient: one step has no direction, and says so; the search finds the curvature all the same."""
    x = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    model = nn.Linear(2, 1, bias=False).double()
    data = (x, (x @ model.weight.T).detach())
    one = worst_case_sharpness(model, nn.MSELoss(), data, rho=0.1, steps=1)
    assert (one.value, one.status) == (0.0, "stationary")
    found = worst_case_sharpness(model, nn.MSELoss(), data, rho=0.1, steps=20)
    assert found.value == pytest.approx(9 * 0.1**2 / 2, rel=1e-6) and found.status == "stationary"


def test_a_model_that_does_not_use_its_parameters():
    model = nn.Linear(2, 2)
    data = (torch.ones(3, 2), torch.tensor([0, 1, 1]))
    found = worst_case_sharpness(model, lambda z, t: CROSS_ENTROPY(z.detach(), t), data, rho=0.1)
    assert found.value >= 0 and found.status == "stationary"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("steps", [1, 20])
def test_a_loss_that_is_not_finite(steps, bad):
    """At any perturbed weights: neither an exception nor the finite part of the search."""
    model, data = relu_net(), class_data()
    start = model[0].weight.detach().clone()

    def loss(outputs, targets):
        value = CROSS_ENTROPY(outputs, targets)
        return value if torch.equal(model[0].weight, start) else value * bad

    found = worst_case_sharpness(model, loss, data, rho=0.1, steps=steps, m=16)
    assert math.isnan(found.value) and found.status == "nonfinite" and found.standard_error is None
    average = average_case_sharpness(model, loss, data, rho=0.1)
    assert math.isnan(average.value) and average.status == "nonfinite" and average.standard_error is None
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["value"] is None
    json.dumps(average.to_dict(), allow_nan=False)


def test_a_gradient_that_is_not_finite():
    """sqrt at 0: the loss is finite, its gradient is not."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    data = (torch.ones(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))
    found = worst_case_sharpness(model, lambda z, t: (z - t).abs().sqrt().mean(), data, rho=0.1)
    assert math.isnan(found.value) and found.status == "nonfinite"


def test_tiny_and_huge_gradients_have_a_direction():
    for scale in (1e-200, 1e200):
        found = one_step(
            lambda x, _, s=scale: (float(s * (3 * x[0] + 4 * x[1])), s * torch.tensor([3.0, 4.0]).double()),
            torch.zeros(2, dtype=torch.float64),
            rho=1.0,
            norm="l2",
        )
        assert found.value == pytest.approx(5 * scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho is 0.0: it must be a positive"),
        ({"rho": math.inf}, "rho is inf"),
        ({"norm": "l1"}, "norm is 'l1'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.0}, "steps is 2.0"),
        ({"steps": 1, "starts": 2}, "one step starts at w"),
        ({"m": 0}, "m is 0"),
        ({"m": 49}, "m is 49 and data has 48 examples"),
        ({"seed": -1}, "seed is -1"),
        ({"params": ["9.weight"]}, "names no parameter"),
    ],
)
def test_wrong_input(options, message):
    with pytest.raises(ValueError, match=message):
        worst_case_sharpness(relu_net(), CROSS_ENTROPY, class_data(), **{"rho": 0.1} | options)


def test_logits_that_cannot_be_normalised():
    model, data, *_ = quadratic_model()
    with pytest.raises(ValueError, match=r"outputs are \(9, 1\): logit_normalised needs logits"):
        worst_case_sharpness(model, nn.MSELoss(), data, rho=0.1, logit_normalised=True)
