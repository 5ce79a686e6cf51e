"""Updates that look at a batch twice, against plain transcriptions of their papers' equations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_runs import toy_config, toy_data

from experiments.lab.declare.config import Augment, Machine, Model, Norm, Precision, RunConfig
from experiments.lab.fused.ensemble import Ensemble
from experiments.lab.training import gradient as gradients
from experiments.lab.training.data import Data
from experiments.lab.training.engine import Engine, SingleEngine
from experiments.lab.training.initial import initial_model
from experiments.lab.training.sam import Perturbed, sam_perturbation
from sharpness import worst_case_sharpness

SAM = toy_config(precision=Precision.FLOAT64, batch_size=24, lr=0.1, weight_decay=0.01, sam_rho=0.3)
ASAM = SAM.replace(sam_adaptive=True, sam_rho=0.5)
KINDS = {"sam": SAM, "asam": ASAM}


def single(config: RunConfig, size: int = 8, **machine: Any) -> tuple[SingleEngine, Data]:
    data = toy_data(config, size)
    machine_ = Machine(**machine)
    return SingleEngine(config, machine_, data, initial_model(config, machine_, data)), data


def weights(engine: Engine, member: int = 0) -> Tensor:
    return torch.cat([p.detach().flatten() for p in engine.model(member).parameters()])


def by_the_papers(config: RunConfig, steps: int) -> Tensor:
    """SGD at w on the gradient at w + e; e = rho g / ||g|| (Foret et al. 2021) or rho T (T g) / ||T g||, T = diag |w| (Kwon et
    al. 2021); decay is coupled and at w."""
    engine, data = single(config)
    model, order = engine.model(), engine.streams[0]
    with torch.no_grad():
        flat = nn.utils.parameters_to_vector(model.parameters())

    def gradient(w: Tensor, positions: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(w, model.parameters())
        loss = nn.functional.cross_entropy(model(data.train.inputs[positions]), data.train.targets[positions])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    for step in range(steps):
        positions = order.block(step, 1).positions[0]
        g = gradient(flat, positions)
        t = flat.abs() if config.sam_adaptive else torch.ones_like(flat)
        e = config.sam_rho * t * (t * g) / torch.linalg.norm(t * g)
        flat = flat - config.lr * (gradient(flat + e, positions) + config.weight_decay * flat)
    return flat


@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_the_papers(kind: str) -> None:
    """A norm a layer, an ascent that stays in the weights, or decay in the ascent would pass for the method."""
    config = KINDS[kind]
    engine, _ = single(config)
    engine.advance(6)
    expected = by_the_papers(config, 6)
    torch.testing.assert_close(weights(engine), expected, rtol=1e-10, atol=1e-13)
    for other in (config.replace(sam_rho=config.sam_rho * 1.01), config.replace(sam_rho=0.0, sam_adaptive=False)):
        assert not torch.allclose(by_the_papers(other, 6) if other.sam_rho else _plain(other), expected, rtol=1e-6)


def _plain(config: RunConfig) -> Tensor:
    engine, _ = single(config)
    engine.advance(6)
    return weights(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ascent_is_that_of_the_measured_sharpness(kind: str) -> None:
    """What is trained against would not be what is measured."""
    config = KINDS[kind]
    engine, data = single(config)
    model, parameters = engine.model(), list(engine.model().parameters())
    inputs, targets = data.train.inputs[:24], data.train.targets[:24]

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(inputs), targets)

    found = worst_case_sharpness(
        model, nn.functional.cross_entropy, (inputs, targets), rho=config.sam_rho, adaptive=config.sam_adaptive, steps=1
    )
    at_w = loss()
    steps = sam_perturbation(config, [p.detach() for p in parameters], torch.autograd.grad(at_w, parameters))
    with torch.no_grad():
        for p, e in zip(parameters, steps, strict=True):
            p += e
        assert (loss() - at_w).item() == pytest.approx(found.value, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vanishing_radius_is_the_plain_update(kind: str) -> None:
    """The displacement would leave something behind in the weights; at no gradient it is 0 and not NaN."""
    config = KINDS[kind]
    small, data = single(config.replace(sam_rho=1e-200))
    small.advance(4)
    plain, _ = single(config.replace(sam_rho=0.0, sam_adaptive=False))
    plain.advance(4)
    assert torch.equal(weights(small), weights(plain))
    before = weights(small).clone()
    away = [torch.randn_like(p) for p in small.gradient.parameters]
    Perturbed(config, small.gradient).at(away, torch.zeros(3, dtype=torch.int64), *data.train.at(torch.arange(24), None))
    assert torch.equal(weights(small), before)  # also where w + e - e would not be
    zeros = [torch.zeros(3, 2), torch.zeros(4)]
    assert all(torch.equal(e, z) for e, z in zip(sam_perturbation(config, [z + 1 for z in zeros], zeros), zeros, strict=True))


HARD: dict[str, Any] = {
    "width": None, "depth": None, "model": Model.KESKAR_C1, "norm": Norm.GHOST, "norm_batch": 4, "augment": Augment.CROP_FLIP,
    "batch_size": 8, "momentum": 0.9, "lr": 0.01, "sam_rho": 0.05,
}


@pytest.mark.parametrize("kind", KINDS)
def test_fused_and_split_updates_are_the_single_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One norm over all members, or one a micro-batch, or another dropout mask in the second pass."""
    config = KINDS[kind].replace(**HARD)
    configs = [config.replace(seed=3), config.replace(seed=4, lr=0.003)]
    alone = []
    for own in configs:
        engine, data = single(own, 10)
        engine.advance(3)
        alone.append(weights(engine))
    split, _ = single(configs[0], 10, micro_batch=4)
    split.advance(3)
    monkeypatch.setattr(gradients, "RECORD_AFTER", 1)
    recorded, _ = single(configs[0], 10)
    recorded.advance(3)
    assert torch.equal(weights(recorded), alone[0])
    models = [initial_model(own, Machine(), data) for own in configs]
    fused = Ensemble(configs, Machine(), data, models)
    fused.advance(3)
    for found, expected in ((weights(split), alone[0]), (weights(fused, 0), alone[0]), (weights(fused, 1), alone[1])):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
