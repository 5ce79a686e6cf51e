"""The project's own tasks that are no classification of images by cross-entropy."""

from __future__ import annotations

import json
import lzma
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import ONE_SENTENCE
from toy_runs import Memory, identical, toy_config, toy_data, toy_images

from experiments.__main__ import main
from experiments.lab import datasets, models
from experiments.lab.datasets import DataError, Dataset, Kind, austen_text, teacher
from experiments.lab.declare.config import Budget, Loss, Machine, Model, Optimizer, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.fused.groups import siblings
from experiments.lab.training.data import Examples, prepare
from experiments.lab.training.evaluate import evaluate
from experiments.lab.training.loop import train

AUSTEN = RunConfig(dataset="austen", model=Model.CAUSAL_TRANSFORMER, n_train=64, batch_size=16, optimizer=Optimizer.ADAM, lr=3e-3,
                   budget=Budget.STEPS, steps=6)
TEACHER = RunConfig(dataset="teacher", n_train=256, width=32, depth=1, batch_size=32, loss=Loss.MSE, lr=0.1, momentum=0.9,
                    budget=Budget.STEPS, steps=200)


def trained(config: RunConfig, dataset: Dataset | None = None, **machine: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Values and weights of a run on a small test set."""
    made, log = Machine(**machine), Memory()
    data = prepare(config, made, dataset or datasets.load(config.dataset))
    few = Examples(data.test.inputs[:100], data.test.targets[:100])
    found = train(config, made, replace(data, test=few), log)
    return found.values, found.weights


def test_austen_is_the_novel() -> None:
    """Another text, or its characters in another order, would be other data under the same name."""
    data = datasets.load("austen")
    text = lzma.decompress(austen_text.FILE.read_bytes()).decode()
    kinds = sorted(set(text))
    assert text.startswith("PRIDE AND PREJUDICE\n\nBy Jane Austen\n") and text.endswith("the means of uniting them.\n")
    assert data.kind is Kind.TOKENS and data.outputs == len(kinds) == 75 and datasets.available("austen")
    assert data.train.inputs.shape == (9630, 64) and data.test.targets.shape == (1069, 64)
    assert "".join(kinds[i] for i in data.train.inputs[:9].ravel()) == text[: 9 * 64]
    assert "".join(kinds[i] for i in data.test.targets[-1]) == text[10_698 * 64 + 1 : 10_699 * 64 + 1]
    assert austen_text.FILE.stat().st_size < 300_000
    assert "r-cran-janeaustenr" in (austen_text.FILE.parent / "README.md").read_text("utf-8")


def test_a_changed_novel_is_refused(tmp_path: Path) -> None:
    text = bytearray(lzma.decompress(austen_text.FILE.read_bytes()))
    text[1000] ^= 1
    (tmp_path / "a.xz").write_bytes(lzma.compress(bytes(text), preset=0))
    with pytest.raises(DataError, match=ONE_SENTENCE):
        austen_text.load_austen(tmp_path / "a.xz")


def test_characters_are_learnt_and_scored_in_nats() -> None:
    """A target that the network is shown, a loss per sequence, or one of characters that it already read."""
    values, _ = trained(AUSTEN.replace(steps=30))
    assert 2.0 < values["test_loss"] < 3.3 < math.log(75) and 10 < values["test_accuracy"] < 40
    assert values["gap_accuracy"] is not None and "test_r2" not in values


def test_micro_batches_of_characters_are_the_whole_batch() -> None:
    """Memory would decide the result."""
    whole, parts = (trained(AUSTEN.replace(steps=3, optimizer=Optimizer.SGD, lr=0.5), micro_batch=size)[1] for size in (None, 5))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_a_causal_run_goes_on_bitwise() -> None:
    """Half of a run and a checkpoint would end elsewhere than the whole, whether its updates are replayed by then or not."""
    config = AUSTEN.replace(n_train=32, batch_size=4, steps=36)
    data = prepare(config, Machine(), datasets.load("austen"))
    data = replace(data, test=Examples(data.test.inputs[:8], data.test.targets[:8]))
    first, second = Memory(), Memory()
    whole = train(config, Machine(), data, first)
    second.load = lambda newest=None: first.checkpoints[max(step for step in first.checkpoints if step < 20)]
    assert identical(train(config, Machine(), data, second).weights, whole.weights)


def test_causal_runs_are_never_one_program() -> None:
    """Programs of several runs know cross-entropy of one class per example alone."""
    seeds = [AUSTEN.replace(seed=seed) for seed in range(3)]
    assert siblings(seeds, 8) == [] and siblings([toy_config(seed=seed) for seed in range(3)], 8) != []


def test_the_teacher_is_computed_exactly() -> None:
    """Targets that a processor rounds would be other data elsewhere; in plain Python integers they are the same."""
    data = datasets.load("teacher")
    assert data.kind is Kind.NUMBERS and data.outputs == 1 and datasets.available("teacher")
    first, second = (teacher.odd(*shape, teacher.KEY + k).tolist() for k, shape in ((2, (32, 32)), (3, (32, 1))))
    for i in (0, 17, 9999):
        x = [int(v * 128) for v in data.train.inputs[i]]
        hidden = [max(0, sum(a * row[j] for a, row in zip(x, first, strict=True))) for j in range(32)]
        answer = sum(h * v[0] for h, v in zip(hidden, second, strict=True))
        assert teacher.answers(np.array([x]))[0] == answer
        assert data.train.targets[i] == np.float32((answer - teacher_mean()) / 2**26)
    assert abs(data.train.targets.mean()) < 1e-5 and 0.5 < data.train.targets.std() < 2
    assert abs(data.train.inputs.mean()) < 0.01 and np.abs(data.train.inputs).max() < 2


def teacher_mean() -> int:
    return int(teacher.answers(teacher.odd(teacher.COUNT, teacher.INPUTS, teacher.KEY)).sum()) // teacher.COUNT


def test_another_generator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "KEY", 1)
    with pytest.raises(DataError, match=ONE_SENTENCE):
        teacher.load_teacher()


def test_a_student_learns_the_teacher() -> None:
    """R^2 is null, or of the wrong sign; accuracy of numbers."""
    values, _ = trained(TEACHER)
    assert 0.5 < values["test_r2"] < values["train_r2"] <= 1
    assert values["test_accuracy"] is None and values["gap_loss"] == pytest.approx(values["test_loss"] - values["train_loss"])


def test_squares_of_one_hot_targets_are_a_classification() -> None:
    """The mean over classes, as the formula says, with accuracy as ever; and classes are learnt by it."""
    config = toy_config(loss=Loss.MSE, optimizer=Optimizer.ADAM, lr=0.01, steps=60)
    values, weights = trained(config, toy_images())
    data = toy_data(config)
    assert 60 < values["train_accuracy"] <= 100 and values["gap_accuracy"] is not None
    net = models.build(config, data.shape, data.outputs)
    net.load_state_dict(weights)
    with torch.no_grad():
        expected = ((net(data.train.inputs) - torch.eye(4)[data.train.targets]) ** 2).mean().item()
    assert evaluate(net, data.train.inputs, data.train.targets, data.task).loss == pytest.approx(expected)
    assert values["train_loss"] == pytest.approx(expected, rel=1e-5) and not config.fusible


@pytest.mark.parametrize(("changes", "words"), [
    ({"dataset": "teacher", "loss": Loss.MSE, "model": Model.CAUSAL_TRANSFORMER}, "is for tokens, and teacher has none"),
    ({"dataset": "noisy-quadratic", "model": Model.CAUSAL_TRANSFORMER}, "belong together"),
    ({"dataset": "austen"}, "take causal-transformer"),
    ({"dataset": "austen", "model": Model.VIT}, "is for images"),
    ({"dataset": "teacher"}, "take mse"),
    ({"dataset": "austen", "model": Model.CAUSAL_TRANSFORMER, "label_noise": 0.1}, "are for classes"),
])
def test_parts_that_do_not_belong_together(changes: dict[str, Any], words: str) -> None:
    """A traceback from inside a network."""
    with pytest.raises(ConfigError, match=words):
        config = RunConfig(batch_size=8, lr=0.1, budget=Budget.STEPS, steps=1, **changes)
        prepare(config, Machine(), datasets.load(config.dataset))


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The names would be known to the library alone."""
    common = ["--n-train", "32", "--batch-size", "8", "--lr", "0.1", "--budget", "steps", "--steps", "2", "--json"]
    for words, score in ((["--data", "teacher", "--loss", "mse", "--width", "8", "--depth", "1"], "test_r2"),
                         (["--data", "austen", "--model", "causal-transformer"], "test_accuracy")):
        assert main(["train", *words, *common, "--store", str(tmp_path)]) == 0
        assert json.loads(capsys.readouterr().out)[score] is not None
