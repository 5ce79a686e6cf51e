"""Basin size against quadratics, where both measures have closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import Failing, state

from sharpness.flatness.basin import basin_radius, local_entropy

CE = nn.CrossEntropyLoss()


def quadratic(curvatures, offset=0.0, dtype=torch.float64):
    """f(w) = offset + 1/2 sum c_i (w_i - 1)^2, at its minimum w = 1: model, loss, data, as two examples."""
    c = torch.as_tensor(curvatures, dtype=dtype)
    model = nn.Linear(len(c), 1, bias=False).to(dtype)
    model.weight.data = torch.ones(1, len(c), dtype=dtype)
    x = torch.diag((c * len(c) / 2).abs().sqrt())
    signs = torch.sign(c)[:, None]

    def loss(outputs, targets):
        return (targets[:, :1] * (outputs - targets[:, 1:]) ** 2).mean() + offset

    return model, loss, (x, torch.cat([signs, x.sum(dim=1, keepdim=True)], dim=1))


C = np.array([4.0, 1.0, 0.5, 0.0, 2.0])


def test_the_quadratic_is_what_it_says():
    model, loss, (x, t) = quadratic(C)
    model.weight.data += torch.tensor([0.1, -0.2, 0.3, 5.0, 1.0]).double()
    d = model.weight.detach().numpy()[0] - 1
    assert loss(model(x), t).item() == pytest.approx(0.5 * np.sum(C * d**2))


@pytest.mark.parametrize(("gamma", "temperature"), [(2.0, 1.0), (10.0, 1.0), (4.0, 0.5)])
def test_local_entropy_of_a_quadratic(gamma, temperature):
    """-1/2 log det(I + H / (gamma T)), within the stated error; the integral itself includes the constant."""
    true = -0.5 * np.sum(np.log1p(C / (gamma * temperature)))
    a, b = (local_entropy(*quadratic(C, 3.0), gamma=gamma, temperature=temperature, samples=1000, seed=seed) for seed in (0, 1))
    for found in (a, b):
        assert found.status == "ok" and found.loss == pytest.approx(3)
        assert abs(found.value - true) < 3.5 * found.standard_error < 0.2
    integral = 0.5 * np.sum(np.log(2 * np.pi / (gamma + C / temperature)))
    assert a.log_integral == pytest.approx(integral, abs=3.5 * a.standard_error)
    assert abs(a.value - b.value) < 4 * np.hypot(a.standard_error, b.standard_error)


def test_local_entropy_error_is_calibrated():
    """The spread over seeds is what the stated standard error says."""
    found = [local_entropy(*quadratic(C), gamma=4.0, samples=64, seed=seed) for seed in range(80)]
    spread = np.std([f.value for f in found])
    stated = np.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert 0.7 < stated / spread < 1.4


def test_local_entropy_says_when_it_is_degenerate():
    """A hundred steep directions: no sample falls where the integrand is, and the value is far too low."""
    steep = local_entropy(*quadratic(np.full(100, 50.0)), gamma=1.0)
    assert steep.status == "degenerate" and steep.effective < 20
    flat = local_entropy(*quadratic(np.full(3, 1e-6)), gamma=1.0)
    assert flat.status == "ok" and flat.effective == pytest.approx(128) and abs(flat.value) < 1e-5


def test_flatter_is_larger():
    values = [local_entropy(*quadratic(C * k), gamma=4.0).value for k in (0.1, 1.0, 10.0)]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("scale", ["unit", "element"])
def test_radii_of_a_quadratic(scale):
    """r = sqrt(2 rise / u^T H u); weights are 1, so that both scales agree. A common curvature has one r."""
    sphere = basin_radius(*quadratic(np.full(6, 3.0), 1.0), rise=0.2, scale=scale, directions=3)
    np.testing.assert_allclose(sphere.log_radii, 0.5 * np.log(0.4 / 3), atol=1e-3)
    ball = np.pi**3 / 6  # of dimension 6
    assert sphere.log_volume_bound == pytest.approx(np.log(ball * (0.4 / 3) ** 3), abs=6e-3)
    rng = np.random.default_rng(9)
    u = rng.standard_normal((200000, 5))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    true = np.mean(0.5 * np.log(0.2 / (u**2 @ C)))
    found = [basin_radius(*quadratic(C), scale=scale, directions=150, seed=seed) for seed in (0, 1)]
    for f in found:
        assert f.status == "ok" and abs(f.value - true) < 3.5 * f.standard_error
    assert abs(found[0].value - found[1].value) < 4 * np.hypot(*[f.standard_error for f in found])
    assert found[0].evaluations < 10 * 150


def test_each_direction_ends_where_the_loss_has_risen():
    """The bound on the volume is one: an ellipsoid's log-volume lies above it."""
    found = basin_radius(*quadratic([4.0, 1.0, 2.0]), rise=0.5, directions=300)
    ellipsoid = np.log(4 / 3 * np.pi) - 0.5 * np.log(8)
    assert found.log_volume_bound - 3 * found.standard_error * 3 < ellipsoid


def relu_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def some_data():
    torch.manual_seed(1)
    return torch.randn(30, 5).double(), torch.randint(0, 3, (30,))


def test_relative_radii_are_unchanged_by_rescaling_layers():
    """Dinh et al. 2017: raw radii move, radii relative to the weights do not."""
    model, data = relu_net(), some_data()
    other = relu_net()
    with torch.no_grad():
        for p in other[0].parameters():
            p.mul_(10.0)
        other[2].weight.div_(10.0)
    for scale in ("element", "filter", "tensor"):
        a, b = (basin_radius(m, CE, data, scale=scale, directions=4, tolerance=1e-7) for m in (model, other))
        np.testing.assert_allclose(a.log_radii, b.log_radii, atol=1e-6)
    a, b = (basin_radius(m, CE, data, directions=4) for m in (model, other))
    assert abs(a.value - b.value) > 0.3


def test_batches_and_precision_do_not_matter():
    model, (x, t) = relu_net(), some_data()
    whole, parts = (basin_radius(model, CE, (x, t), batch_size=b, directions=3) for b in (None, 7))
    np.testing.assert_allclose(whole.log_radii, parts.log_radii, atol=1e-9)
    single = basin_radius(relu_net().float(), CE, (x.float(), t), directions=3)
    np.testing.assert_allclose(whole.log_radii, single.log_radii, atol=3e-3)
    entropies = [local_entropy(model, CE, (x, t), gamma=50.0, batch_size=b).value for b in (None, 7)]
    assert entropies[0] == pytest.approx(entropies[1], rel=1e-10)
    single = local_entropy(relu_net().float(), CE, (x.float(), t), gamma=50.0)
    assert single.value == pytest.approx(entropies[0], abs=1e-5)


def test_frozen_parameters_stay():
    """Only the selected ones move, and n counts these; zero weights have no relative scale."""
    model, data = relu_net(), some_data()
    named = basin_radius(model, CE, data, params=["2.bias"], directions=2)
    assert named.n == 3
    with torch.no_grad():
        model[2].bias[:2] = 0
    assert basin_radius(model, CE, data, params=["2.bias"], scale="element", directions=2).n == 1
    with torch.no_grad():
        model[2].bias.zero_()
    with pytest.raises(ValueError, match="use 'unit'"):
        basin_radius(model, CE, data, params=["2.bias"], scale="element", directions=2)


def one_weight(function):
    """A loss of one weight at 1; the data do not matter."""
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data = torch.ones(1, 1).double()
    return model, lambda outputs, _: function(outputs.mean()), (torch.ones(2, 1).double(), torch.zeros(2, 1))


def test_what_never_rises_or_overflows():
    """A bounded loss has no edge; a wall of infinity is none either; both are said."""
    flat = basin_radius(*one_weight(lambda w: torch.tanh((w - 1) ** 2) * 0.05 + 1), directions=2)
    assert flat.status == "unbounded" and np.isnan(flat.value) and np.isinf(flat.log_radii).all()
    wall = one_weight(lambda w: 1 + 0 * w + torch.where((w - 1).abs() > 0.5, torch.inf, 0.0))
    assert basin_radius(*wall, directions=2).status == "nonfinite"
    assert local_entropy(*wall, gamma=1.0).status == "nonfinite"
    beyond = one_weight(lambda w: torch.where((w - 1).abs() > 3, torch.inf, (w - 1) ** 2))
    edge = basin_radius(*beyond, rise=4.0, directions=2)
    assert edge.status == "ok" and edge.value == pytest.approx(np.log(2), abs=1e-3)


def test_at_no_minimum_it_is_the_first_crossing():
    """Downhill first: the edge is where the loss comes back up and rises beyond."""
    slope = basin_radius(*one_weight(lambda w: (w - 1) ** 2 - 0.5 * (w - 1)), rise=0.5, directions=8)
    assert set(np.round(np.exp(slope.log_radii), 2)) == {0.5, 1.0}


def test_refusals():
    model, data = relu_net(), some_data()
    for options in ({"rise": 0.0}, {"rise": np.nan}, {"scale": "x"}, {"directions": 1}, {"tolerance": 0.0}):
        with pytest.raises(ValueError):
            basin_radius(model, CE, data, **options)
    for options in ({"gamma": 0.0}, {"gamma": np.inf}, {"temperature": -1.0}, {"samples": 3}, {"samples": 2}):
        with pytest.raises(ValueError):
            local_entropy(model, CE, data, **{"gamma": 1.0, **options})
    with pytest.raises(ValueError, match="too small"):
        basin_radius(relu_net().float(), CE, (data[0].float(), data[1]), rise=1e-6)


@pytest.mark.parametrize("at", [np.inf, 3, 5, 8, 14, 20])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_model_untouched(at, mode):
    """Exceptions at any call included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    data = some_data()
    model(data[0]).sum().backward()
    model[3].bias.requires_grad_(False)
    model[2].eval()

    before, loss = state(model), Failing(at)
    try:
        local_entropy(model, loss, data, gamma=100.0, samples=4, mode=mode)
        basin_radius(model, loss, data, directions=2, mode=mode)
    except KeyboardInterrupt:
        assert at < np.inf
    assert state(model) == before
    assert loss.calls >= min(at, 20)
