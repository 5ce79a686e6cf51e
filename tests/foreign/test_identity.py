"""What makes a run of foreign code another run: its source, what that imports from its own folder, options and data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_studies import written

from experiments.__main__ import main
from experiments.lab.store.records import Store

MINE = """
import numpy as np
from torch import nn
from {helper} import width
import numpy

def net(input_shape, outputs, depth=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(9, width()), nn.Tanh(), nn.Linear(width(), outputs))

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")
"""
HELPER = "from {deep} import WIDTH\n\ndef width():\n    return WIDTH\n"


class Folder:
    """A user's folder with modules of names of its own, so that no test sees another's."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.capsys, tag = path, capsys, path.name.replace("-", "_")
        self.mine, self.helper, self.deep = (f"{name}_{tag}" for name in ("mine", "helper", "deep"))
        (path / f"{self.mine}.py").write_text(MINE.format(helper=self.helper))
        (path / f"{self.helper}.py").write_text(HELPER.format(deep=self.deep))
        (path / f"{self.deep}.py").write_text("WIDTH = 4\n")
        draw = np.random.default_rng(0)
        self.arrays = {f"{letter}_{split}": draw.normal(size=(30, 9)) if letter == "x" else draw.integers(0, 3, 30)
                       for split in ("train", "test") for letter in "xy"}
        np.savez(path / "data.npz", **self.arrays)

    def train(self, *more: str, data: str = "npz:data.npz", loss: str | None = None) -> tuple[str, str]:
        """The run's id, and what was said on stderr."""
        for name in (self.mine, self.helper, self.deep):
            sys.modules.pop(name, None)
        task = ["--model", f"{self.mine}:net", "--data", data, "--loss", loss or f"{self.mine}:loss"]
        words = ["train", *task, "--batch-size", "10", "--lr", "0.1", "--budget", "steps", "--steps", "2", "--json", *more]
        status, seen = main(words), self.capsys.readouterr()
        assert status == 0, seen.err
        return json.loads(seen.out)["run_id"], seen.err

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.path / f"{name}.py"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Folder(tmp_path, capsys)


def test_unrelated_files_and_places_do_not_count(folder: Folder) -> None:
    """A run that must be trained anew because a neighbour was edited or the data moved."""
    first, said = folder.train()
    assert "changed" not in said
    (folder.path / "unrelated.py").write_text("x = 1\n")
    (folder.path / "notes.txt").write_text("x")
    assert folder.train()[0] == first
    (folder.path / "elsewhere").mkdir()
    (folder.path / "data.npz").rename(folder.path / "elsewhere" / "moved.npz")
    assert folder.train(data="npz:elsewhere/moved.npz")[0] == first
    np.savez_compressed(folder.path / "data.npz", **folder.arrays)
    assert folder.train()[0] == first
    assert list(Store(folder.path / "store").run_ids()) == [first]


@pytest.mark.parametrize("name", ["mine", "helper", "deep"])
def test_an_edited_source_is_another_run(name: str, folder: Folder) -> None:
    """A quiet mixture of two networks under one id."""
    first, _ = folder.train(loss="cross_entropy")
    folder.edit(getattr(folder, name), *{"mine": ("nn.Tanh", "nn.ReLU"), "helper": ("return WIDTH", "return WIDTH + 1"),
                                         "deep": ("4", "6")}[name])
    second, said = folder.train(loss="cross_entropy")
    assert second != first
    assert f"the model {folder.mine}:net has changed since run {first} was begun" in " ".join(said.split())
    assert folder.train(loss="cross_entropy")[1].count("changed") == 0


def test_an_edited_network_is_not_measured_as_the_old_one(folder: Folder) -> None:
    """Numbers of another network in the record of a run."""
    first, _ = folder.train()
    assert main(["measure", first, "--metrics", "lambda_max", "--json"]) == 0
    folder.edit(folder.mine, "nn.Tanh", "nn.ReLU")
    assert main(["measure", first, "--metrics", "trace", "--json"]) != 0
    assert f"{folder.mine}:loss has changed" in folder.capsys.readouterr().err


def test_options_and_data_count(folder: Folder) -> None:
    """Another width, or other pixels, under the old id; each change is named by its part."""
    first, _ = folder.train()
    assert folder.train("--model-option", "depth=2")[0] != first
    other = folder.arrays | {"x_train": folder.arrays["x_train"] + 1e-9}
    np.savez(folder.path / "data.npz", **other)
    second, said = folder.train()
    assert second != first and f"the data npz:data.npz has changed since run {first} was begun" in " ".join(said.split())


def test_parts_are_told_apart(folder: Folder) -> None:
    """Loss and optimizer of one file and network of another: the wrong one would be blamed."""
    own = folder.path / f"other_{folder.mine}.py"
    own.write_text("import torch\n\ndef rule(parameters, lr):\n    return torch.optim.SGD(parameters, lr=lr)\n")
    words = ("--optimizer", f"other_{folder.mine}:rule")
    first, _ = folder.train(*words, loss="cross_entropy")
    own.write_text(own.read_text() + "\n")
    second, said = folder.train(*words, loss="cross_entropy")
    assert second != first and f"the optimizer other_{folder.mine}:rule has changed" in " ".join(said.split())
    assert "the model" not in said and "the loss" not in said


def test_a_plan_says_what_changed(folder: Folder) -> None:
    """A study that trains everything anew without a word."""
    own = f"model='{folder.mine}:net', dataset='npz:data.npz'"
    written(folder.path / "studies", ("n_train=64, width=4, depth=1", f"n_train=30, {own}"), ("(16, 32)", "(16, 30)"),
            ('"B 32", 1.0, (("batch_size", 32)', '"B 30", 1.0, (("batch_size", 30)'))

    def plan() -> tuple[list[dict[str, Any]], list[str]]:
        status = main(["plan", "mine", "--studies", "studies", "--scale", "quick", "--json"])
        seen = folder.capsys.readouterr()
        assert status == 0, seen.err
        document = json.loads(seen.out)
        return [run for stage in document["stages"] for run in stage["runs"]], document.get("changed", [])

    runs, said = plan()
    assert runs and said == []
    for run in runs:
        place = folder.path / "store" / "runs" / run["run_id"]
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"science_version": 1, **run["config"]}))
    folder.edit(folder.helper, "return WIDTH", "return 2 * WIDTH")
    again, (sentence,) = plan()
    assert not {run["run_id"] for run in runs} & {run["run_id"] for run in again}
    assert sentence.startswith(f"the model {folder.mine}:net has changed since {len(runs)} runs such as ")
