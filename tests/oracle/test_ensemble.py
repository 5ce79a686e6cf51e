"""Runs trained as one program are the runs trained alone, up to rounding; a replayed update is the eager one, bitwise."""

from __future__ import annotations

from typing import Any

import pytest
from toy_runs import NETWORKS, NORMS, SIZES, Memory, identical, run, toy_config, toy_data

from experiments.lab.declare.config import (
    Augment,
    Budget,
    Machine,
    Model,
    Norm,
    Optimizer,
    Precision,
    RunConfig,
    Scaling,
    Schedule,
)
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.training import gradient
from experiments.lab.training.loop import train_group
from experiments.lab.training.outcome import Outcome

STEPS = {Model.KESKAR_C2: 1}  # 15 million weights
LARGE = ((Model.KESKAR_C2, Norm.BATCH), *((Model.WRN16_4, norm) for norm in Norm if norm is not Norm.BATCH))
ONCE = [pytest.param(model, norm, marks=pytest.mark.verify if (model, norm) in LARGE else (), id=f"{model}-{norm}")
        for model, norm in NETWORKS if model is not Model.KESKAR_C2 or norm is Norm.BATCH]
"""keskar-c1 and resnet20 try the same layers as keskar-c2 and wrn16-4 with every norm, in a fraction of the time"""


def fused(configs: list[RunConfig], size: int = 8, **machine: Any) -> tuple[list[Outcome], list[Memory]]:
    logs = [Memory() for _ in configs]
    return train_group(configs, Machine(**machine), toy_data(configs[0], size), logs, make_engine=fused_engine), logs


def difference(first: Outcome, second: Outcome) -> float:
    """Largest difference of the weights, relative to the largest weight of its tensor."""
    pairs = [(first.weights[name].double(), w.double()) for name, w in second.weights.items()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item() for a, b in pairs)


@pytest.mark.parametrize(("model", "norm"), ONCE)
def test_members_are_single_runs_up_to_rounding(model: Model, norm: Norm) -> None:
    """Seeds that learn from each other's examples, masks or statistics would not be seeds."""
    base = toy_config(model=model, **NORMS[norm], precision=Precision.FLOAT64, augment=Augment.CROP_FLIP, batch_size=8,
                      lr=0.01, momentum=0.9, steps=STEPS.get(model, 4))
    configs = [base.replace(seed=3), base.replace(seed=4, lr=0.02, weight_decay=0.01)]
    outcomes, _ = fused(configs, SIZES.get(model, 8))
    for config, outcome in zip(configs, outcomes, strict=True):
        alone, _ = run(config, size=SIZES.get(model, 8))
        assert difference(outcome, alone) < 1e-9
        assert outcome.values["test_loss"] == pytest.approx(alone.values["test_loss"], rel=1e-9)


@pytest.mark.parametrize(("model", "norm"), ONCE)
def test_a_replayed_update_is_the_eager_one(model: Model, norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    """When recording starts, or resumes, would change the weights."""
    config = toy_config(model=model, **NORMS[norm], augment=Augment.CROP_FLIP, batch_size=8, lr=0.01, steps=2,
                        optimizer=Optimizer.ADAM)
    eager, _ = run(config, size=SIZES.get(model, 8))
    used: list[bool] = []
    record = gradient.record

    def seen(*arguments: Any) -> Any:
        program = record(*arguments)
        used.append(program is not None)
        return program

    monkeypatch.setattr(gradient, "RECORD_AFTER", 0)
    monkeypatch.setattr(gradient, "record", seen)
    replayed, _ = run(config, size=SIZES.get(model, 8))
    assert used == [True]
    assert identical(eager.weights, replayed.weights)


ADAMW = toy_config(precision=Precision.FLOAT64, optimizer=Optimizer.ADAMW, lr=0.01, steps=12, batch_size=8)
LAMB = ADAMW.replace(optimizer=Optimizer.LAMB, clip_norm=1.0, ema=0.9, label_smoothing=0.1, gradient_penalty=0.1)
PLATEAU = toy_config(precision=Precision.FLOAT64, budget=Budget.PLATEAU, patience=1, max_epochs=6, batch_size=8, momentum=0.9,
                     nesterov=True, norm=Norm.BATCH)
MIXES = {
    "schedules": [
        ADAMW, ADAMW.replace(seed=1, steps=7, schedule=Schedule.COSINE, warmup=0.3, weight_decay=0.1),
        ADAMW.replace(seed=2, steps=20, scaling=Scaling.SQRT, base_batch_size=32, eps=1e-3, beta1=0.5),
        ADAMW.replace(seed=3, steps=15, lr=1e200),
    ],
    "layers": [LAMB, LAMB.replace(seed=1, steps=7, lr=0.03, weight_decay=0.1), LAMB.replace(seed=2, steps=20, beta1=0.5)],
    "stop rules": [
        PLATEAU, PLATEAU.replace(seed=1, lr=0.2, momentum=0.5), PLATEAU.replace(seed=2, patience=0.5, weight_decay=0.01)
    ],
}


@pytest.mark.parametrize("mix", MIXES)
def test_members_may_differ_in_every_scalar(mix: str) -> None:
    """A schedule, a decay or an end of one member would act on another."""
    outcomes, logs = fused(MIXES[mix])
    for config, outcome, log in zip(MIXES[mix], outcomes, logs, strict=True):
        alone, own = run(config)
        assert (outcome.status, outcome.reason, outcome.values["steps"]) == (alone.status, alone.reason, alone.values["steps"])
        assert [row["step"] for row in log.rows] == [row["step"] for row in own.rows]
        assert outcome.status == "diverged" or difference(outcome, alone) < 1e-9
