"""The path between two minima."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from toy_runs import toy_config, toy_data

from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures.landscape import linear_slice
from experiments.lab.measures.subject import Subject
from sharpness import slice_1d

torch.set_num_threads(1)


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    model(3 * torch.randn(50, 4, dtype=torch.float64) + 1)
    return model.eval()


def data(n: int = 11):
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (n,), generator=generator)


LOSS = nn.CrossEntropyLoss()


def direct(model: nn.Module):
    inputs, targets = data()
    with torch.no_grad():
        outputs = model(inputs)
    return LOSS(outputs, targets).item(), (outputs.argmax(1) == targets).double().mean().item()


@pytest.mark.parametrize("curve", ["linear", "arc"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_ends_are_the_two_networks(curve, batch_size):
    """With their own buffers: the model's or the other end's statistics would give another loss."""
    a, b = net(1), net(2)
    found = slice_1d(net(3), LOSS, data(), start=a.state_dict(), end=b.state_dict(), alphas=[0, 1], curve=curve,
                     batch_size=batch_size)
    np.testing.assert_allclose(found.losses, [direct(a)[0], direct(b)[0]], rtol=1e-12)
    np.testing.assert_allclose(found.accuracies, [direct(a)[1], direct(b)[1]], rtol=1e-12)
    assert found.status == "ok" and found.examples == 11 and found.curve == curve


class Square(nn.Module):
    """f(w) = w^2, so that losses along the path are known."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def forward(self, x):
        return self.w.expand(len(x)) ** 2


@pytest.mark.parametrize(
    ("curve", "weights"),
    [
        ("linear", lambda a: (1 - a) * 3.0 + a * -1.0),
        ("arc", lambda a: np.cos(a * np.pi / 2) * 3.0 + np.sin(a * np.pi / 2) * -1.0),
    ],
)
def test_points_of_the_curves(curve, weights):
    alphas = np.linspace(-1, 2, 25)
    ends = {"start": Square(3.0).state_dict(), "end": Square(-1.0).state_dict()}
    targets = torch.zeros(5, dtype=torch.float64)
    found = slice_1d(Square(0.0), lambda o, t: (o - t).mean(), (torch.zeros(5, 1), targets), alphas=alphas, curve=curve, **ends)
    np.testing.assert_allclose(found.losses, weights(alphas) ** 2, rtol=1e-12)
    assert found.accuracies is None
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["accuracies"] is None and len(facts["losses"]) == 25


def test_recalibration_sees_the_moved_weights_and_decides_the_statistics():
    """Statistics recomputed at the midpoint differ from interpolated ones; the hook's must be those used."""
    a, b, inputs = net(1), net(2), data()[0]

    def recalibrate(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_running_stats()
                module.momentum = None
        model.train()
        model(inputs)

    expected = net(3)
    mixed = {n: (t + b.state_dict()[n]) / 2 for n, t in a.state_dict().items() if t.is_floating_point()}
    expected.load_state_dict(mixed, strict=False)
    with torch.no_grad():
        recalibrate(expected)
    expected.eval()
    ends = {"start": a.state_dict(), "end": b.state_dict(), "alphas": [0.5]}
    found = slice_1d(net(3), LOSS, data(), recalibrate=recalibrate, **ends)
    plain = slice_1d(net(3), LOSS, data(), **ends)
    assert found.recalibrated and not plain.recalibrated
    assert found.losses[0] == pytest.approx(direct(expected)[0], rel=1e-12)
    assert abs(found.losses[0] - plain.losses[0]) > 1e-3


def test_extrapolated_statistics_stay_those_of_the_nearer_end():
    """Extrapolating a running variance linearly makes it negative, and the loss NaN."""
    a, b = net(1), net(2)
    b[1].running_var.mul_(0.01)
    found = slice_1d(net(3), LOSS, data(), start=a.state_dict(), end=b.state_dict(), alphas=[2.0])
    there = net(3)
    mixed = {n: 2 * b.state_dict()[n] - t for n, t in a.state_dict().items() if t.is_floating_point()}
    there.load_state_dict(mixed | {n: t for n, t in b.state_dict().items() if "running" in n}, strict=False)
    assert found.losses[0] == pytest.approx(direct(there)[0], rel=1e-12)


def test_a_loss_that_is_not_finite_is_kept_and_said():
    ends = {"start": Square(1.0).state_dict(), "end": Square(-1.0).state_dict()}
    problem = (torch.zeros(5, 1), torch.zeros(5))
    found = slice_1d(Square(1.0), lambda o, t: (1 / o).mean(), problem, alphas=[0.0, 0.5], **ends)
    assert found.status == "nonfinite" and found.losses[0] == 1.0 and np.isinf(found.losses[1])
    assert found.to_dict()["losses"] == [1.0, None]


def test_wrong_input_is_refused():
    good = {"start": net(1).state_dict(), "end": net(2).state_dict(), "alphas": [0.0]}
    missing = {n: t for n, t in good["start"].items() if n != "3.bias"}
    for change, message in [
        ({"start": missing}, "start lacks"),
        ({"end": good["end"] | {"other": torch.ones(1)}}, "unknown"),
        ({"end": good["end"] | {"3.bias": torch.ones(4)}}, "has shape"),
        ({"end": good["end"] | {"3.bias": torch.full((3,), torch.nan)}}, "NaN or infinity"),
        ({"alphas": []}, "alphas"),
        ({"alphas": [np.nan]}, "alphas"),
        ({"curve": "circle"}, "curve is 'circle'"),
    ]:
        with pytest.raises(ValueError, match=message):
            slice_1d(net(3), LOSS, data(), **(good | change))


def subject(seed: int) -> Subject:
    """A softmax regression on the toy data."""
    config = toy_config()
    parts = toy_data(config)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(parts.train.inputs[0].numel(), 4))
    return Subject(config, model, {k: v.detach().clone() for k, v in model.state_dict().items()}, parts)


@pytest.mark.parametrize("points", [4, 25, 148])
def test_the_barrier_of_a_measured_slice_is_against_its_ends(points):
    """148 equal steps of floating-point numbers pass beside 1, whose loss would then be left out."""
    first, second = subject(1), subject(2)
    found = linear_slice(first, second, points=points, examples=50)
    alphas, losses = (np.array(found["details"][name]) for name in ("alphas", "train_loss"))
    assert len(alphas) == points and alphas[0] == -1 and alphas[-1] == 2
    ends = [float(losses[alphas == a][0]) for a in (0, 1)]
    inside = losses[(alphas >= 0) & (alphas <= 1)]
    assert found["value"] == inside.max() - max(ends) >= 0 and found["status"] == "ok"


@pytest.mark.parametrize("points", [1, 3, 20])
def test_a_slice_without_its_ends_is_refused(points):
    """The barrier would be measured against whatever points lie nearest to them."""
    with pytest.raises(ConfigError, match=rf"{points} points on \[-1, 2\] misses an end"):
        linear_slice(subject(1), subject(2), points=points, examples=50)
