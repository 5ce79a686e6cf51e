"""Normalisation with explicit statistics, and the networks that carry it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_runs import toy_config

from experiments.lab import models
from experiments.lab.config import Model, Norm
from experiments.lab.models.dropout import Dropout
from experiments.lab.models.norms import EPS, BatchNorm, Normalizer, calibrate


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1


def with_affine(layer: BatchNorm) -> BatchNorm:
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, len(layer.weight)))
        layer.bias.copy_(torch.linspace(-1, 1, len(layer.bias)))
    return layer.double()


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 4, 3)])
def test_batch_norm_is_torchs(shape: tuple[int, ...]) -> None:
    """Another epsilon or variance would be another network than the papers'."""
    ours, x = with_affine(BatchNorm(5)), features(*shape)
    torchs = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5, eps=EPS).double()
    torchs.load_state_dict(ours.state_dict(), strict=False)
    torch.testing.assert_close(ours.train()(x), torchs(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.running_mean, torch.zeros(5).double())  # training keeps no statistics


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 4, 3)])
def test_ghost_batch_norm_is_batch_norm_of_each_group(shape: tuple[int, ...]) -> None:
    """Statistics would leak between ghost batches; gradients too."""
    whole, ghost = with_affine(BatchNorm(5)).train(), with_affine(BatchNorm(5, 4)).train()
    x, y = features(*shape).requires_grad_(), features(*shape).requires_grad_()
    expected = torch.cat([whole(group) for group in x.split(4)])
    torch.testing.assert_close(ghost(y), expected, rtol=1e-12, atol=1e-12)
    expected.pow(3).sum().backward()
    ghost(y).pow(3).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ghost.weight.grad, whole.weight.grad, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(whole(y), expected)  # the two differ


def test_ghost_batch_norm_refuses_a_ragged_pass() -> None:
    """The last group would be another normalisation batch."""
    with pytest.raises(ValueError, match="does not divide the 10 examples"):
        BatchNorm(5, 4).double().train()(features(10, 5))


def test_calibration_is_the_average_of_batch_statistics() -> None:
    """Evaluation would use stale statistics, or statistics of the wrong inputs to the second layer."""
    first, second = with_affine(BatchNorm(5, 2)), with_affine(BatchNorm(3))
    linear = nn.Linear(5, 3).double()
    dropout = Dropout(0.5)
    model = nn.Sequential(first, dropout, linear, second).train()
    second.eval()
    batches = features(24, 5).split(8)
    calibrate(model, batches)

    def normed(x: Tensor) -> Tensor:
        return (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + EPS) * first.weight + first.bias

    inner = [linear(normed(x)) for x in batches]
    for layer, inputs in ((first, batches), (second, inner)):
        mean = torch.stack([x.mean(0) for x in inputs]).mean(0)
        var = torch.stack([((x - x.mean(0)) ** 2).mean(0) for x in inputs]).mean(0)
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.running_var, var, rtol=1e-12, atol=1e-12)
    assert (first.training, dropout.training, second.training, first.norm_batch) == (True, True, False, 2)


def test_calibration_restores_modes_after_an_error() -> None:
    """A failed pass would leave the net in another mode, and ghost norm switched off."""
    layer = BatchNorm(5, 2)
    model = nn.Sequential(layer, nn.Linear(5, 3)).train()
    with pytest.raises(RuntimeError):
        calibrate(model, [torch.zeros(4, 6)])
    assert layer.training and layer.norm_batch == 2 and not layer._forward_pre_hooks


def test_evaluation_uses_the_calibrated_statistics() -> None:
    """Evaluation would depend on its own batch."""
    layer = with_affine(BatchNorm(5))
    calibrate(layer, [features(8, 5)])
    layer.eval()
    x = features(20, 5)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(512, 32), (64, 4), (48, 3), (40, 2), (31, 1), (10, 1)])
def test_group_norm_sizes(channels: int, groups: int) -> None:
    """A number of channels that 16 does not divide would raise; groups of one feature are always 0."""
    layer = Normalizer(Norm.GROUP, None)(channels)
    assert isinstance(layer, nn.GroupNorm) and layer.num_groups == groups


NORMS: dict[Norm, dict[str, Any]] = {norm: {"norm": norm} for norm in Norm} | {Norm.GHOST: {"norm": Norm.GHOST, "norm_batch": 2}}
PARAMETERS = {  # by hand from the layers' shapes: weights and biases without norm, and norm's two a channel
    Model.MLP: ((784 * 512 + 512) + 4 * (512 * 512 + 512) + (512 * 10 + 10), 2 * 5 * 512, (1, 28, 28)),
    Model.SMALL_CONV: (25 * 16 + 16 + 9 * 16 * 32 + 32 + 9 * 32 * 32 + 32 + 512 * 64 + 64 + 650, 2 * (16 + 32 + 32 + 64),
                       (1, 28, 28)),
    Model.KESKAR_C1: (1_389_194 - 2 * (64 + 64 + 384 + 192), 2 * (64 + 64 + 384 + 192), (3, 32, 32)),
    Model.KESKAR_C2: (14_714_688 + 512 * 512 + 512 + 5130, 2 * (4224 + 512), (3, 32, 32)),
    Model.RESNET20: (9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64) + 650,  # He et al.: 0.27 million
                     2 * (7 * 16 + 6 * 32 + 6 * 64), (3, 32, 32)),
}  # fmt: skip


@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("model", Model)
def test_networks_have_the_papers_size(model: Model, norm: Norm) -> None:
    """A layer too few or too wide would be another network."""
    fields: dict[str, Any] = {"width": None, "depth": None} if model is Model.MLP else {}
    plain, of_norm, shape = PARAMETERS[model]
    net = models.build(toy_config(model=model, **fields, **NORMS[norm]), shape, 10)
    assert sum(p.numel() for p in net.parameters()) == plain + (of_norm if norm is not Norm.NONE else 0)
    assert net.training and all(m.training for m in net.modules())
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    """Two arms of one seed would start apart; building a net would move the caller's random numbers."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (models.build(toy_config(seed=seed), (1, 8, 8), 4).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])
