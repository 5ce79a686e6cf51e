"""Random directions, and planes through given weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toy_functions import LOSS, data, relu_net

from sharpness.landscape.directions import filter_normalise, random_direction
from sharpness.landscape.grid import slice_2d
from sharpness.landscape.planes import plane_through, trajectory_directions
from sharpness.problem.parameters import flat_weights

torch.set_num_threads(1)


def rescaled(model: nn.Sequential, a: float) -> nn.Sequential:
    """The same function (Dinh et al. 2017): a ReLU layer times a, the next divided by it."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= a
        other[0].bias *= a
        other[2].weight /= a
    return other


@pytest.mark.parametrize("normalise", ["filter", "layer", "none"])
def test_rescaled_layers_have_the_same_normalised_slice(normalise):
    """And the raw directions must see a difference, or the test proves nothing."""

    def losses(model):
        d = [random_direction(model, s, normalise) for s in (0, 1)]
        return slice_2d(model, LOSS, data(), directions=d, alphas=[-1, 0.3], betas=[-0.5, 0, 1]).losses

    model = relu_net()
    expected, found = losses(model), losses(rescaled(model, 7.3))
    if normalise == "none":
        assert np.abs(found / expected - 1).max() > 0.1
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-12)


class Mixed(nn.Module):
    """One of each kind of parameter that has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4, padding_idx=0)
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.LayerNorm((4, 6))
        self.batch = nn.BatchNorm2d(3)
        self.fc = nn.Linear(4, 3)
        self.bias_table = nn.Parameter(torch.ones(2, 2))
        self.token = nn.Parameter(torch.ones(4))
        with torch.no_grad():
            self.conv.weight[1] = 0
            self.fc.weight[0] *= 1e-25


def parts(model, direction):
    named = dict(model.named_parameters())
    return {
        name: d.numpy().reshape(p.shape)
        for (name, p), d in zip(
            named.items(), torch.from_numpy(direction).split([p.numel() for p in named.values()]), strict=True
        )
    }


def test_the_rule_for_every_kind_of_parameter():
    """NaN for zero filters and zero biases, or noise on what should not move."""
    model = Mixed()
    direction = random_direction(model, 3)
    assert np.isfinite(direction).all()
    layer = parts(model, random_direction(model, 3, "layer"))
    for name, d in parts(model, direction).items():
        if name in ("embed.weight", "conv.weight", "fc.weight"):
            p = dict(model.named_parameters())[name].detach().double()
            rows, norms = d.reshape(len(p), -1), p.reshape(len(p), -1).norm(dim=1).numpy()
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), norms, rtol=1e-12, err_msg=name)
            assert ((rows != 0).all(axis=1) == (norms > 0)).all() and (layer[name] != 0).all()
            assert np.linalg.norm(layer[name]) == pytest.approx(p.norm().item(), rel=1e-12)
        else:
            assert not d.any() and not layer[name].any(), name
    raw = random_direction(model, 3, "none")
    np.testing.assert_array_equal(filter_normalise(model, raw), direction)
    np.testing.assert_array_equal(raw, np.random.default_rng(3).standard_normal(len(raw)))


def test_directions_refuse_what_is_wrong():
    model = relu_net()
    with pytest.raises(ValueError, match="normalise is 'filters'"):
        random_direction(model, 0, "filters")
    with pytest.raises(ValueError, match="direction has shape"):
        filter_normalise(model, np.ones(3))
    with pytest.raises(ValueError, match="weights lacks"):
        random_direction(model, 0, weights={})


@pytest.mark.parametrize("about", ["final", "mean"])
def test_trajectory_directions_are_those_of_numpys_svd(about):
    rng = np.random.default_rng(1)
    points = np.cumsum(rng.standard_normal((9, 40)) * np.geomspace(3, 0.1, 40), axis=0) + 100
    found = trajectory_directions(points, 3, about=about)
    rows = points - (points[-1] if about == "final" else points.mean(0))
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(found.values, (s**2 / (s**2).sum())[:3], rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * vt[:3], axis=1)), 1, rtol=1e-10)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(3), atol=1e-13)
    expected = (points - points[-1]) @ found.directions.T
    np.testing.assert_allclose(found.coordinates, expected, atol=1e-10)
    assert (found.coordinates[0] >= 0).all() and not found.coordinates[-1].any()
    rest = points - points[-1] - expected @ found.directions
    np.testing.assert_allclose(found.distances, np.linalg.norm(rest, axis=1), atol=1e-5)
    assert "directions" not in found.to_dict()


def test_a_trajectory_in_a_plane_is_recovered_and_has_no_third_direction():
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((30, 2)))[0].T
    points = rng.standard_normal((6, 2)) @ basis
    found = trajectory_directions(list(points))
    np.testing.assert_allclose(found.coordinates @ found.directions + points[-1], points, atol=1e-12)
    assert found.values.sum() == pytest.approx(1)
    for call, message in [
        (lambda: trajectory_directions(points, 3), "span 2 dimensions"),
        (lambda: trajectory_directions(points[:1]), "at least two"),
        (lambda: trajectory_directions(np.ones((3, 4)), 1), "span 0 dimensions"),
        (lambda: trajectory_directions([np.ones(3), np.ones(4)]), "one length"),
        (lambda: trajectory_directions([np.ones(3), np.full(3, np.nan)], 1), "NaN"),
        (lambda: trajectory_directions([relu_net().state_dict()] * 2), "flat_weights"),
        (lambda: trajectory_directions(points, about="start"), "about is"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_plane_goes_through_its_points():
    points = np.random.default_rng(3).standard_normal((3, 50)) + 10
    plane = plane_through(*points)
    np.testing.assert_allclose(plane.origin + plane.values @ plane.directions, points, rtol=1e-13)
    np.testing.assert_allclose(plane.directions @ plane.directions.T, np.eye(2), atol=1e-14)
    for bad in ((points[0], points[0], points[1]), (points[0], points[1], 2 * points[1] - points[0])):
        with pytest.raises(ValueError, match="on a line"):
            plane_through(*bad)


def test_three_networks_are_on_their_plane():
    """Flat weights, coordinates and the grid agree about order and sign."""
    nets, pair = [relu_net(s) for s in range(3)], data()
    plane = plane_through(*[flat_weights(net) for net in nets])
    for net, (x, y) in zip(nets, plane.values, strict=True):
        found = slice_2d(nets[0], LOSS, pair, center=plane.origin, directions=plane.directions, alphas=[x], betas=[y])
        assert found.losses[0, 0] == pytest.approx(LOSS(net(pair[0]), pair[1]).item(), rel=1e-10)
