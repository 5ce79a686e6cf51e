"""Updates as CUDA graphs, as far as that can be seen without a GPU: the tables, and that no update asks the host to wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from toy_runs import toy_config, toy_data

from experiments.lab.declare.config import Augment, Machine, Model, Norm, Optimizer, RunConfig, Schedule
from experiments.lab.fused.cuda_graphs import Graph
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.training.data import Data
from experiments.lab.training.engine import Engine, never
from experiments.lab.training.initial import initial_model

CONFIG = toy_config(model=Model.KESKAR_C1, norm=Norm.GHOST, norm_batch=4, batch_size=8, augment=Augment.CROP_FLIP, lr=0.01,
                    momentum=0.9, steps=24, schedule=Schedule.COSINE)


def engine(configs: list[RunConfig], data: Data, machine: Machine | None = None) -> Engine:
    models = [initial_model(config, Machine(), data).to(data.train.inputs.device) for config in configs]
    return fused_engine(configs, machine or Machine(), data, models)


TWICE: dict[str, Any] = {"sam_rho": 0.05, "sam_adaptive": True, "noise_batch": 2}
"""looks at a batch twice, with weights of its examples"""


@pytest.mark.parametrize("extra", [{}, TWICE])
@pytest.mark.parametrize("members", [1, 3])
def test_replays_are_the_updates_of_their_own_steps(members: int, extra: dict[str, Any]) -> None:
    """A graph would train on other examples, masks or learning rates than its step's, or lose losses at a checkpoint."""
    configs = [CONFIG.replace(seed=seed, lr=0.01 * (seed + 1), **extra) for seed in range(members)]
    data = toy_data(CONFIG, 10)
    plain, graphed = engine(configs, data), engine(configs, data)
    graphed.block_steps = 10
    graphed.graph = Graph(graphed.update, 10, capture=lambda body: body)  # what a CUDA graph repeats is its body
    plain.advance(24)
    for until, stop in ((2, None), (9, 6), (9, None), (24, 15), (24, None)):
        graphed.advance(until, never if stop is None else (lambda step: step == stop))  # noqa: B023
        assert graphed.step == (stop or until)
    for member in range(members):
        a, b = plain.copy(member), graphed.copy(member)
        assert a.step == b.step == 24
        assert all(torch.allclose(a.tensors[name], b.tensors[name], rtol=1e-4, atol=1e-6) for name in a.tensors), member
        assert len(b.tensors["losses"]) == 24

LARS: dict[str, Any] = {"optimizer": Optimizer.LARS, "momentum": 0.9}
LAMB: dict[str, Any] = {"optimizer": Optimizer.LAMB, "clip_norm": 1.0, "ema": 0.9, "label_smoothing": 0.1,
                        "gradient_penalty": 0.1}
MODELS = (Model.MLP, Model.KESKAR_C1, Model.RESNET20)
CASES = [*((model, {}) for model in MODELS), *((Model.MLP, fields) for fields in ({"optimizer": Optimizer.ADAM}, TWICE))]


@pytest.mark.parametrize(("model", "fields"), [*CASES, (Model.MLP, LARS), (Model.MLP, LAMB)])
@pytest.mark.parametrize("members", [1, 2])
def test_no_update_waits_for_the_device(model: Model, members: int, fields: dict[str, Any]) -> None:
    """One hidden synchronisation and an update cannot be captured; tensors without values cannot be read by the host."""
    config = toy_config(model=model, norm=Norm.GHOST, norm_batch=4, batch_size=8, augment=Augment.CROP_FLIP, **fields)
    moving = engine([config.replace(seed=seed) for seed in range(members)], toy_data(config, 10))
    with FakeTensorMode(allow_non_fake_inputs=True):
        axis = (members,) if members > 1 else ()
        rows: tuple[Any, ...] = (
            torch.zeros(*axis, 8, dtype=torch.int64), torch.zeros(*axis, 8, 3, dtype=torch.int64),
            torch.zeros(axis), torch.zeros(*axis, 3, dtype=torch.int64), torch.ones(*axis, 8) if fields is TWICE else None,
        )
        moving.update(*rows)
        with pytest.raises(DataDependentOutputException):
            moving.update(*rows).sum().item()  # what a wait looks like here
