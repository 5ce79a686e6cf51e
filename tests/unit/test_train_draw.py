"""The order of examples never matters to what is measured: every subset of a user's data is a random one, always the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from cifar_folders import two_kinds, write_binary

from experiments.__main__ import main
from experiments.lab import models
from experiments.lab.datasets import IN_FILE_ORDER, NAMES, load
from experiments.lab.declare.config import Budget, Machine, Model, Norm, RunConfig, TrainDraw
from experiments.lab.declare.study import Record, Request
from experiments.lab.measures.curvature import lambda_max
from experiments.lab.measures.subject import Subject
from experiments.lab.models.norms import calibrate
from experiments.lab.store.records import Store
from experiments.lab.sweep.own_tasks import Looked
from experiments.lab.sweep.plan import asked_for, find_study, identified, plan
from experiments.lab.training import evaluate, loop, stop_rule
from experiments.lab.training.data import Data, order_of, prepare
from experiments.lab.training.evaluate import calibrate_on

TRAIN, TEST, FEW = 240, 120, 60


def config_of(folder: Path, **changes: object) -> RunConfig:
    config = RunConfig(dataset=f"cifar-bin:{folder}", n_validation=60, batch_size=20, lr=0.1, budget=Budget.STEPS, steps=3,
                       width=8, depth=1, norm=Norm.BATCH)
    return identified(config.replace(**changes), None, Store(folder.parent / "store", create=False), {})


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subsets that are much smaller than the data, as they are in earnest."""
    monkeypatch.setattr(evaluate, "CALIBRATION_EXAMPLES", FEW)
    monkeypatch.setattr(stop_rule, "CHECKED", FEW)
    monkeypatch.setattr(loop, "CURVE", FEW)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same images, shuffled and sorted by class."""
    root = tmp_path_factory.mktemp("data")
    shuffled, ordered = (write_binary(root / name, two_kinds(TRAIN, 0, sort=sort), two_kinds(TEST, 1, sort=sort))
                         for name, sort in (("shuffled", False), ("sorted", True)))
    return shuffled, ordered


def partial(config: RunConfig, data: Data) -> torch.nn.Module:
    """A network that knows the dark images alone: whatever is measured of one class is far from that of both."""
    torch.manual_seed(0)
    model = models.build(config, data.shape, data.outputs)
    with torch.no_grad():
        weight, bias = list(model.parameters())[-2:]
        weight *= 6
        bias[0] += 3
    return model


def curve(model: torch.nn.Module, data: Data) -> float:
    return evaluate.evaluate(model, data.test.inputs[: loop.CURVE], data.test.targets[: loop.CURVE]).loss


def curvature(model: torch.nn.Module, data: Data) -> float:
    return lambda_max(Subject(config=None, model=model, weights={}, data=data), examples=FEW, tol=1e-3, seed=0)["value"]  # pyright: ignore[reportArgumentType]


def statistics(model: torch.nn.Module, data: Data) -> float:
    """A running mean, which is that of bright or of dark images where these came first."""
    calibrate_on(model, data.train.inputs)
    return 1 + next(b for name, b in model.named_buffers() if name.endswith("mean")).abs().sum().item()


def validation(model: torch.nn.Module, data: Data) -> float:
    return evaluate.evaluate(model, data.validation.inputs, data.validation.targets).loss


@pytest.mark.parametrize("measured", [statistics, stop_rule.checked_loss, curve, curvature, validation])
def test_sorted_data_measure_as_shuffled_ones(measured: Callable[[torch.nn.Module, Data], float],
                                              folders: tuple[Path, Path]) -> None:
    """Batch norm, the stop rule, curves, curvature or validation would look at one class where a folder is sorted."""
    values = []
    for folder in folders:
        config = config_of(folder)
        data = prepare(config, Machine(), load(config.dataset))
        model = partial(config, data)
        calibrate(model, [torch.cat([data.train.inputs, data.validation.inputs])])
        values.append(measured(model.eval(), data))
    assert values[1] == pytest.approx(values[0], rel=0.3)


def test_a_sorted_folder_trains_to_the_same_accuracy(folders: tuple[Path, Path], tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    """50% on a folder whose shuffled copy gives 100%."""
    argv = ["train", "--store", str(tmp_path), "--width", "16", "--depth", "2", "--norm", "batch", "--lr", "0.1",
            "--batch-size", "40", "--budget", "epochs", "--epochs", "5", "--json"]
    for folder in folders:
        assert main([*argv, "--dataset", f"cifar-bin:{folder}"]) == 0
        assert json.loads(capsys.readouterr().out)["test_accuracy"] > 97


def test_only_data_of_published_results_keep_their_order(tmp_path: Path) -> None:
    """Published runs would be other runs; or those of all other data stay as their files lie."""
    store = Store(tmp_path, create=False)
    for name in NAMES:
        model = Model.QUADRATIC if name == "noisy-quadratic" else Model.MLP
        config = RunConfig(dataset=name, model=model, batch_size=20, lr=0.1, budget=Budget.STEPS, steps=3)
        found = identified(config, None, store, {})
        assert (found == config) == (name in IN_FILE_ORDER) and (found.run_id == config.run_id) == (name in IN_FILE_ORDER)
        assert found.train_draw is (TrainDraw.FIRST if name in IN_FILE_ORDER else TrainDraw.FIXED)
    assert frozenset({"fashion-mini", "cifar10-jpeg", "noisy-quadratic"}) == IN_FILE_ORDER


class Finished(Store):
    """A store in which every run is finished."""

    def records(self, configs: Sequence[RunConfig]) -> list[Record | None]:
        return [Record(config, "done", {}) for config in configs]


@pytest.mark.parametrize("own", [True, False])
def test_parents_and_pairs_are_planned_runs_on_any_data(folders: tuple[Path, Path], tmp_path: Path, own: bool) -> None:
    """A warm start would wait for ever for a run that nobody plans; slices between minima would be left out."""
    store = Finished(tmp_path, create=False)
    look = Looked(store)
    given = [f"dataset=cifar-bin:{folders[0]}", "warm=1"] if own else ["dataset=mnist"]
    study, scale = asked_for(find_study("keskar2017"), "quick", given, look)
    request = Request(scale)
    stages = plan(study, request, store, known=look.hashes)
    runs = [config for stage in stages for config in stage.runs or ()]
    assert {config.parent for config in runs} - {None} <= {config.run_id for config in runs}
    assert {config.train_draw for config in runs} == {TrainDraw.FIXED} and any(config.parent for config in runs)
    assert sum(len(stage.pairs(request)) for stage in stages) > 0


def test_the_fixed_order_is_always_the_same() -> None:
    """Runs of one id would be of other subsets."""
    assert order_of(10).tolist() == [5, 1, 4, 0, 7, 3, 8, 6, 2, 9] and sorted(order_of(1000)) == list(range(1000))


def test_a_run_in_file_order_stays_as_it_was_made(folders: tuple[Path, Path]) -> None:
    """Old runs of a user's own data could not be measured any more: other examples, another head."""
    config = config_of(folders[1])
    old = config.replace(train_draw=TrainDraw.FIRST)
    dataset = load(old.dataset)
    data = prepare(old, Machine(), dataset)
    assert data.outputs == 10 and old.run_id != config.run_id
    assert data.test.targets.tolist() == dataset.test.targets.tolist()
    assert prepare(config, Machine(), dataset).outputs == 2
