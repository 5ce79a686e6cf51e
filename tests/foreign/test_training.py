"""Foreign code by the command line: killed and resumed bitwise, and the weights of a plain PyTorch loop over the same batches."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lives
import numpy as np
import pytest
import torch
import toy_lives
from foreign import theirs
from torch import Tensor, nn

from experiments.lab.datasets import load
from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.store.checkpoints import load_tensors
from experiments.lab.store.records import Store
from experiments.lab.training.data import Data, prepare
from experiments.lab.training.shuffle import permutation

HERE = Path(__file__).parent
STEPS, DIES, EVERY = 45, 23, 5
CNN = ("--model", "theirs:cnn", "--data", "npz:{npz}", "--batch-size", "32", "--lr", "0.05")
OFF = ("--model-option", "drop=0.0")
LM = ("--model", "theirs:lm", "--data", "theirs:tokens", "--batch-size", "16", "--lr", "0.003", "--optimizer", "adamw")
POINTS = ("--model", "theirs:regressor", "--data", "theirs:points", "--batch-size", "24")
TASKS = {
    "cnn": (*CNN, *OFF, "--momentum", "0.9", "--weight-decay", "1e-3"),
    "dropout": (*CNN, "--momentum", "0.9"),
    "sam": (*CNN, *OFF, "--sam-rho", "0.05"),
    "lm": LM,
    "lm-ema": (*LM, "--ema", "0.9"),
    "lm-rmsprop": (*LM, "--optimizer", "theirs:rmsprop", "--lr", "1e-3"),
    "mse": (*POINTS, "--loss", "mse", "--lr", "0.1", "--schedule", "cosine", "--warmup", "0.2"),
    "named-mse": (*POINTS, "--loss", "theirs:mse", "--optimizer", "theirs:sign_momentum", "--lr", "0.01"),
    "huber": (*POINTS, "--loss", "theirs:huber", "--optimizer", "theirs:rmsprop", "--lr", "0.01"),
    "target": (*POINTS, "--loss", "mse", "--lr", "0.1", "--budget", "train_loss", "--train-loss", "1.0", "--max-epochs", "99"),
}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    given = theirs.images()
    np.savez(path, **{f"{letter}_{split}": pair[i] for split, pair in given.items() for i, letter in enumerate("xy")})
    return path


def command(name: str, npz: Path, root: Path) -> list[str]:
    words = [word.format(npz=npz) for word in TASKS[name]]
    budget = [] if "--budget" in words else ["--budget", "steps", "--steps", str(STEPS)]
    return ["train", *words, *budget, "--seed", "3", "--precision", "float64", "--store", str(root), "--json"]


def lived(name: str, npz: Path, root: Path, step: int | None = None, *more: str) -> int:
    """The exit status of the command in a process that is killed before update `step`."""
    messages = root.with_suffix(".messages")
    status = lives.run(toy_lives.commanded, HERE, [*command(name, npz, root), *more], EVERY, step, messages)
    assert status in (0, -signal.SIGKILL), messages.read_text()
    return status


def found(root: Path) -> tuple[RunConfig, dict[str, Any], dict[str, Tensor]]:
    """Configuration, summary and final weights of the only run of a store."""
    store = Store(root)
    (run_id,) = store.run_ids()
    loaded, config = load_tensors(store.folder(run_id) / "final.safetensors"), store.config(run_id)
    assert loaded is not None and config is not None
    return config, store.summary(run_id) or {}, loaded[0]


@pytest.fixture(scope="module")
def undisturbed(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def root_of(name: str) -> Path:
        root = tmp_path_factory.mktemp(name) / "store"
        assert lived(name, npz, root) == 0
        return root

    return root_of


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(HERE)
    yield


@pytest.mark.parametrize("name", TASKS)
def test_killed_and_resumed(name: str, npz: Path, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    """A state of foreign code that no checkpoint holds."""
    root = tmp_path / "store"
    assert lived(name, npz, root, DIES) == -signal.SIGKILL
    assert list(root.glob("runs/*/checkpoint.*"))
    assert lived(name, npz, root) == 0
    (_, first, a), (_, second, b) = found(undisturbed(name)), found(root)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(first[key] == second[key] for key in ("status", "steps", "train_loss", "test_loss"))
    assert first["files"]["history.jsonl"] == second["files"]["history.jsonl"]
    if name == "target":
        assert first["status"] == "done" and 0.9 <= first["train_loss"] <= 1.0 and first["steps"] > DIES


def plain(config: RunConfig, data: Data, steps: int) -> tuple[nn.Module, list[Tensor]]:
    """What anybody would write: the network after `steps` updates, and the average of its weights."""
    torch.manual_seed(config.seed)
    model = theirs_of(config.model)(data.shape, data.outputs, **({"drop": 0.0} if config.model == "theirs:cnn" else {})).double()
    parameters, n, size = list(model.parameters()), len(data.train), config.batch_size
    order = np.concatenate([permutation(config.seed, epoch, n) for epoch in range(steps * size // n + 1)])
    optimizer = {
        "sgd": lambda: torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay),
        "adamw": lambda: torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay),
    }.get(config.optimizer, lambda: theirs_of(config.optimizer)(parameters, lr=config.lr))()
    average = [p.detach().clone() for p in parameters]
    for step in range(steps):
        inputs, targets = (t[order[step * size : (step + 1) * size]] for t in (data.train.inputs, data.train.targets))
        if config.warmup:
            rising = config.warmup * steps
            fall = (1 + math.cos(math.pi * max(0.0, (step - rising) / (steps - rising)))) / 2
            optimizer.param_groups[0]["lr"] = config.lr * ((step + 1) / rising if step + 1 < rising else fall)
        optimizer.zero_grad()
        loss_of(config, model(inputs), targets).backward()
        if config.sam_rho:
            kept, norm = [p.detach().clone() for p in parameters], torch.cat([p.grad.flatten() for p in parameters]).norm()
            with torch.no_grad():
                for p in parameters:
                    p.add_(p.grad, alpha=config.sam_rho / float(norm))
            optimizer.zero_grad()
            loss_of(config, model(inputs), targets).backward()
            with torch.no_grad():
                for p, value in zip(parameters, kept, strict=True):
                    p.copy_(value)
        optimizer.step()
        average = [config.ema * a + (1 - config.ema) * p.detach() for a, p in zip(average, parameters, strict=True)]
    return model, average if config.ema else parameters


def theirs_of(name: Any) -> Any:
    return getattr(theirs, str(name).partition(":")[2])


def loss_of(config: RunConfig, outputs: Tensor, targets: Tensor) -> Tensor:
    if config.model == "theirs:regressor":
        return nn.functional.huber_loss(outputs, targets) if "huber" in config.loss else nn.functional.mse_loss(outputs, targets)
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())  # -100 is torch's own


@pytest.mark.parametrize("name", [name for name in TASKS if name != "dropout"])
def test_a_plain_loop(name: str, undisturbed: Callable[[str], Path]) -> None:
    """Another mean, another rate, another batch, a normalisation that is not torch's: weights would differ."""
    config, summary, weights = found(undisturbed(name))
    data = prepare(config, Machine(), load(config.dataset))
    model, parameters = plain(config, data, summary["steps"])
    for (key, start), p in zip(model.named_parameters(), parameters, strict=True):
        assert torch.allclose(weights[key], p.detach(), rtol=1e-7, atol=1e-9), (key, (weights[key] - p).abs().max())
        assert start.shape == p.shape
