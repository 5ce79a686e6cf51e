"""Measurements during training: the replay is the run, and what is read off it has closed forms."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_store
from toy_runs import toy_config, toy_data, toy_images

from experiments.lab.declare.config import Budget, Machine, Norm, Optimizer, RunConfig, Schedule
from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures.during_training import evenly, log_spaced, threshold, walks
from experiments.lab.measures.registry import METRICS
from experiments.lab.measures.replay_run import states
from experiments.lab.measures.subject import Subject, load_subject
from experiments.lab.store.files import StoreError
from experiments.lab.store.records import Store
from experiments.lab.training import data

torch.set_num_threads(1)
CONFIGS = [
    toy_config(steps=40, momentum=0.9, schedule=Schedule.COSINE, warmup=0.2),  # long enough to be replayed as recorded
    toy_config(norm=Norm.GHOST, norm_batch=4, ema=0.8),
    toy_config(budget=Budget.TRAIN_LOSS, train_loss=0.5, max_epochs=40.0, optimizer=Optimizer.ADAM, lr=1e-3),
]


def subject_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> Subject:
    monkeypatch.setattr(data, "read", lambda name, folder: toy_images())
    store = Store(tmp_path)
    toy_store.finish(store, config)
    return load_subject(store, config.run_id, Machine())


@pytest.mark.parametrize("config", CONFIGS, ids=["schedule", "ghost-ema", "train-loss"])
def test_a_replay_is_the_run(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves along training would be of another run: a replay begins at the initial weights, ends bitwise at the stored ones,
    and measuring on the way changes nothing."""
    subject = subject_of(tmp_path, monkeypatch, config)
    last = subject.replay_facts().steps
    seen = []
    for step, model in states(subject, (0, last // 2, last)):
        seen.append((step, {name: value.clone() for name, value in model.state_dict().items()}))
        torch.nn.functional.cross_entropy(model(subject.data.train.inputs), subject.data.train.targets).backward()
    from experiments.lab import models

    start = models.build(config, subject.data.shape, subject.data.outputs).state_dict()
    named = [name for name, _ in subject.model.named_parameters()]
    assert [step for step, _ in seen] == [0, last // 2, last]
    assert all(torch.equal(seen[0][1][name], start[name]) for name in named)
    assert all(torch.equal(value, subject.weights[name]) for name, value in seen[-1][1].items())
    assert not all(torch.equal(seen[1][1][name], subject.weights[name]) for name in named)


def test_a_replay_starts_from_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm start would be measured as if it had begun at random weights."""
    monkeypatch.setattr(data, "read", lambda name, folder: toy_images())
    store, first = Store(tmp_path), toy_config()
    toy_store.finish(store, first)
    second = first.replace(seed=5, parent=first.run_id)
    parent = load_subject(store, first.run_id, Machine()).weights
    folder = toy_store.start(store, second)
    assert folder.publish(toy_store.train(second, Machine(), toy_data(second), folder, parent))
    folder.close()
    subject = load_subject(store, second.run_id, Machine())
    seen = [all(torch.equal(value, parent[name]) for name, value in m.state_dict().items()) for _, m in states(subject, (0, 8))]
    assert seen == [True, False]  # and the end was compared with the stored weights


def test_another_configuration_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves of one run would be filed under another; steps that it never made would be invented."""
    subject = subject_of(tmp_path, monkeypatch, toy_config())
    other = dataclasses.replace(subject, config=subject.config.replace(lr=0.0501))
    with pytest.raises(StoreError, match="does not end at its stored weights"):
        list(states(other, (0, 8)))
    for steps in ((0, 9), (4, 2), ()):
        with pytest.raises(ConfigError, match="steps to replay"):
            list(states(subject, steps))


def test_curves_agree_with_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last point of every curve would not be the finished run's own value."""
    subject = subject_of(tmp_path, monkeypatch, toy_config(steps=12, batch_size=72, weight_decay=0.01, momentum=0.5))
    end = METRICS["lambda_max"].of(subject, examples=72)["value"]
    edge = METRICS["edge_of_stability"].of(subject, examples=72, points=5, tol=1e-3)
    curve = edge["details"]["lambda_max"]
    assert edge["details"]["steps"] == [0, 3, 6, 9, 12] and edge["status"] == "converged"
    assert curve[-1] == pytest.approx(end, rel=2e-3)
    assert edge["details"]["threshold"] == pytest.approx(3 / 0.05)
    assert edge["value"] == pytest.approx((np.mean(curve[2:]) + 0.01) / 60)
    assert edge["details"]["rise"] == pytest.approx(np.mean(curve[2:]) / curve[0])
    ratio = METRICS["sharpness_along"].of(subject, examples=72, points=3, tol=1e-3)["value"]
    assert ratio == pytest.approx(end / curve[0], rel=4e-3)
    # one batch of all examples: the Rayleigh quotient along the full gradient, which lambda_max bounds
    single = METRICS["batch_sharpness_along"].of(subject, examples=72, points=2, batches=2, first=1.0)
    assert single["value"] * 60 - 0.01 == pytest.approx(single["details"]["batch_sharpness"][-1])
    assert single["details"]["batch_sharpness"][-1] <= end * 1.001


def test_noise_scale_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B_simple would not be tr(Sigma) / |G|^2 of the state at that step."""
    from sharpness import gradient_noise

    subject = subject_of(tmp_path, monkeypatch, toy_config(lr=1e-3))
    train = subject.data.train
    end = gradient_noise(subject.model, torch.nn.functional.cross_entropy, (train.inputs, train.targets))
    found = METRICS["noise_scale_along"].of(subject, examples=72, points=2)
    assert found["details"]["steps"] == [4, 8] and found["details"]["unresolved"] == 0
    assert found["details"]["noise_scale"][-1] == pytest.approx(end.value, rel=1e-4)
    assert found["value"] == pytest.approx(math.prod(found["details"]["noise_scale"]) ** 0.5)


def test_spectrum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The density would not be the Hessian's: its end is lambda_max, its mass 1, its mean tr H / n."""
    subject = subject_of(tmp_path, monkeypatch, toy_config())
    found = METRICS["spectrum"].of(subject, examples=72, probes=4, steps=20)
    curve = found["details"]
    assert found["value"] == pytest.approx(METRICS["lambda_max"].of(subject, examples=72)["value"], rel=1e-3)
    assert np.trapezoid(curve["density"], curve["eigenvalue"]) == pytest.approx(1, abs=0.02)
    exact = METRICS["trace"].of(subject, examples=72, products=60)
    assert abs(curve["trace"] - exact["value"]) < 4 * math.hypot(curve["trace_error"], exact["standard_error"])


def test_walks() -> None:
    """A logarithm and a power law would not be told apart, or each not be recognised."""
    t = np.geomspace(10, 5000, 30)
    for distances, sign in ((2.5 * np.log(t) + 1, 1), (0.3 * t**0.4, -1)):
        logarithm, power, slope, exponent = walks(t, distances)
        assert max(logarithm, power) == pytest.approx(1, abs=1e-9) and (logarithm - power) * sign > 1e-4
        assert (slope == pytest.approx(2.5)) if sign > 0 else (exponent == pytest.approx(0.4, rel=1e-5))


def test_distance_ends_at_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk would be measured from another place than `distance_from_start`."""
    subject = subject_of(tmp_path, monkeypatch, toy_config(steps=60))
    found = METRICS["distance_along"].of(subject, points=8, first=5)
    assert (found["details"]["steps"][0], found["details"]["steps"][-1]) == (5, 60) and found["examples"] is None
    own = Store(tmp_path).summary(subject.config.run_id)
    assert own is not None and found["details"]["distance"][-1] == pytest.approx(own["distance_from_start"], rel=1e-6)


def test_thresholds() -> None:
    """Heavy ball, Nesterov and plain descent become unstable at different curvatures; other optimizers at none that is known.

    Oracle: the spectral radius of the update's matrix on a quadratic crosses 1 there.
    """
    for fields in ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}):
        config = toy_config(lr=0.1, **fields)
        b, limit = config.momentum, threshold(config)

        def radius(curvature: float, b: float = b, nesterov: bool = config.nesterov) -> float:
            step = 0.1 * curvature  # w <- w - lr v' (nesterov: w - lr (g + b v')), v' = b v + g; lr v is the second coordinate
            pull = (1 + b, b * b) if nesterov else (1.0, b)
            update = np.array([[1 - step * pull[0], -pull[1]], [step, b]])
            return float(np.abs(np.linalg.eigvals(update)).max())

        assert radius(0.999 * limit) <= 1 + 1e-12 < radius(1.001 * limit)
    for other in ({"optimizer": Optimizer.ADAM}, {"schedule": Schedule.COSINE}, {"clip_norm": 1.0}):
        with pytest.raises(ConfigError, match="edge of stability"):
            threshold(toy_config(**other))


def test_grids() -> None:
    """A curve would miss its ends or hold a step twice."""
    assert evenly(10, 6) == [0, 2, 4, 6, 8, 10] and evenly(2, 24) == [0, 1, 2]
    assert log_spaced(1000, 5) == [0, 1, 10, 100, 1000] and log_spaced(1000, 3, 10) == [10, 100, 1000]
    for call in (lambda: evenly(10, 1), lambda: log_spaced(10, 9, 10)):
        with pytest.raises(ConfigError):
            call()
