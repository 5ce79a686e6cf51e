"""Injected gradient noise against closed forms: a linear softmax model in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_runs import toy_config, toy_data

from experiments.lab.declare.config import Machine, Model, Norm, Precision, RunConfig
from experiments.lab.fused.ensemble import Ensemble
from experiments.lab.training import gradient as gradients
from experiments.lab.training.batch_stream import BatchStream
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.gradient import loss_and_gradients
from experiments.lab.training.initial import initial_model
from experiments.lab.training.shuffle import noise

B, SMALL = 24, 4
CONFIG = toy_config(precision=Precision.FLOAT64, batch_size=B, noise_batch=SMALL, lr=0.1)


def test_weights_have_their_moments_and_sum_to_the_batch() -> None:
    """Another sum would change the learning rate with every draw; another variance is another dose."""
    drawn = np.stack([noise(5, step, B, SMALL) for step in range(20000)])
    assert np.abs(drawn.sum(1) - B).max() < 1e-10
    covariance = np.cov(drawn, rowvar=False)
    expected = (B / SMALL - 1) * B / (B - 1) * (np.eye(B) - 1 / B)  # of s xi, xi centred and rescaled
    assert np.abs(covariance - expected).max() < 5 * (B / SMALL - 1) * np.sqrt(2 / 20000)
    assert not np.array_equal(noise(5, 0, B, SMALL), noise(6, 0, B, SMALL))


def test_the_gradient_has_the_mean_of_the_batch_and_the_noise_of_a_smaller_one() -> None:
    """By exact moments of the weights: E is the plain gradient, Cov = (1/b - 1/B) C."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (B,), generator=generator)
    model = nn.Linear(5, 3, bias=False).double()
    function = loss_and_gradients(CONFIG, model, members=False)
    weight = next(model.parameters()).detach()

    def gradient(weights: Tensor) -> Tensor:
        return function([weight], torch.zeros(3, dtype=torch.int64), x, y, weights)[1].flatten()

    p = torch.softmax(x @ weight.T, 1)
    each = ((p - nn.functional.one_hot(y, 3))[:, :, None] * x[:, None, :]).flatten(1)  # closed form, [B, 15]
    plain = gradient(torch.ones(B, dtype=torch.float64))
    torch.testing.assert_close(plain, each.mean(0), rtol=1e-12, atol=1e-14)
    # the gradient is linear in the weights, so that their exact covariance gives its own
    jacobian = torch.stack([gradient(row) for row in torch.eye(B, dtype=torch.float64)])
    of_weights = (B / SMALL - 1) * B / (B - 1) * (torch.eye(B, dtype=torch.float64) - 1 / B)
    unbiased = torch.cov(each.T)
    torch.testing.assert_close(jacobian.T @ of_weights @ jacobian, (1 / SMALL - 1 / B) * unbiased, rtol=1e-10, atol=1e-14)
    drawn = torch.stack([gradient(torch.from_numpy(noise(0, step, B, SMALL))) for step in range(3000)])
    scale = ((1 / SMALL - 1 / B) * unbiased.trace()).sqrt()
    assert (drawn.mean(0) - plain).norm() < 4 * scale / 3000**0.5
    assert torch.cov(drawn.T).trace() == pytest.approx(((1 / SMALL - 1 / B) * unbiased.trace()).item(), rel=0.1)


def test_with_the_batch_s_own_noise_it_is_that_of_the_smaller_batch() -> None:
    """Over all batches of 4 of 6 examples, without replacement, the doses would not add up to Cov (1/b - 1/N)."""
    each = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batches = torch.stack([each[list(chosen)] for chosen in itertools.combinations(range(6), 4)])
    own = torch.cov(batches.mean(1).T, correction=0)
    injected = torch.stack([(1 / 2 - 1 / 4) * torch.cov(batch.T) for batch in batches]).mean(0)
    torch.testing.assert_close(own + injected, (1 / 2 - 1 / 6) * torch.cov(each.T), rtol=1e-12, atol=1e-14)


def run(config: RunConfig, size: int = 10, **machine: Any) -> tuple[Tensor, Tensor]:
    data = toy_data(config, size)
    engine = SingleEngine(config, Machine(**machine), data, initial_model(config, Machine(), data))
    engine.advance(3)
    return torch.cat([p.detach().flatten() for p in engine.model().parameters()]), torch.cat(engine.losses[0])


def test_no_noise_is_the_plain_run() -> None:
    """Dose b = B adds nothing, to the last bit; the reported loss of the first batch is the unweighted one at every dose."""
    plain, losses = run(CONFIG.replace(noise_batch=None))
    none, _ = run(CONFIG.replace(noise_batch=B))
    noisy, weighted = run(CONFIG)
    assert torch.equal(plain, none)
    assert not torch.allclose(plain, noisy)
    assert weighted[0].item() == pytest.approx(losses[0].item(), rel=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_noise_does_not_depend_on_how_it_is_computed(rho: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, micro-batches, recorded programs and fused runs would add other noise than the run's own."""
    config = CONFIG.replace(model=Model.KESKAR_C1, width=None, depth=None, norm=Norm.GHOST, norm_batch=4, batch_size=8, lr=0.01,
                            sam_rho=rho)
    configs = [config.replace(seed=1), config.replace(seed=2)]
    alone = [run(own)[0] for own in configs]
    split, _ = run(configs[0], micro_batch=4)
    torch.testing.assert_close(split, alone[0], rtol=1e-9, atol=1e-11)
    monkeypatch.setattr(gradients, "RECORD_AFTER", 1)
    assert torch.equal(run(configs[0])[0], alone[0])
    data = toy_data(config, 10)
    models = [initial_model(own, Machine(), data) for own in configs]
    fused = Ensemble(configs, Machine(), data, models)
    fused.advance(3)
    for member, expected in enumerate(alone):
        found = torch.cat([p.detach().flatten() for p in fused.model(member).parameters()])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    stream = BatchStream(config, 72)
    whole, last = stream.block(0, 6).weights, stream.block(5, 1).weights
    assert whole is not None and last is not None and torch.equal(whole[5], last[0])
