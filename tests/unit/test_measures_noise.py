"""Curvature along a run's own gradients, against explicit Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy_runs import toy_config, toy_data

from experiments.lab.declare.config import Machine, Precision
from experiments.lab.measures.noise import STEP, own_batch_sharpness
from experiments.lab.measures.subject import Subject
from experiments.lab.training.batch_stream import BatchStream
from experiments.lab.training.initial import initial_model


@pytest.mark.parametrize("noise", [None, 2])
def test_it_is_the_ratio_over_the_runs_own_batches(noise: int | None) -> None:
    """The curvature of a gradient without its weights, or of other batches, is not the one that a step meets."""
    config = toy_config(precision=Precision.FLOAT64, width=4, depth=1, batch_size=8, noise_batch=noise)
    data = toy_data(config)
    model = initial_model(config, Machine(), data).eval()
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    names = [(name, p.shape, p.numel()) for name, p in model.named_parameters()]
    block = BatchStream(config, len(data.train)).block(STEP, 5)
    above = below = 0.0
    for k in range(5):
        chosen, weights = block.positions[k], torch.ones(8) if block.weights is None else block.weights[k]

        def loss(w: Tensor, chosen: Tensor = chosen, weights: Tensor = weights) -> Tensor:
            parts = w.split([n for _, _, n in names])
            own = {name: part.view(shape) for (name, shape, _), part in zip(names, parts, strict=True)}
            outputs = torch.func.functional_call(model, own, (data.train.inputs[chosen],))
            return (weights * nn.functional.cross_entropy(outputs, data.train.targets[chosen], reduction="none")).sum() / 8

        g = torch.func.grad(loss)(start)
        above += (g @ torch.func.hessian(loss)(start) @ g).item()
        below += (g @ g).item()
    found = own_batch_sharpness(Subject(config, model, {}, data), batches=5)
    assert found["value"] == pytest.approx(above / below, rel=1e-9)
    assert found["standard_error"] > 0
