"""Running statistics at moved weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toy_functions import LOSS, bn_net, data

from sharpness.landscape.directions import random_direction
from sharpness.landscape.grid import slice_2d
from sharpness.landscape.paths import connect
from sharpness.landscape.slices import slice_1d
from sharpness.problem.parameters import flat_weights
from sharpness.problem.recalibration import recalibrate_batch_norm

torch.set_num_threads(1)


def by_hand(model: nn.Sequential, w, inputs) -> nn.Sequential:
    """Two layers of known shape, without hooks or momenta."""
    moved = copy.deepcopy(model)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(w), moved.parameters())
    with torch.no_grad():
        hidden = moved[0](inputs)
        moved[1].running_mean.copy_(hidden.mean(0))
        moved[1].running_var.copy_(hidden.var(0))
    return moved


def test_modes_of_the_statistics_differ_and_recalibration_is_that_by_hand():
    model, (inputs, targets) = bn_net(), data()
    d = [random_direction(model, s) for s in (0, 1)]
    options = {"directions": d, "alphas": [0.0, 1.0], "betas": [0.5]}
    keep = slice_2d(model, LOSS, (inputs, targets), **options)
    again = slice_2d(model, LOSS, (inputs, targets), bn_mode="recalibrate", **options)
    assert keep.bn_mode == "keep" and again.bn_mode == "recalibrate"
    for i, alpha in enumerate(options["alphas"]):
        moved = by_hand(model, flat_weights(model) + alpha * d[0] + 0.5 * d[1], inputs)
        assert again.losses[i, 0] == pytest.approx(LOSS(moved(inputs), targets).item(), rel=1e-12)
        assert abs(again.losses[i, 0] - keep.losses[i, 0]) > 1e-3
    own = slice_2d(model, LOSS, (inputs, targets), bn_mode="recalibrate", calibration=data(seed=9), **options)
    assert abs(own.losses - again.losses).min() > 1e-6
    hook = slice_2d(model, LOSS, (inputs, targets), bn_mode="recalibrate",
                    recalibrate=lambda m: recalibrate_batch_norm(m, [(inputs, targets)]), **options)
    np.testing.assert_array_equal(hook.losses, again.losses)


def test_modes_on_a_line():
    a, b, pair = bn_net(1), bn_net(2), data()
    ends = {"start": a.state_dict(), "end": b.state_dict(), "alphas": [0.0, 0.5, 1.0]}
    keep, between, again = (slice_1d(bn_net(3), LOSS, pair, bn_mode=m, **ends) for m in ("keep", "interpolate", "recalibrate"))
    assert slice_1d(bn_net(3), LOSS, pair, **ends).bn_mode == "interpolate"
    assert between.losses[0] == pytest.approx(LOSS(a(pair[0]), pair[1]).item(), rel=1e-12)
    middle = by_hand(a, (flat_weights(a) + flat_weights(b)) / 2, pair[0])
    assert again.losses[1] == pytest.approx(LOSS(middle(pair[0]), pair[1]).item(), rel=1e-12)
    assert min(abs(keep.losses[1] - between.losses[1]), abs(again.losses[1] - between.losses[1])) > 1e-4


class Custom(nn.modules.batchnorm._BatchNorm):
    """A layer of the user's own, deriving from torch's."""

    def _check_input_dim(self, input):
        pass


SHAPES = [(nn.BatchNorm1d, (3, 5)), (nn.BatchNorm2d, (3, 4, 4)), (nn.BatchNorm3d, (3, 2, 2, 2)), (Custom, (3, 5))]


@pytest.mark.parametrize(("layer", "shape"), SHAPES)
def test_recalibration_weights_batches_by_their_length(layer, shape):
    """Ragged batches weighted alike; a momentum or a flag left changed."""
    torch.manual_seed(0)
    norm = layer(3, momentum=0.3).double()
    model = nn.Sequential(norm, nn.Dropout(0.5)).eval()
    batches = [(torch.randn(n, *shape, dtype=torch.float64) + n, None) for n in (6, 3, 2)]
    recalibrate_batch_norm(model, batches)
    mean = sum(len(x) / 11 * x.transpose(0, 1).flatten(1).mean(1) for x, _ in batches)
    variance = sum(len(x) / 11 * x.transpose(0, 1).flatten(1).var(1) for x, _ in batches)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(norm.running_var, variance, rtol=1e-12)
    assert norm.momentum == 0.3 and not any(m.training for m in model.modules()) and not norm._forward_pre_hooks


def test_dropout_is_off_while_statistics_are_computed():
    """With it on, they would be those of another network than the one eval mode measures, and random."""
    norm = nn.BatchNorm1d(4).double()
    inputs = data()[0]
    recalibrate_batch_norm(nn.Sequential(nn.Dropout(0.5), norm).train(), [(inputs, None)])
    np.testing.assert_allclose(norm.running_mean, inputs.mean(0), rtol=1e-12)


class Stubborn(nn.Module):
    """Keeps statistics of its own, as no layer of torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4, dtype=torch.float64))

    def forward(self, x):
        return x - self.running_mean


def test_statistics_that_cannot_be_recomputed_are_refused():
    model = nn.Sequential(Stubborn(), nn.Linear(4, 3).double())
    d = [random_direction(model, s) for s in (0, 1)]
    with pytest.raises(ValueError, match=r"'0' .Stubborn. keeps running_mean"):
        slice_2d(model, LOSS, data(), directions=d, alphas=[0], betas=[0], bn_mode="recalibrate")
    norm = nn.Sequential(nn.BatchNorm1d(4).double())
    for batches, message in [([], "no batch"),
                             ([(torch.zeros(1, 4).double(), None)], "one value per channel"),
                             (torch.zeros(2, 3, 4), "where a pair")]:
        with pytest.raises(ValueError, match=message):
            recalibrate_batch_norm(norm, batches)


def everything(model: nn.Module) -> list[object]:
    facts: list[object] = [torch.get_rng_state().numpy().tobytes()]
    for module in model.modules():
        hooks = len(module._forward_pre_hooks)
        facts.append((module.training, getattr(module, "momentum", None), hooks))
        for t in [*module._parameters.values(), *module._buffers.values()]:
            facts.append((id(t), t.data_ptr(), t._version, t.requires_grad, t.detach().numpy().tobytes()))
            facts.append(None if t.grad is None else t.grad.numpy().tobytes())
    return facts


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("fail_at", [None, 1, 4, 6])
def test_the_model_is_left_as_it_came(mode, fail_at, tmp_path):
    """Momenta and hooks of recalibration included, after an exception too."""
    model, pair = bn_net().train(), data()
    model(pair[0]).sum().backward()
    model[1].eval()
    model[4].requires_grad_(False)
    ends = {"start": bn_net(1).state_dict(), "end": bn_net(2).state_dict()}
    d = [random_direction(model, s) for s in (0, 1)]
    calls = 0

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise KeyboardInterrupt
        return LOSS(outputs, targets)

    grid = {"directions": d, "alphas": [0.0, 0.1], "betas": [0.0, 0.3], "bn_mode": "recalibrate"}
    for measure in (lambda: slice_2d(model, loss, pair, mode=mode, checkpoint=tmp_path / "grid", **grid),
                    lambda: slice_1d(model, loss, pair, mode=mode, alphas=[0, 0.5], bn_mode="recalibrate", **ends),
                    lambda: connect(model, loss, pair, mode=mode, steps=2, points=3, **ends)):
        before, calls = everything(model), 0
        if fail_at is None:
            measure()
        else:
            with pytest.raises(KeyboardInterrupt):
                measure()
        assert everything(model) == before
