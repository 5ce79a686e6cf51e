"""What is found of foreign code before its first update: examples that mix, random numbers, states that no checkpoint holds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_runs import Memory

from experiments.__main__ import main
from experiments.lab import models
from experiments.lab.datasets import load
from experiments.lab.declare.config import Budget, Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures.registry import METRICS
from experiments.lab.measures.subject import load_subject
from experiments.lab.store.records import Store
from experiments.lab.sweep import runner
from experiments.lab.training.data import Data, prepare
from experiments.lab.training.gradient import Gradient
from experiments.lab.training.initial import initial_model
from experiments.lab.training.loop import train
from experiments.lab.training.own_task import mixes

MIXED = ("theirs:batch_norm", "theirs:centred", "theirs:attending")
APART = ("theirs:group_norm", "theirs:layer_norm", "theirs:regressor", "theirs:dropped")
DRAWING = ("functional_dropout", "torch_noise", "numpy_noise", "fresh_noise", "python_noise", "rare_noise")


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)


def config(model: str = "theirs:regressor", **fields: Any) -> RunConfig:
    defaults: dict[str, Any] = {"dataset": "theirs:points", "loss": "mse", "batch_size": 24, "lr": 0.05, "precision": "float64",
                                "budget": Budget.STEPS, "steps": 6}
    return RunConfig(model=model, **defaults | fields)


def data_of(c: RunConfig) -> Data:
    return prepare(c, Machine(), load(c.dataset))


def begun(c: RunConfig, **machine: Any) -> torch.nn.Module:
    return initial_model(c, Machine(**machine), data_of(c))


@pytest.mark.parametrize(("name", "expected"), [*((n, True) for n in MIXED), *((n, False) for n in APART)])
def test_examples_that_mix(name: str, expected: bool) -> None:
    """Micro-batches would be another network, or be refused where they are none."""
    c = config(name)
    model = models.build(c, (8,), 1).double().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert mixes(model, data_of(c)) is expected
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    if expected:
        with pytest.raises(ConfigError, match="depends on the others in the batch"):
            begun(c, micro_batch=8)
    else:
        begun(c, micro_batch=8)


def out_of_memory(monkeypatch: pytest.MonkeyPatch, examples: int) -> list[int]:
    """Passes of more than so many examples run out of memory; the sizes that were tried."""
    compute, sizes = Gradient._part, []

    def part(self: Gradient, whole: int, *inputs: Tensor) -> Any:
        sizes.append(len(inputs[-1]))
        if sizes[-1] > examples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return compute(self, whole, *inputs)

    monkeypatch.setattr(Gradient, "_part", part)
    return sizes


def train_in(root: Path, c: RunConfig) -> list[str]:
    return runner.train_runs([c], Store(root), Machine(), lambda: False, lambda step: None)


@pytest.mark.parametrize("name", MIXED)
def test_a_mixing_network_is_not_tried_again_in_parts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of another network in the record, or a sentence about a flag that nobody gave."""
    sizes = out_of_memory(monkeypatch, 12)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        train_in(tmp_path, config(name))
    assert sizes == [24]


@pytest.mark.parametrize("name", APART)
def test_others_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nothing but a mixing network may fail so."""
    sizes = out_of_memory(monkeypatch, 12)
    assert train_in(tmp_path, config(name)) == ["done"] and sizes[:3] == [24, 12, 12]


def weights(c: RunConfig, **machine: Any) -> Tensor:
    found = train(c, Machine(**machine), data_of(c), Memory()).weights
    return torch.cat([value.flatten() for value in found.values()])


def test_masks_are_those_of_the_whole_batch() -> None:
    """Dropout that a micro-batch draws anew, or that drops nothing."""
    c = config("theirs:dropped", steps=12)
    whole = weights(c)
    assert torch.allclose(whole, weights(c, micro_batch=5), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(whole, weights(c.replace(seed=1)), rtol=1e-3)
    assert (whole - weights(c.replace(model="theirs:undropped"))).abs().max() > 1e-3


def lm(**fields: Any) -> RunConfig:
    return config("theirs:lm", **{"dataset": "theirs:tokens", "loss": "cross_entropy", "batch_size": 16, "lr": 0.1, **fields})


@pytest.mark.parametrize("loss", ["cross_entropy", "theirs:sum_of_counted"])
def test_accumulation_counts_tokens(loss: str) -> None:
    """Micro-batches of unequal numbers of counted tokens with equal weights: the fault of 2024's trainers."""
    c = lm(loss=loss, steps=10)
    whole = weights(c)
    for size in (1, 4, 5):
        assert torch.allclose(whole, weights(c, micro_batch=size), rtol=1e-9, atol=1e-11)


def test_accumulation_by_means_would_differ() -> None:
    """The control: on these sequences the mean of the micro-batches' means is clearly another gradient."""
    c = lm()
    data, model = data_of(c), begun(c)
    inputs, targets = data.train.inputs[:16], data.train.targets[:16]

    def gradient(parts: Sequence[slice]) -> Tensor:
        losses = [torch.nn.functional.cross_entropy(model(inputs[part]).flatten(0, 1), targets[part].flatten()) for part in parts]
        return torch.cat([g.flatten() for g in torch.autograd.grad(sum(losses) / len(losses), list(model.parameters()))])

    whole, apart = gradient([slice(16)]), gradient([slice(i, i + 1) for i in range(16)])
    assert (apart - whole).norm() > 0.05 * whole.norm()
    own = Gradient(c, model, list(model.parameters()), 1, members=False, replays=False, task=data.task)
    _, found = own(torch.tensor([0, 0, 0]), inputs, targets)
    assert torch.allclose(torch.cat([g.flatten() for g in found]), whole, rtol=1e-9, atol=1e-12)


def test_a_mean_over_tokens_is_not_split() -> None:
    """A loss that hides its weights cannot be accumulated: refused, not wrong."""
    begun(lm(loss="theirs:mean_of_counted"))
    with pytest.raises(ConfigError, match="not the sum over its parts"):
        begun(lm(loss="theirs:mean_of_counted"), micro_batch=4)


@pytest.mark.parametrize("name", DRAWING)
def test_random_numbers_are_found(name: str) -> None:
    """A run whose bits nobody can bring back; the global generators stay as they were."""
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    with pytest.raises(ConfigError, match="train it with --allow-random"):
        begun(config(f"theirs:{name}"))
    begun(config(f"theirs:{name}", allow_random=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))


@pytest.mark.parametrize(("fields", "said"), [
    ({"model": "theirs:counting"}, "a state outside its buffers"),
    ({"optimizer": "theirs:forgetful"}, "its state_dict lacks"),
    ({"optimizer": "theirs:langevin"}, "the seed does not fix"),
])
def test_states_and_draws_elsewhere(fields: dict[str, Any], said: str) -> None:
    """A checkpoint would not continue them."""
    with pytest.raises(ConfigError, match=said):
        begun(config(**fields))


@pytest.mark.parametrize("name", ["average", "hidden_average", "spectral", "old_spectral", "batch_norm"])
def test_states_in_buffers_are_resumed(name: str) -> None:
    """A buffer that a checkpoint leaves out, as `state_dict` does with hidden ones."""
    c = config(f"theirs:{name}", steps=50)
    log = Memory()
    whole = train(c, Machine(), data_of(c), log)
    for step in (7, 38):

        class Resumed(Memory):
            def load(self, newest: int | None = None, kept: Any = log.checkpoints[step]) -> Any:
                return kept

        again = train(c, Machine(), data_of(c), Resumed())
        assert all(torch.equal(whole.weights[key], again.weights[key]) for key in whole.weights)
        assert whole.values == again.values


def test_random_runs_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record that looks like one that can be repeated."""
    words = ["train", "--model", "theirs:torch_noise", "--data", "theirs:points", "--loss", "mse", "--batch-size", "24", "--lr",
             "0.05", "--budget", "steps", "--steps", "6", "--store", str(tmp_path), "--json"]
    assert main(words) != 0 and "--allow-random" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/summary.json"))
    assert main([*words, "--allow-random", "True"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["repeatable"] is False
    provenance = json.loads((Store(tmp_path).folder(summary["run_id"]) / "provenance.json").read_bytes())
    assert [process["repeatable"] for process in provenance["processes"]] == [False]
    assert main(["measure", summary["run_id"], "--metrics", "trace", "--examples", "50", "--store", str(tmp_path), "--json"]) == 0
    capsys.readouterr()
    with pytest.raises(ConfigError, match="cannot be lived through again"):
        METRICS["sharpness_along"].of(load_subject(Store(tmp_path), summary["run_id"], Machine()), points=3)
    assert main(["train", *(w if w != "theirs:torch_noise" else "theirs:regressor" for w in words[1:])]) == 0
    assert "repeatable" not in json.loads(capsys.readouterr().out)
