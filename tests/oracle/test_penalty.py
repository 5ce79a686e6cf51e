"""The penalty of the gradient's norm against dense Hessians in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy_runs import toy_config, toy_data

from experiments.lab.config import Machine, Model, Norm, Precision, RunConfig
from experiments.lab.training.ascent import LENGTH, descent
from experiments.lab.training.course import initial_model
from experiments.lab.training.ensemble import Ensemble
from experiments.lab.training.stepper import Single

CONFIG = toy_config(precision=Precision.FLOAT64, batch_size=24, lr=0.1, width=4, depth=1, gradient_penalty=0.7)


def stepper(config: RunConfig) -> Single:
    data = toy_data(config)
    return Single(config, Machine(), data, initial_model(config, Machine(), data, None), config.steps)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def test_the_gradient_is_that_of_the_penalised_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """c g H, c H g / ||g|| or twice the penalty would all regularise; the difference's own error falls with its length."""
    own = stepper(CONFIG)
    parameters, data = list(own.model().parameters()), own.data.train
    batch = torch.zeros(3, dtype=torch.int64), data.inputs[:24], data.targets[:24]
    start = flat(parameters)

    def loss(w: Tensor) -> Tensor:
        sizes = dict(zip([n for n, _ in own.model().named_parameters()], w.split([p.numel() for p in parameters]), strict=True))
        shaped = {n: t.view_as(own.model().get_parameter(n)) for n, t in sizes.items()}
        return nn.functional.cross_entropy(torch.func.functional_call(own.model(), shaped, (batch[1],)), batch[2])

    g = torch.func.grad(loss)(start)
    expected = g + 0.7 * torch.func.hessian(loss)(start) @ g
    errors = []
    for length in (LENGTH, LENGTH / 10, LENGTH / 100):
        monkeypatch.setattr("experiments.lab.training.ascent.LENGTH", length)
        value, found = own.descent(*batch)
        errors.append(((flat(found) - expected).norm() / (expected - g).norm()).item())
        assert value.item() == pytest.approx(loss(start).item(), rel=1e-12)
    assert errors[0] < 0.02 and errors[2] < errors[1] / 5 < errors[0] / 25
    assert torch.equal(flat(parameters), start)


def test_members_have_their_own_penalty() -> None:
    """One length over all members."""
    base = CONFIG.replace(model=Model.MLP, norm=Norm.GHOST, norm_batch=4, momentum=0.9)
    configs = [base.replace(seed=3), base.replace(seed=4, lr=0.02)]
    fused = Ensemble(configs, Machine(), toy_data(base), [stepper(c).model() for c in configs], [None, None])
    fused.advance(4)
    for member, config in enumerate(configs):
        alone = stepper(config)
        alone.advance(4)
        found, expected = (flat(list(model.parameters())) for model in (fused.model(member), alone.model()))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_no_gradient_no_penalty() -> None:
    """0 / 0 where a batch is fitted."""
    own = stepper(CONFIG)
    zeros = [torch.zeros_like(p) for p in own.gradient.parameters]
    own.gradient._part = lambda *batch: (torch.zeros(()), *zeros)  # type: ignore[method-assign]
    _, found = descent(CONFIG, own.gradient)(torch.zeros(3, dtype=torch.int64), *own.data.train.at(torch.arange(24), None))
    assert all(torch.equal(a, b) for a, b in zip(found, zeros, strict=True))
