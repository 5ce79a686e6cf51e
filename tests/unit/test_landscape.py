"""Grids on planes through weight space."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from toy_functions import LOSS, NOTHING, Function, bn_net, data, mean, relu_net

from sharpness.landscape.directions import random_direction
from sharpness.landscape.grid import slice_2d
from sharpness.problem.parameters import flat_weights

torch.set_num_threads(1)


def test_quadratic_on_a_plane():
    """Axes exchanged, or a direction scaled, gives other numbers than the closed form."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    h, c, (d1, d2) = root @ root.T, rng.standard_normal(5), rng.standard_normal((2, 5))
    matrix = torch.from_numpy(h)
    model = Function(c, lambda w: 0.5 * w @ matrix @ w)
    alphas, betas = np.linspace(-1, 2, 4), np.linspace(-0.5, 0.5, 3)
    found = slice_2d(model, mean, NOTHING, directions=(d1, d2), alphas=alphas, betas=betas)
    points = c + alphas[:, None, None] * d1 + betas[None, :, None] * d2
    np.testing.assert_allclose(found.losses, 0.5 * np.einsum("abi,ij,abj->ab", points, h, points), rtol=1e-12)
    assert found.accuracies is None and found.status == "ok" and found.evaluations == 12 and found.n == 5
    assert found.norms == pytest.approx((np.linalg.norm(d1), np.linalg.norm(d2)))
    np.testing.assert_array_equal(found.values, found.losses)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(facts["losses"]) == 4 and len(facts["losses"][0]) == 3
    there = slice_2d(Function(0 * c, model.of), mean, NOTHING, directions=(d1, d2), alphas=alphas, betas=betas, center=c)
    np.testing.assert_array_equal(there.losses, found.losses)


def test_centre_is_the_network_itself_and_others_are_measured_directly():
    model, (inputs, targets) = bn_net(), data()
    directions = [random_direction(model, seed) for seed in (1, 2)]
    found = slice_2d(model, LOSS, (inputs, targets), directions=directions, alphas=[0.0, 0.5], betas=[0.0, -1.0])
    moved = copy.deepcopy(model)
    w = flat_weights(model) + 0.5 * directions[0] - directions[1]
    torch.nn.utils.vector_to_parameters(torch.from_numpy(w), moved.parameters())
    for (i, j), net in {(0, 0): model, (1, 1): moved}.items():
        assert found.losses[i, j] == pytest.approx(LOSS(net(inputs), targets).item(), rel=1e-12)
        assert found.accuracies[i, j] == (net(inputs).argmax(1) == targets).double().mean().item()


def test_only_the_named_parameters_move():
    """A frozen or unnamed layer that moved too; or a centre whose other layers were left behind."""
    model, other, pair = relu_net(), relu_net(1), data()
    params = ["2.weight"]
    directions = [random_direction(model, s, params=params) for s in (0, 1)]
    options = {"directions": directions, "alphas": [1.0], "betas": [2.0], "params": params}
    for center, net in ((None, model), (other.state_dict(), other)):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            moved[2].weight += torch.from_numpy(directions[0] + 2 * directions[1]).reshape(3, 8)
        found = slice_2d(model, LOSS, pair, center=center, **options)
        assert found.losses[0, 0] == pytest.approx(LOSS(moved(pair[0]), pair[1]).item(), rel=1e-12)
    alone = slice_2d(model, LOSS, pair, center=flat_weights(model, params=params), **options)
    assert alone.losses[0, 0] == slice_2d(model, LOSS, pair, **options).losses[0, 0]


def test_points_that_are_not_finite_stay_so():
    model = Function([1.0, 1.0], lambda w: 1 / w[0] + torch.log(w[1]))
    found = slice_2d(model, mean, NOTHING, directions=np.eye(2), alphas=[-1.0, 0.0], betas=[-2.0, 0.0])
    assert found.status == "nonfinite" and np.isnan(found.losses[:, 0]).all()
    assert np.isinf(found.losses[0, 1]) and found.losses[1, 1] == 1.0
    assert found.to_dict()["losses"] == [[None, None], [None, 1.0]]


def test_nan_logits_have_no_accuracy():
    """argmax of NaN is an index: a class would be right by chance."""
    model = relu_net().float()
    inputs, targets = data()
    directions = [random_direction(model, s) for s in (0, 1)]
    found = slice_2d(
        model, LOSS, (inputs.float(), targets), directions=directions, alphas=[0.0, 1e39], betas=[0.0]
    )  # infinite weights
    assert found.status == "nonfinite" and np.isfinite(found.accuracies[0, 0]) and np.isnan(found.accuracies[1, 0])


def test_wrong_grids_are_refused():
    model, pair = relu_net(), data()
    d = random_direction(model, 0), random_direction(model, 1)
    good = {"directions": d, "alphas": [0.0], "betas": [0.0]}
    for change, message in [
        ({"directions": d[:1]}, "1 entries"),
        ({"directions": (d[0], d[1][:-1])}, r"directions\[1\] has shape"),
        ({"directions": (d[0], 0 * d[1])}, "not zero"),
        ({"directions": (d[0], -3 * d[0])}, "parallel"),
        ({"alphas": []}, "alphas must be"),
        ({"betas": [np.inf]}, "betas must be"),
        ({"center": d[0][:-1]}, "center has shape"),
        ({"center": {"0.weight": torch.zeros(8, 4)}}, "center lacks"),
        ({"bn_mode": "interpolate"}, "no two ends"),
        ({"bn_mode": "batch"}, "bn_mode is 'batch'"),
        ({"recalibrate": lambda m: None}, "belong to 'recalibrate'"),
        ({"calibration": pair}, "belong to 'recalibrate'"),
    ]:
        with pytest.raises(ValueError, match=message):
            slice_2d(model, LOSS, pair, **(good | change))
