"""Barriers on lines and on fitted curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_functions import LOSS, NOTHING, Function, bn_net, data, mean

from sharpness.landscape.paths import barrier, connect
from sharpness.landscape.slices import slice_1d

torch.set_num_threads(1)


def test_barriers_by_their_definitions():
    alphas, losses = [-1, 0, 0.25, 0.5, 1, 2], [99, 1, 5, 2, 3, 99]
    assert barrier(alphas, losses) == 2
    assert barrier(alphas, losses, above="mean of ends") == 3
    assert barrier(alphas, losses, above="line") == 5 - 1.5
    assert barrier([1, 0.5, 0], [3, 2, 1]) == 0
    assert np.isnan(barrier([0, 0.5, 1], [0, np.inf, 0]))
    with pytest.raises(ValueError, match="lacks 0 or 1"):
        barrier([0.1, 1], [1, 2])
    with pytest.raises(ValueError, match="above is"):
        barrier([0, 1], [1, 2], above="ends")


def test_barrier_of_a_slice():
    ends = {"start": Function([-1.0], None).state_dict(), "end": Function([2.0], None).state_dict()}
    model = Function([1.0], lambda w: (w[0] + 1) ** 2 * (w[0] - 2) ** 2 + w[0])
    found = slice_1d(model, mean, NOTHING, alphas=np.linspace(-1, 2, 31), **ends)
    xs = -1 + 3 * np.linspace(0, 1, 11)
    assert found.barrier == pytest.approx(((xs + 1) ** 2 * (xs - 2) ** 2 + xs).max() - 2)


def valley(w):
    """Zero on the parabola y = 1 - x^2, a hill of height 25 on the chord between its two minima (+-1, 0)."""
    return 25 * (w[1] - 1 + w[0] ** 2) ** 2 + 0.1 * (w[0] ** 2 - 1) ** 2


def test_a_curve_goes_round_through_the_bent_valley():
    """The bend of the parabola as a Bezier curve is (0, 2), on which the loss is at most 0.1."""
    ends = {"start": {"w": torch.tensor([-1.0, 0.0])}, "end": {"w": torch.tensor([1.0, 0.0])}}
    model = Function([1.0, 0.0], valley)
    found = connect(model, mean, NOTHING, **ends)
    assert found.status == "ok" and found.linear_value == pytest.approx(25.1)
    assert 0.05 < found.value < 0.5 and found.value <= found.linear_value
    np.testing.assert_allclose(found.bend, [0, 2], atol=0.15)
    assert found.length > found.linear_length == 2 and found.evaluations == 100 + 40
    line = slice_1d(model, mean, NOTHING, alphas=found.alphas, **ends)
    np.testing.assert_allclose(found.linear_losses, line.losses, atol=1e-13)
    unbent = connect(model, mean, NOTHING, steps=0, **ends)
    np.testing.assert_allclose(unbent.losses, line.losses, atol=1e-12)
    again = connect(model, mean, NOTHING, **ends)
    np.testing.assert_array_equal(again.losses, found.losses)
    assert not np.array_equal(connect(model, mean, NOTHING, seed=1, **ends).bend, found.bend)


def test_the_fit_is_adam_on_the_loss_along_the_curve():
    """Against torch's Adam and autograd through the curve; without 2 t (1 - t) the ends count too much."""
    a, b = torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.5]).double()
    steps, spread = 8, ((b - a) ** 2).mean().sqrt().item()
    found = connect(Function([1.0, 0.0], valley), mean, NOTHING, start={"w": a}, end={"w": b}, steps=steps, seed=4)
    bend, draws = ((a + b) / 2).requires_grad_(), np.random.default_rng(4)
    adam = torch.optim.Adam([bend], eps=0)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.1 * spread * (1 - step / steps)
        t = draws.uniform()
        adam.zero_grad()
        valley((1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b).backward()
        adam.step()
    np.testing.assert_allclose(found.bend, bend.detach(), rtol=1e-10)


def test_networks_with_batch_normalisation_are_connected():
    """The midpoint's statistics belong to neither end."""
    a, b, model, pair = bn_net(1), bn_net(2), bn_net(3), data()
    ends = {"start": a.state_dict(), "end": b.state_dict()}
    found = connect(model, LOSS, pair, steps=15, points=5, **ends)
    assert found.bn_mode == "recalibrate" and found.value <= found.linear_value + 1e-12
    again = slice_1d(model, LOSS, pair, bn_mode="recalibrate", alphas=found.alphas, **ends)
    np.testing.assert_allclose(found.linear_losses, again.losses, rtol=1e-10)


def test_a_fit_that_meets_infinity_says_so():
    ends = {"start": {"w": torch.tensor([-1.0])}, "end": {"w": torch.tensor([1.0])}}
    found = connect(Function([1.0], lambda w: w[0].sqrt()), mean, NOTHING, points=5, **ends)
    assert found.status == "nonfinite" and np.isnan(found.value) and np.isnan(found.fit_losses[-1])
    assert found.to_dict()["value"] is None
    for change, message in [
        ({"end": ends["start"]}, "same weights"),
        ({"steps": -1}, "steps is -1"),
        ({"points": 2}, "points is 2"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ]:
        with pytest.raises(ValueError, match=message):
            connect(Function([1.0], lambda w: w[0] ** 2), mean, NOTHING, **(ends | change))
