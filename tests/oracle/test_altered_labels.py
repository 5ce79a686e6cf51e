"""Label noise and imbalance, against counts by hand: the same examples and labels for every batch size."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import Memory, identical, toy_config

from experiments.__main__ import main
from experiments.lab.datasets import Dataset, Kind, Split
from experiments.lab.declare.config import Budget, Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.fused.groups import siblings
from experiments.lab.training.data import Data, prepare
from experiments.lab.training.loop import train, train_group

N, CLASSES = 1200, 4
DRAW = np.random.default_rng(5)
LABELS = DRAW.permutation(np.repeat(np.arange(CLASSES), [400, 350, 250, 200]))
POINTS = Dataset("points", Split(np.arange(N, dtype=np.float32)[:, None] / N, LABELS),
                 Split(np.arange(40, dtype=np.float32)[:, None], np.arange(40) % CLASSES), CLASSES, (), (), "0" * 64)


def data(dataset: Dataset = POINTS, **fields: Any) -> Data:
    return prepare(toy_config(**fields), Machine(), dataset)


def altered(noise: float, **fields: Any) -> np.ndarray:
    return data(label_noise=noise, **fields).train.targets.numpy()


@pytest.mark.parametrize("noise", [0.001, 0.1, 1 / 3, 0.5, 0.99])
def test_the_share_of_wrong_labels_is_exact(noise: float) -> None:
    """Labels drawn with replacement, or one by one, would be a random share of wrong ones; drawn among all classes too few."""
    found = altered(noise)
    assert (found != LABELS).sum() == round(noise * N) and found.min() >= 0 and found.max() < CLASSES


def test_every_other_class_is_equally_likely() -> None:
    """Always the next class, or the first one, would be structured noise. Counts stay within four standard deviations."""
    found = altered(0.9)
    moves = Counter(zip(LABELS.tolist(), found.tolist(), strict=True))
    for a, count in enumerate(np.bincount(LABELS)):
        for b in set(range(CLASSES)) - {a}:
            assert abs(moves[a, b] - 0.3 * count) < 4 * math.sqrt(count * 0.3 * 0.7)
    wrong = np.flatnonzero(found != LABELS)
    assert abs(np.mean(wrong) - N / 2) < 4 * N / math.sqrt(12 * len(wrong))  # anywhere, not the first ones


@pytest.mark.parametrize("fields", [{"label_noise": 0.2}, {"imbalance": 10.0}, {"label_noise": 0.2, "imbalance": 10.0}])
def test_every_batch_size_has_the_same_examples(fields: dict[str, Any]) -> None:
    """Arms of a comparison would be trained on other data; and a seed's data must not depend on how it is trained."""
    first = data(batch_size=1, **fields)
    for changes in ({"batch_size": 7}, {"batch_size": 200}, {"lr": 3.0}, {"width": 3}, {"budget": Budget.EPOCHS, "epochs": 2}):
        found = data(**(fields | changes))
        assert torch.equal(found.train.targets, first.train.targets) and torch.equal(found.train.inputs, first.train.inputs)
    other = data(seed=1, **fields)
    assert torch.equal(other.train.inputs, first.train.inputs)
    assert torch.equal(other.train.targets, first.train.targets) == ("label_noise" not in fields)


def test_only_training_labels_are_noisy() -> None:
    """A test set of wrong labels would measure nothing, and validation would choose what fits noise."""
    clean, noisy = data(n_validation=300), data(n_validation=300, label_noise=0.4, imbalance=4.0)
    for part in ("validation", "test"):
        assert torch.equal(getattr(clean, part).targets, getattr(noisy, part).targets)
        assert torch.equal(getattr(clean, part).inputs, getattr(noisy, part).inputs)
    assert torch.equal(data(label_noise=0.4).train.inputs, data().train.inputs)


@pytest.mark.parametrize("ratio", [1.5, 2.0, 10.0, 100.0, 400.0])
def test_imbalance_is_a_geometric_sequence(ratio: float) -> None:
    """Of each class the first ones, as many as a hand would count; as many as fit, so that nothing is thrown away."""
    examples: dict[int, list[int]] = {k: [i for i, label in enumerate(LABELS) if label == k] for k in range(CLASSES)}
    factors = [ratio ** (-k / 3) for k in range(CLASSES)]
    most = min(len(examples[k]) / factors[k] for k in range(CLASSES))
    kept = sorted(i for k in range(CLASSES) for i in examples[k][: round(most * factors[k])])
    found = data(imbalance=ratio, batch_size=1).train
    assert found.targets.tolist() == [LABELS[i] for i in kept]
    assert (found.inputs[:, 0] * N).round().int().tolist() == kept
    counts = np.bincount(found.targets.numpy())
    assert counts[0] / counts[-1] == pytest.approx(ratio, rel=0.5 / counts[-1] + 0.01)
    assert any(counts[k] == len(examples[k]) for k in range(CLASSES))


def test_a_run_on_noisy_labels_is_one_on_data_that_have_them() -> None:
    """Loss, batches and curves would see other labels than those that `prepare` makes."""
    few = replace(POINTS, train=Split(POINTS.train.inputs[:80], LABELS[:80]))
    config = toy_config(label_noise=0.3, imbalance=2.0)
    asked = data(few, label_noise=0.3, imbalance=2.0).train
    written = replace(few, train=Split(asked.inputs.numpy(), asked.targets.numpy()))
    plain = config.replace(label_noise=0.0, imbalance=1.0)
    first, second = (train(c, Machine(), prepare(c, Machine(), d), Memory()) for c, d in ((config, few), (plain, written)))
    assert identical(first.weights, second.weights) and first.values == second.values


def test_seeds_with_noise_are_not_one_program() -> None:
    """All runs of a program share their examples: every seed would be trained on the first one's labels."""
    seeds = [toy_config(label_noise=0.1, seed=seed) for seed in range(3)]
    assert siblings(seeds, 8) == [] and len(siblings([c.replace(label_noise=0.0) for c in seeds], 8)) == 1
    rates = tuple(toy_config(label_noise=0.1, lr=lr) for lr in (0.1, 0.2))
    assert siblings(rates, 8) == [rates]
    with pytest.raises(ConfigError, match="one program"):
        train_group(seeds, Machine(), data(label_noise=0.1), [Memory() for _ in seeds])


REFUSED: dict[str, dict[str, Any]] = {
    "label_noise is 1.0": {"label_noise": 1.0}, "label_noise is -0.1": {"label_noise": -0.1},
    "label_noise is nan": {"label_noise": math.nan}, "imbalance is 0.5": {"imbalance": 0.5}, "imbalance is 0": {"imbalance": 0.0},
    "imbalance is inf": {"imbalance": math.inf}, "imbalance is nan": {"imbalance": math.nan},
    "leaves no training example of class 3 where class 0 keeps 400": {"imbalance": 401.0},
    "leaves no training example of class 3 where class 0 keeps 0": {"imbalance": 2.0, "n_train": 1, "batch_size": 1},
    "fewer than a batch of 900": {"imbalance": 10.0, "batch_size": 900},
    "fewer than a batch of 720": {"imbalance": 10.0, "batch_size": 45, "batch_growth": 4, "budget": Budget.EPOCHS, "epochs": 2},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_altered(words: str) -> None:
    """A class would vanish, or the imbalance be another than the one asked for, without a word."""
    with pytest.raises(ConfigError, match=words):
        data(**REFUSED[words])


@pytest.mark.parametrize("kind", [Kind.NUMBERS, Kind.TOKENS])
@pytest.mark.parametrize("fields", [{"label_noise": 0.1}, {"imbalance": 2.0}])
def test_only_classes_have_labels(kind: Kind, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"are for classes, and targets of points are {kind}"):
        data(replace(POINTS, kind=kind), **fields)


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run would be another one under the id of the clean data; and epochs would count examples that are not there."""
    words = ["train", "--n-train", "400", "--width", "8", "--depth", "1", "--batch-size", "20", "--lr", "0.1",
             "--budget", "epochs", "--epochs", "2", "--label-noise", "0.25", "--imbalance", "4", "--json"]
    assert main([*words, "--store", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*[word for word in words if word != "--json"], "--store", str(tmp_path / "shown")]) == 0
    assert f" of {found['steps']}: " in capsys.readouterr().err
    kept = sum(round(40 * 4 ** (-k / 9)) for k in range(10))
    assert found["epochs"] == pytest.approx(2, abs=20 / kept) and found["examples"] == 20 * found["steps"]
    assert found["steps"] == round(2 * kept / 20) != 2 * 400 / 20
    clean = RunConfig(n_train=400, width=8, depth=1, batch_size=20, lr=0.1, budget=Budget.EPOCHS, epochs=2)
    assert found["run_id"] == clean.replace(label_noise=0.25, imbalance=4.0).run_id != clean.run_id
