"""Runs of foreign code measured by `experiments measure` and by `python -m sharpness` alike, with their own loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import theirs

from experiments.__main__ import main
from experiments.lab.datasets import Dataset, load
from experiments.lab.declare.config import Machine
from experiments.lab.declare.study import measure
from experiments.lab.measures.perform import perform
from experiments.lab.measures.registry import METRICS, names_of_one_run
from experiments.lab.measures.subject import load_subject
from experiments.lab.store.records import Store
from experiments.lab.training.data import order_of
from experiments.lab.training.evaluate import evaluate
from sharpness.__main__ import main as sharpness
from sharpness.problem.given import given_data

TASKS = {
    "cnn": ("--model", "theirs:cnn", "--data", "theirs:images", "--lr", "0.05"),
    "options": ("--model", "theirs:cnn", "--model-option", "width=4", "--data", "theirs:images", "--loss", "mse", "--lr", "0.05"),
    "lm": ("--model", "theirs:lm", "--data", "theirs:tokens_apart", "--lr", "0.3"),
    "lm-own": ("--model", "theirs:lm", "--data", "theirs:tokens_apart", "--loss", "theirs:sum_of_counted", "--lr", "0.3"),
    "mse": ("--model", "theirs:regressor", "--data", "theirs:points_apart", "--loss", "mse", "--lr", "0.1"),
    "hidden": ("--model", "theirs:hidden_average", "--data", "theirs:points_apart", "--loss", "mse", "--lr", "0.02"),
    "huber": ("--model", "theirs:regressor", "--data", "theirs:points_apart", "--loss", "theirs:huber", "--lr", "0.01",
              "--optimizer", "theirs:rmsprop"),
}
BOTH = ("lambda_max", "trace", "phi_full")


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)


def answer(capsys: pytest.CaptureFixture[str], status: int) -> Any:
    seen = capsys.readouterr()
    assert status == 0, seen.err
    return json.loads(seen.out)


@pytest.fixture
def trained(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, Store, str]:
    name: str = request.param
    budget = ("--batch-size", "20", "--budget", "steps", "--steps", "60")
    words = ["train", *TASKS[name], *budget, "--store", str(tmp_path), "--json"]
    return name, Store(tmp_path), answer(capsys, main(words))["run_id"]


def in_both_words(name: str) -> list[str]:
    """What `train` and `python -m sharpness` both take."""
    words = TASKS[name]
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for pair in pairs if pair[0] not in ("--lr", "--optimizer") for word in pair]


@pytest.mark.parametrize("trained", TASKS, indirect=True)
def test_both_command_lines_agree(trained: tuple[str, Store, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Two losses, two normalisations, two means over tokens: one of the numbers would be of another function."""
    name, store, run_id = trained
    asked = ["--metrics", *BOTH, "--examples", "999", "--json"]
    ours = answer(capsys, main(["measure", run_id, *asked, "--store", str(store.root)]))
    given = [*in_both_words(name), "--weights", str(store.folder(run_id) / "final.safetensors"), *asked]
    theirs_ = {entry["metric"]: entry for entry in answer(capsys, sharpness(given))}
    for found in ours["measurements"]:
        other = theirs_[found["metric"]]
        assert found["value"] == pytest.approx(other["value"], rel=2e-3) and found["value"] > 0, found["metric"]
        assert found["examples"] == other["examples"]
    summary = store.summary(run_id)
    subject = load_subject(store, run_id, Machine())
    with torch.no_grad():
        loss = float(subject.loss(subject.model(subject.data.train.inputs), subject.data.train.targets))
    assert summary is not None and loss == pytest.approx(summary["train_loss"], rel=1e-4)
    again = evaluate(subject.model, subject.data.test.inputs, subject.data.test.targets, subject.data.task)
    assert again.loss == pytest.approx(summary["test_loss"], rel=1e-5)


@pytest.mark.parametrize("trained", ["cnn", "lm", "mse"], indirect=True)
def test_every_metric_says_something(trained: tuple[str, Store, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A metric that breaks on another task than classes, or is silent about it."""
    _, store, run_id = trained
    words = ["measure", run_id, "--metrics", "all", "--examples", "40", "--store", str(store.root), "--json"]
    found = {one["metric"]: one for one in answer(capsys, main(words))["measurements"]}
    assert found.keys() == set(names_of_one_run())
    for one in found.values():
        assert one["status"] != "failed", one
        assert one["value"] is not None or one["status"] == "unresolved" or one["details"]["sentence"], one
    assert found["lambda_max"]["value"] > 0


@pytest.mark.parametrize("trained", ["cnn", "lm", "huber"], indirect=True)
def test_metrics_of_studies(trained: tuple[str, Store, str]) -> None:
    """A study on a task of one's own would end in a traceback, or measure cross-entropy where there is none."""
    name, store, run_id = trained
    subject = load_subject(store, run_id, Machine())
    given: dict[str, dict[str, Any]] = {
        "spectrum": {"examples": 50, "steps": 8}, "own_batch_sharpness": {"batches": 3},
        "slice_width": {"examples": 50, "points": 3}, "filter_slice_width": {"examples": 50, "points": 3},
        "sharpness_along": {"examples": 50, "points": 3},
        "distance_along": {"points": 5}, "noise_scale_along": {"examples": 50, "points": 2},
        "batch_sharpness_along": {"examples": 50, "points": 3, "batches": 2}, "edge_of_stability": {"examples": 50, "points": 3},
        "rescaled": {"examples": 50},
    }
    without = {"lm": {"noise_scale_along"}, "huber": {"batch_sharpness_along", "edge_of_stability"}}
    lacking = {"rescaled"} | without.get(name, set())
    perform(store, Machine(), [measure(metric, **options) for metric, options in given.items()], [run_id])
    for metric, options in given.items():
        found = store.measurement(measure(metric, **options), [run_id])
        assert found is not None
        if metric in lacking:
            assert (found["status"], found["value"]) == ("not applicable", None) and len(found["details"]["sentence"]) > 40
        else:
            assert found["status"] == "unresolved" or math.isfinite(found["value"]), (metric, found)
    line = METRICS["slice"].of(subject, subject, points=4, examples=50)
    assert ("train_accuracy" in line["details"]) is (name == "cnn") and line["value"] == pytest.approx(0, abs=1e-6)


def test_built_in_runs_have_the_very_same_function() -> None:
    """Published numbers would move in their last bits."""
    from toy_runs import toy_config, toy_data, toy_images

    from experiments.lab import models
    from experiments.lab.measures.subject import Subject

    assert toy_images().kind == "classes"
    config = toy_config()
    subject = Subject(config, models.build(config, (1, 8, 8), 4), {}, toy_data(config))
    assert subject.loss is torch.nn.functional.cross_entropy and subject.data.task.weight is None


@pytest.mark.parametrize("given", [theirs.images(), theirs.images()["train"]], ids=["mapping", "pair"])
def test_images_are_normalised_as_in_training(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curvature at inputs that the network never saw."""
    from experiments.lab.datasets.own import assembled
    from experiments.lab.declare.config import RunConfig
    from experiments.lab.training.data import prepare

    source: Dataset = assembled("given", given)
    config = RunConfig(batch_size=2, lr=0.1, budget="epochs", epochs=1, train_draw="fixed")
    train = prepare(config, Machine(), source).train
    (inputs, targets), facts = given_data(given, "--data theirs:images")
    assert facts == {"input_shape": (3, 12, 12), "outputs": source.outputs}
    placed = {x.numpy().tobytes(): int(y) for x, y in zip((inputs * 1e4).round(), targets, strict=True)}
    assert len(inputs) == (240 if isinstance(given, (dict, tuple)) else 0)
    for x, y in zip((train.inputs.contiguous() * 1e4).round(), train.targets, strict=True):
        assert placed[x.numpy().tobytes()] == int(y)
    assert sorted(order_of(len(train))) == list(range(len(train))) and np.isfinite(inputs.numpy()).all()
    assert load("theirs:images").outputs == source.outputs
