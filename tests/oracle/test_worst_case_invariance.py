"""Rescalings that must not matter, weights that must not move, and a model that must be left as it came."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from toy_nets import CROSS_ENTROPY, class_data, relu_net, state

from sharpness.flatness.average_case import average_case_sharpness
from sharpness.flatness.worst_case import worst_case_sharpness


def rescaled(model, a):
    """The same function: one ReLU layer times a, the next divided by a."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.mul_(a)
        twin[0].bias.mul_(a)
        twin[2].weight.div_(a)
    return twin


MEASURES = {
    "l2": lambda *args, adaptive, **o: worst_case_sharpness(*args, rho=0.5, adaptive=adaptive, **o),
    "linf": lambda *args, adaptive, **o: worst_case_sharpness(
        *args, rho=0.05, norm="linf", adaptive=adaptive, **o
    ),
    "one step, l2": lambda *args, adaptive, **o: worst_case_sharpness(
        *args, rho=0.5, steps=1, adaptive=adaptive, **o
    ),
    "one step, linf": lambda *args, adaptive, **o: worst_case_sharpness(
        *args, rho=0.05, norm="linf", steps=1, adaptive=adaptive, **o
    ),
    "average": lambda *args, adaptive, **o: average_case_sharpness(
        *args, rho=1.0 if adaptive else 0.1, adaptive=adaptive, **o
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(MEASURES))
def test_rescaled_relu_layers(name, dtype):
    """Dinh et al. 2017: the same function. The raw measures must see another one, or nothing is tested."""
    model, data = relu_net(dtype), class_data(dtype=dtype)
    twin, raw = rescaled(model, 10.0), (model, rescaled(model, 10.0))
    values = [MEASURES[name](net, CROSS_ENTROPY, data, adaptive=True, m=16).value for net in (model, twin)]
    assert values[1] == pytest.approx(values[0], rel=1e-9 if dtype == torch.float64 else 1e-5)
    before, after = (MEASURES[name](net, CROSS_ENTROPY, data, adaptive=False).value for net in raw)
    assert after > 3 * before


@pytest.mark.parametrize("name", list(MEASURES))
def test_scale_of_the_logits(name):
    """Normalised, a multiple of the last layer measures the same; otherwise it does not."""
    model = relu_net()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin[4].parameters():
            p.mul_(7.0)
    for normalised in (True, False):
        values = [MEASURES[name](net, CROSS_ENTROPY, class_data(), adaptive=True, logit_normalised=normalised).value
                  for net in (model, twin)]
        assert (values[1] == pytest.approx(values[0], rel=1e-8)) == normalised


def test_normalised_logits_by_hand():
    """Centred, divided by their norm: against a model that does it itself."""

    class Normalising(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            z = self.inner(x)
            z = z - z.mean(1, keepdim=True)
            return z / z.pow(2).sum(1, keepdim=True).sqrt()

    model, data = relu_net(), class_data()
    found = worst_case_sharpness(model, CROSS_ENTROPY, data, rho=0.3, logit_normalised=True)
    expected = worst_case_sharpness(Normalising(model), CROSS_ENTROPY, data, rho=0.3)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)


# zeros


@pytest.mark.parametrize("name", list(MEASURES))
def test_zeros_stay(name):
    """Zero biases and an all-zero layer: as if they were not among the parameters. No NaN."""
    model = relu_net()
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.bias.zero_()
        model[2].weight[:, 3:].zero_()
        model[0].weight[3:].zero_()  # units 3 and later are dead: the tensor's rest is alive
    some = worst_case_sharpness(model, CROSS_ENTROPY, class_data(), rho=0.5, adaptive=True)
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert some.fixed == zeros and some.value > 0 and some.status == "ok"
    weights = ["0.weight", "2.weight", "4.weight"]
    both = [MEASURES[name](model, CROSS_ENTROPY, class_data(), adaptive=True, params=p) for p in (None, weights)]
    if name == "average":  # other draws
        assert abs(both[0].value - both[1].value) < 5 * math.hypot(*(r.standard_error for r in both))
    else:
        assert both[0].value == pytest.approx(both[1].value, rel=1e-12)


@pytest.mark.parametrize("name", list(MEASURES))
def test_nothing_but_zeros(name):
    model = relu_net()
    with torch.no_grad():
        model[0].bias.zero_()
    found = MEASURES[name](model, CROSS_ENTROPY, class_data(), adaptive=True, params=["0.bias"])
    assert (found.value, found.status, found.fixed) == (0.0, "fixed", 12)


def test_zeros_are_never_written():
    """The loss sees the weights at each evaluation: exact zeros are exact zeros in all of them."""
    model = relu_net()
    with torch.no_grad():
        model[0].weight[:, :2].zero_()
        model[2].bias.zero_()
    seen = []

    def loss(outputs, targets):
        seen.append(bool((model[0].weight[:, :2] == 0).all() and (model[2].bias == 0).all()))
        return CROSS_ENTROPY(outputs, targets)

    for norm in ("l2", "linf"):
        worst_case_sharpness(model, loss, class_data(), rho=0.3, norm=norm, adaptive=True, starts=2)
    assert all(seen) and len(seen) > 80


def test_only_the_named_parameters_move():
    model = relu_net()
    others = [p for name, p in model.named_parameters() if name != "2.weight"]
    before, moved = [p.detach().clone() for p in others], []

    def loss(outputs, targets):
        assert all(torch.equal(p, b) for p, b in zip(others, before, strict=True))
        moved.append(model[2].weight.detach().clone())
        return CROSS_ENTROPY(outputs, targets)

    worst_case_sharpness(model, loss, class_data(), rho=0.3, params=["2.weight"])
    average_case_sharpness(model, loss, class_data(), rho=0.3, params=["2.weight"], draws=2)
    assert max(float((m - moved[0]).norm()) for m in moved) > 0.1


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_inside_the_ball(norm, adaptive):
    model, radii, rho = relu_net(), [], 0.3
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    c = w.abs() if adaptive else torch.ones_like(w)

    def loss(outputs, targets):
        u = (torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - w) / c
        radii.append(float(u.norm() if norm == "l2" else u.abs().max()))
        return CROSS_ENTROPY(outputs, targets)

    worst_case_sharpness(model, loss, class_data(), rho=rho, norm=norm, adaptive=adaptive, starts=2)
    assert max(radii) == pytest.approx(rho, rel=1e-9)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", list(MEASURES))
def test_the_model_is_left_as_it_came(name, mode):
    """After success, and after an exception at any of the loss's calls."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 3)).double()
    model[1].eval()
    before, calls = state(model), []

    def loss(outputs, targets):
        calls.append(0)
        if len(calls) == at:
            raise RuntimeError("out of memory")
        return CROSS_ENTROPY(outputs, targets)

    at = 0
    options = {"adaptive": True, "m": 16, "mode": mode}
    first = MEASURES[name](model, loss, class_data(), **options)
    assert state(model) == before
    total = len(calls)
    for at in (3, total // 2, total):  # noqa: B007 read by the loss
        calls.clear()
        with pytest.raises(RuntimeError, match="out of memory"):
            MEASURES[name](model, loss, class_data(), **options)
        assert state(model) == before
    at = 0
    assert MEASURES[name](model, loss, class_data(), **options).value == first.value
