"""The penalty of the gradient's norm against dense Hessians in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy_runs import toy_config, toy_data

from experiments.lab.declare.config import Machine, Model, Norm, Precision, RunConfig
from experiments.lab.fused.ensemble import Ensemble
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.initial import initial_model
from experiments.lab.training.sam import LENGTH, descent

CONFIG = toy_config(precision=Precision.FLOAT64, batch_size=24, lr=0.1, width=4, depth=1, gradient_penalty=0.7)


def engine(config: RunConfig, micro_batch: int | None = None) -> SingleEngine:
    data, machine = toy_data(config, 8 if config.model is Model.MLP else 10), Machine(micro_batch=micro_batch)
    return SingleEngine(config, machine, data, initial_model(config, machine, data))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradient_is_that_of_the_penalised_loss(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """c H g / ||g||, twice the penalty, or a part's scaled by its share; the difference's own error falls with its length."""
    own = engine(CONFIG if parts == 1 else CONFIG.replace(penalty_batch=8))
    parameters, data = list(own.model().parameters()), own.data.train
    batch = torch.zeros(3, dtype=torch.int64), data.inputs[:24], data.targets[:24]
    start = flat(parameters)

    def loss(w: Tensor, part: slice = slice(None)) -> Tensor:
        sizes = dict(zip([n for n, _ in own.model().named_parameters()], w.split([p.numel() for p in parameters]), strict=True))
        shaped = {n: t.view_as(own.model().get_parameter(n)) for n, t in sizes.items()}
        return nn.functional.cross_entropy(torch.func.functional_call(own.model(), shaped, (batch[1][part],)), batch[2][part])

    g = torch.func.grad(loss)(start)
    slices = [slice(24 // parts * k, 24 // parts * (k + 1)) for k in range(parts)]
    penalties = [torch.func.hessian(loss)(start, part) @ torch.func.grad(loss)(start, part) for part in slices]
    expected = g + 0.7 * torch.stack(penalties).mean(0)
    errors = []
    for length in (LENGTH / 10, LENGTH / 100, LENGTH / 1000):  # the whole length may cross a kink of the loss
        monkeypatch.setattr("experiments.lab.training.sam.LENGTH", length)
        value, found = own.descent(*batch)
        errors.append(((flat(found) - expected).norm() / (expected - g).norm()).item())
        assert value.item() == pytest.approx(loss(start).item(), rel=1e-12)
    assert errors[0] < 0.002 and errors[2] < errors[1] / 5 < errors[0] / 25
    assert torch.equal(flat(parameters), start)


def test_members_have_their_own_penalty() -> None:
    """One length over all members, or a part's or micro-batch's dropout masks that are another's."""
    base = CONFIG.replace(model=Model.KESKAR_C1, width=None, depth=None, norm=Norm.GHOST, norm_batch=4, penalty_batch=8, lr=0.01)
    configs = [base.replace(seed=3), base.replace(seed=4, lr=0.02)]
    fused = Ensemble(configs, Machine(), toy_data(base, 10), [engine(c).model() for c in configs])
    fused.advance(2)
    for member, config in enumerate(configs):
        alone = engine(config)
        alone.advance(2)
        split = engine(config, micro_batch=4)
        split.advance(2)
        for found in (fused.model(member), split.model()):
            pair = (flat(list(model.parameters())) for model in (found, alone.model()))
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-7)  # differences over a length magnify rounding


def test_no_gradient_no_penalty() -> None:
    """0 / 0 where a batch is fitted."""
    own = engine(CONFIG)
    zeros = [torch.zeros_like(p) for p in own.gradient.parameters]
    own.gradient._part = lambda *batch: (torch.zeros(()), *zeros)
    _, found = descent(CONFIG, own.gradient)(torch.zeros(3, dtype=torch.int64), *own.data.train.at(torch.arange(24), None))
    assert all(torch.equal(a, b) for a, b in zip(found, zeros, strict=True))
