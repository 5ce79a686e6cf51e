"""Normalisation with explicit statistics, and the networks that carry it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_runs import toy_config

from experiments.lab import models
from experiments.lab.declare.config import Model, Norm
from experiments.lab.declare.errors import ConfigError
from experiments.lab.models.dropout import Dropout
from experiments.lab.models.norms import EPS, BatchNorm, Normalizer, calibrate
from experiments.lab.models.vit import Attention
from experiments.lab.models.wrn import WideBlock


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


def residual(n: int) -> tuple[int, int, tuple[int, int, int]]:
    """3 stages of n blocks without shortcut weights: parameters without norm, of norm, the shape of an image."""
    convolutions = 3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2
    return 9 * convolutions + 650, 2 * (16 + 2 * n * (16 + 32 + 64)), (3, 32, 32)


def wide(n: int, k: int) -> tuple[int, int, tuple[int, int, int]]:
    """3 stages of n blocks, 1 x 1 shortcuts, the norm of each block's input first and one at the end."""
    widths = (16, 16 * k, 32 * k, 64 * k)
    changes = list(itertools.pairwise(widths))
    convolutions = 9 * (3 * 16 + sum(a * b + (2 * n - 1) * b * b for a, b in changes)) + sum(a * b for a, b in changes)
    return convolutions + 64 * k * 10 + 10, 2 * (sum(a + (2 * n - 1) * b for a, b in changes) + 64 * k), (3, 32, 32)


PARAMETERS = {  # by hand from the layers' shapes: weights and biases without norm, and norm's two per channel
    Model.MLP: ((784 * 512 + 512) + 4 * (512 * 512 + 512) + (512 * 10 + 10), 2 * 5 * 512, (1, 28, 28)),
    Model.SMALL_CONV: (25 * 16 + 16 + 9 * 16 * 32 + 32 + 9 * 32 * 32 + 32 + 512 * 64 + 64 + 650, 2 * (16 + 32 + 32 + 64),
                       (1, 28, 28)),
    Model.KESKAR_C1: (1_389_194 - 2 * (64 + 64 + 384 + 192), 2 * (64 + 64 + 384 + 192), (3, 32, 32)),
    Model.KESKAR_C2: (14_714_688 + 512 * 512 + 512 + 5130, 2 * (4224 + 512), (3, 32, 32)),
    Model.RESNET8: residual(1), Model.RESNET20: residual(3), Model.RESNET32: residual(5), Model.RESNET44: residual(7),
    Model.RESNET56: residual(9), Model.WRN16_4: wide(2, 4), Model.WRN28_10: wide(4, 10),
    # patches, positions, six blocks of attention, hidden layer and two norms, the last norm, ten classes
    Model.VIT: (49 * 128 + 64 * 128 + 6 * (4 * 129 * 128 + 129 * 256 + 257 * 128 + 512) + 256 + 1290, 0, (3, 32, 32)),
    # as many vectors as tokens and positions, two blocks as above, the last norm, ten tokens
    Model.CAUSAL_TRANSFORMER: (64 * (10 + 48) + 2 * (4 * 65 * 64 + 65 * 256 + 257 * 64 + 256) + 128 + 650, 0, (48,)),
    Model.QUADRATIC: (256, 0, (1, 16, 16)),
}
PUBLISHED = {Model.RESNET20: 0.27, Model.RESNET32: 0.46, Model.RESNET44: 0.66, Model.RESNET56: 0.85,
             Model.WRN16_4: 2.7, Model.WRN28_10: 36.5}
"""millions of parameters with batch norm (He et al. 2016; Zagoruyko and Komodakis 2016)"""


@pytest.mark.parametrize(("model", "norm"), [
    (m, n) for m in Model for n in Norm if n is Norm.NONE or m not in (Model.VIT, Model.CAUSAL_TRANSFORMER)
])
def test_networks_have_the_papers_size(model: Model, norm: Norm) -> None:
    """A layer too few or too wide would be another network."""
    fields: dict[str, Any] = {"width": None, "depth": None} if model is Model.MLP else {}
    if model is Model.QUADRATIC:
        fields = {"dataset": "noisy-quadratic"}
    plain, of_norm, shape = PARAMETERS[model]
    with torch.device("meta"):
        net = models.build(toy_config(model=model, **fields, **NORMS[norm]), shape, 10)
        sequences = model is Model.CAUSAL_TRANSFORMER
        x = torch.zeros(2, *shape, dtype=torch.int64 if sequences else None)
        assert net(x).shape == ((2, 48, 10) if sequences else (2, 2 if model is Model.QUADRATIC else 10))
    count = sum(p.numel() for p in net.parameters())
    assert count == plain + (of_norm if norm is not Norm.NONE else 0)
    assert net.training and all(m.training for m in net.modules())
    if norm is Norm.BATCH and model in PUBLISHED:
        assert count / 1e6 == pytest.approx(PUBLISHED[model], rel=0.02)


def test_layer_norm_is_one_group() -> None:
    """Over channels and pixels of each example, or over its features: torch's own without an affine map a pixel."""
    for shape in ((6, 5), (6, 5, 4, 3)):
        x = features(*shape)
        ours = Normalizer(Norm.LAYER, None)(5).double()(x)
        torch.testing.assert_close(ours, nn.functional.layer_norm(x, shape[1:], eps=EPS), rtol=1e-12, atol=1e-12)


def test_causal_transformer_sees_no_later_token() -> None:
    """It would read the answers: another loss than that of what follows. And the past must count."""
    net = models.build(toy_config(model=Model.CAUSAL_TRANSFORMER), (8,), 5).double()
    x = torch.arange(16).reshape(2, 8) % 5
    y = x.clone()
    y[:, 5] = (y[:, 5] + 1) % 5
    a, b = net(x), net(y)
    assert torch.equal(a[:, :5], b[:, :5]) and all(not torch.allclose(a[:, t], b[:, t]) for t in (5, 6, 7))
    torch.testing.assert_close(net(x[:, :3]), a[:, :3])  # shorter sequences, too


def test_vision_transformer_against_its_equations() -> None:
    """Heads that mix, or a softmax over the wrong axis, would be another function."""
    net = models.build(toy_config(model=Model.VIT), (1, 8, 8), 4).double()
    attention = next(m for m in net.modules() if isinstance(m, Attention))
    x = features(2, 5, 128)
    q, k, v = attention.qkv(x).split(128, -1)
    heads = [nn.functional.scaled_dot_product_attention(*(t[..., h : h + 32] for t in (q, k, v))) for h in range(0, 128, 32)]
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)), rtol=1e-10, atol=1e-10)
    with pytest.raises(ConfigError, match="the images are 10 x 10"):
        models.build(toy_config(model=Model.VIT), (1, 10, 10), 4)


def test_wide_block_is_pre_activation() -> None:
    """x + F(relu(x)) where the shape stays; where it changes the 1x1 convolution sees the activation, not x."""
    torch.manual_seed(0)
    plain = Normalizer(Norm.NONE, None)
    same, wider = WideBlock(4, 4, 1, plain).double(), WideBlock(4, 6, 2, plain).double()
    x = features(2, 4, 6, 6)
    assert same.shortcut is None and wider.shortcut is not None
    torch.testing.assert_close(same(x) - x, same.body(torch.relu(x)))
    torch.testing.assert_close(wider(x) - wider.body(torch.relu(x)), wider.shortcut(torch.relu(x)))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    """Two arms of one seed would start apart; building a net would move the caller's random numbers."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (models.build(toy_config(seed=seed), (1, 8, 8), 4).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])
