"""Runs trained as one program survive interruptions as single ones do: bitwise, whoever has ended in between."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import identical, toy_config, toy_images
from toy_store import overwrite_lease

from experiments.lab.declare.config import Budget, Machine, Norm, Optimizer, RunConfig
from experiments.lab.fused.groups import groups, siblings
from experiments.lab.store.check import check
from experiments.lab.store.checkpoints import load_checkpoint, load_tensors
from experiments.lab.store.execution_plan import company_of, read_plan
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import Interrupted, LeaseLost, RunFolder, open_run
from experiments.lab.store.transfer import export_runs, import_runs
from experiments.lab.sweep import runner
from experiments.lab.training.state import Tensors

MACHINE = Machine(fused=8)
BASE = toy_config(budget=Budget.TRAIN_LOSS, train_loss=0.3, max_epochs=40, batch_size=8, optimizer=Optimizer.ADAM, lr=0.003,
                  norm=Norm.GHOST, norm_batch=4)
MIXED = [BASE, BASE.replace(seed=1, lr=0.02), BASE.replace(seed=2, max_epochs=2.0), BASE.replace(seed=3, lr=1e30)]
"""one of each end: the target met early and late, the cap, divergence"""


@pytest.fixture(autouse=True)
def toy_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "read", lambda name, folder: toy_images(10))


def results(store: Store, configs: list[RunConfig]) -> list[tuple[Any, Tensors]]:
    found = []
    for config in configs:
        summary, loaded = store.summary(config.run_id), load_tensors(store.folder(config.run_id) / "final.safetensors")
        assert summary is not None and loaded is not None
        values = {k: summary[k] for k in ("status", "steps", "test_loss", "train_loss")}
        found.append(((values, store.history(config.run_id)), loaded[0]))
    return found


def same(first: list[tuple[Any, Tensors]], second: list[tuple[Any, Tensors]]) -> bool:
    return all(a[0] == b[0] and identical(bits(a[1]), bits(b[1])) for a, b in zip(first, second, strict=True))


def bits(tensors: Tensors) -> Tensors:
    """A diverged run's weights are NaN, which equals nothing."""
    return {name: value.view(torch.int32) for name, value in tensors.items()}


def undisturbed(root: Path) -> list[tuple[Any, Tensors]]:
    store = Store(root)
    assert runner.train_runs(MIXED, store, MACHINE, lambda: False, lambda step: None) == ["done", "done", "capped", "diverged"]
    return results(store, MIXED)


def interrupted(root: Path, stops: set[int]) -> tuple[list[tuple[Any, Tensors]], int]:
    """The same, stopped at each of `stops` looks at the clock; each time the rest is grouped anew, as `run` does."""
    store, looks, asked, count = Store(root), [0], [False], 0

    def stop() -> bool:
        looks[0] += 1
        asked[0] |= looks[0] in stops
        return asked[0]

    while missing := [config for config in MIXED if not store.finished(config.run_id)]:
        for group in groups(missing, store, 8) or [(missing[0],)]:
            try:
                runner.train_runs(group, store, MACHINE, stop, lambda step: None)
            except Interrupted:
                count, asked[0] = count + 1, False
    return results(store, MIXED), count


def test_interrupted_groups_end_as_undisturbed_ones(tmp_path: Path) -> None:
    """A member would be resumed alone, at another step than the others, or with the ended ones' rounding gone."""
    expected = undisturbed(tmp_path / "undisturbed")
    chance, survived = random.Random(0), 0
    for trial in range(8):
        stops = set(chance.sample(range(1, 250), 5))
        found, count = interrupted(tmp_path / str(trial), stops)
        assert same(found, expected), sorted(stops)
        survived += count
    assert survived > 16
    print(f"survived {survived}/{survived} interruptions")


def test_a_group_whose_checkpoints_differ_goes_back_to_a_common_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two members' checkpoints, the group would go on with its members at different steps."""
    expected = undisturbed(tmp_path / "undisturbed")
    store, save, saves = Store(tmp_path / "torn"), RunFolder.save, [0]

    def torn(self: RunFolder, checkpoint: Any) -> None:
        saves[0] += 1
        if saves[0] == 6:
            raise KeyboardInterrupt  # as a kill: after the second checkpoint of one member, before that of the next
        save(self, checkpoint)

    monkeypatch.setattr(RunFolder, "save", torn)
    monkeypatch.setattr("experiments.lab.store.run_folder.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        runner.train_runs(MIXED, store, MACHINE, lambda: False, lambda step: None)
    monkeypatch.undo()
    monkeypatch.setattr(runner, "read", lambda name, folder: toy_images(10))
    for group in groups(MIXED, store, 8):
        runner.train_runs(group, store, MACHINE, lambda: False, lambda step: None)
    assert same(results(store, MIXED), expected)


def test_a_run_begun_in_other_company_begins_anew(tmp_path: Path) -> None:
    """Two roundings would be mixed in one run, and its plan would not say so."""
    store = Store(tmp_path / "alone")
    stops = iter([False] * 30 + [True] * 100)
    with pytest.raises(Interrupted):
        runner.train_runs(MIXED[:2], store, MACHINE, lambda: next(stops), lambda step: None)
    assert list(store.folder(BASE.run_id).glob("checkpoint.*"))
    runner.train_runs([BASE], store, MACHINE, lambda: False, lambda step: None)
    fresh = Store(tmp_path / "fresh")
    runner.train_runs([BASE], fresh, MACHINE, lambda: False, lambda step: None)
    assert same(results(store, [BASE]), results(fresh, [BASE]))


def test_alone_after_company_makes_progress(tmp_path: Path) -> None:
    """A plan that outlives its company would begin the run anew at every life, or be recorded as what it was computed with."""
    store = Store(tmp_path)
    looks = [0]

    def stop_after(count: int) -> Callable[[], bool]:
        looks[0] = 0

        def stop() -> bool:
            looks[0] += 1
            return looks[0] > count

        return stop

    with pytest.raises(Interrupted):
        runner.train_runs(MIXED[:2], store, MACHINE, stop_after(30), lambda step: None)
    steps = []
    while not store.finished(BASE.run_id):
        with contextlib.suppress(Interrupted):
            runner.train_runs([BASE], store, MACHINE, stop_after(20), lambda step: None)
        checkpoint = load_checkpoint(store.folder(BASE.run_id))
        steps.append(-1 if checkpoint is None else checkpoint.current.step)
        assert len(steps) < 30, steps
    assert read_plan(store.folder(BASE.run_id)) is None
    assert company_of(store, MIXED[1].run_id) == []  # its company broke up: it begins anew too
    fresh = Store(tmp_path / "fresh")
    runner.train_runs([BASE], fresh, MACHINE, lambda: False, lambda step: None)
    assert same(results(store, [BASE]), results(fresh, [BASE]))


def test_one_busy_member_keeps_all_waiting(tmp_path: Path) -> None:
    """The others would begin anew without it, and their checkpoints be lost."""
    store = Store(tmp_path)
    held = open_run(store, MIXED[1], MACHINE, lambda: False, lambda step: None)
    assert held is not None
    assert runner.train_runs(MIXED, store, MACHINE, lambda: False, lambda step: None) == ["busy"] * 4
    held.close()
    assert "busy" not in runner.train_runs(MIXED, store, MACHINE, lambda: False, lambda step: None)


def test_a_lost_lease_changes_nothing(tmp_path: Path) -> None:
    """A process that stood still would write its plan into a record that another one has finished."""
    store = Store(tmp_path)
    folder = open_run(store, BASE, MACHINE, lambda: False, lambda step: None)
    assert folder is not None
    overwrite_lease(folder.path / "lease.json", token="another")
    with pytest.raises(LeaseLost):
        folder.begin([BASE.run_id, "b"], 8, anew=True)
    assert not (folder.path / "plan.json").exists()


def test_siblings() -> None:
    """Runs of different programs would be stacked, or a sweep of one program be cut unevenly."""
    configs = [toy_config(seed=seed, batch_size=size) for seed in range(9) for size in (8, 16)]
    found = siblings([*configs, toy_config(batch_size=4)], 4)
    assert [len(group) for group in found] == [3, 3, 3, 3, 3, 3]
    assert all(len({config.batch_size for config in group}) == 1 for group in found)
    assert not siblings(configs, 1)


def test_the_plan_is_part_of_the_record(tmp_path: Path) -> None:
    """Moved to another machine, or damaged, nobody could say what a run was computed with."""
    store = Store(tmp_path / "a")
    runner.train_runs(MIXED[1:3], store, MACHINE, lambda: False, lambda step: None)
    export_runs(store, tmp_path / "runs.tar")
    assert import_runs(Store(tmp_path / "b"), tmp_path / "runs.tar") == 2
    plan = Store(tmp_path / "b").folder(MIXED[1].run_id) / "plan.json"
    assert plan.read_bytes() == (store.folder(MIXED[1].run_id) / "plan.json").read_bytes()
    plan.write_bytes(plan.read_bytes().replace(b"null", b"1234"))
    assert [path.name for path, _ in check(Store(tmp_path / "b")).damaged] == [MIXED[1].run_id]
