"""Every file of a record, cut and with flipped bits: noticed, the last good state used or the run redone; no other number."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_runs import identical, run, toy_config
from toy_store import finish, start, stopped_twice

from experiments.__main__ import main
from experiments.lab.declare.config import Machine
from experiments.lab.declare.study import measure
from experiments.lab.store.check import check, repair
from experiments.lab.store.checkpoints import final_weights, load_checkpoint, load_tensors
from experiments.lab.store.execution_plan import write_plan
from experiments.lab.store.files import StoreError
from experiments.lab.store.history import history
from experiments.lab.store.leases import acquire
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import Interrupted, LeaseLost, open_run
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.tasks import Failed, Finished, Train
from experiments.lab.sweep.worker import run_task
from experiments.lab.training.data import prepare, read
from experiments.lab.training.loop import train

OFFSETS = 200
CONFIG = toy_config(momentum=0.9)
MEASURE, PAIR = measure("lambda_max", examples=10), measure("slice", examples=10)
OTHER = "f" * 20
FINISHED = ("config.json", "provenance.json", "history.jsonl", "history.safetensors", "final.safetensors",
            "predictions.safetensors", "summary.json", "measurement", "pair")
UNDER_WAY = ("config.json", "provenance.json", "history.jsonl", "checkpoint.0.safetensors", "checkpoint.1.safetensors",
             "lease.json")


def damages(content: bytes, count: int = OFFSETS) -> Iterator[tuple[str, bytes]]:
    """`count` damaged versions of a file: half cut, half with one flipped bit; its ends among them."""
    chance = random.Random(len(content))
    for number in range(count):
        ends = (0, len(content) - 1)
        offset = ends[number // 2] if number < 4 else chance.randrange(len(content))
        if number % 2:
            yield f"cut at {offset}", content[:offset]
        else:
            bit = chance.randrange(8)
            flipped = content[offset] ^ (1 << bit)
            yield f"bit {bit} of byte {offset}", content[:offset] + bytes([flipped]) + content[offset + 1 :]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of one finished run with a measurement, its own and of a pair."""
    store = Store(tmp_path_factory.mktemp("finished"))
    finish(store, CONFIG)
    store.write_measurement(MEASURE, [CONFIG.run_id], {"value": 0.43, "residual": 0.001})
    store.write_measurement(PAIR, [CONFIG.run_id, OTHER], {"value": 2.5})
    return store


def place(store: Store, name: str) -> Path:
    runs = {"measurement": (MEASURE, [CONFIG.run_id]), "pair": (PAIR, [CONFIG.run_id, OTHER])}
    return store.measurement_path(*runs[name]) if name in runs else store.folder(CONFIG.run_id) / name


def values(store: Store) -> dict[str, Any]:
    """What analysis, measuring and resuming read of the record; a StoreError in place of what they refuse."""

    def of(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except StoreError as error:
            assert str(error).count("; ") == 1 and "\n" not in str(error)
            return StoreError

    run_id = CONFIG.run_id

    def columns() -> str:
        record = store.record(CONFIG)
        assert record is not None
        found = history(store, record)
        return str({name: array.tolist() for name, array in found.numbers.items()} | {"kind": found.kind.tolist()})

    return {
        "config": of(lambda: store.config(run_id)),
        "summary": of(lambda: store.summary(run_id)),
        "record": of(lambda: (record := store.record(CONFIG)) and dict(record.values)),
        "history": of(lambda: store.history(run_id)),
        "columns": of(columns),
        "weights": of(lambda: {name: w.tolist() for name, w in final_weights(store, run_id).items()}),
        "predictions": of(lambda: store.recorded(run_id, "predictions.safetensors")),
        "measurement": of(lambda: store.measurement(MEASURE, [run_id])),
        "pair": of(lambda: store.measurement(PAIR, [run_id, OTHER])),
    }


@pytest.mark.parametrize("name", FINISHED)
def test_no_damage_to_a_finished_record_gives_another_number(name: str, finished: Store) -> None:
    """0.43 would become 0.53 in a table, and nobody would know."""
    path, good = place(finished, name), values(finished)
    content, survived = path.read_bytes(), 0
    assert StoreError not in good.values() and not check(finished).damaged
    try:
        for what, damaged in damages(content):
            path.write_bytes(damaged)
            found = check(finished).damaged
            assert found and all(str(path.parent) in sentence for _, sentence in found), what
            for reader, value in values(finished).items():
                assert value in (StoreError, good[reader]), (what, reader)
            survived += 1
    finally:
        path.write_bytes(content)
    print(f"{name}: noticed {survived}/{OFFSETS}")


@pytest.mark.parametrize("name", ["config.json", "history.jsonl", "history.safetensors", "final.safetensors",
                                  "predictions.safetensors", "summary.json", "measurement", "pair"])
def test_each_reader_refuses_what_it_reads(name: str, finished: Store) -> None:
    """The test above would pass for readers that never read."""
    reader = {"config.json": "config", "history.jsonl": "history", "history.safetensors": "columns",
              "final.safetensors": "weights", "predictions.safetensors": "predictions", "summary.json": "record",
              "measurement": "measurement", "pair": "pair"}[name]
    path = place(finished, name)
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-2])
        assert values(finished)[reader] is StoreError
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", FINISHED)
def test_a_missing_file_is_noticed(name: str, finished: Store, tmp_path: Path) -> None:
    """A run without its weights or its curve would count as whole. (Without a summary it is not finished; a measurement
    that is not there is made.)"""
    store = Store(tmp_path / "store")
    shutil.copytree(finished.root, store.root, dirs_exist_ok=True)
    place(store, name).unlink()
    assert bool(check(store).damaged) == (name not in ("summary.json", "measurement", "pair"))


def test_a_damaged_run_is_moved_aside_and_redone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` would refuse for ever, or the user delete the wrong folder."""
    config = toy_config(dataset="fashion-mini", n_train=40)
    store = Store(tmp_path)
    assert run_task(Train(config), store, Machine(), Stopper(), None) == Finished()
    store.write_measurement(MEASURE, [config.run_id], {"value": 0.5})
    expected = final_weights(store, config.run_id)
    path, argv = store.folder(config.run_id) / "summary.json", ["--store", str(tmp_path)]
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))
    report = run_task(Train(config), store, Machine(), Stopper(), None)
    assert isinstance(report, Failed) and "check --repair" in report.why
    assert main(["store", "check", *argv]) == 1 and path.exists()
    assert main(["store", "export", str(tmp_path / "a.tar"), *argv]) == 1 and not list(tmp_path.glob("*.tar*"))
    assert main(["store", "check", "--repair", "--json", *argv]) == 0
    assert (tmp_path / "damaged" / config.run_id / "summary.json").exists() and not path.exists()
    capsys.readouterr()
    assert main(["store", "check", *argv]) == 0 and "damaged: none" in capsys.readouterr().out
    assert run_task(Train(config), store, Machine(), Stopper(), None) == Finished()
    assert identical(final_weights(store, config.run_id), expected)


def test_a_damaged_measurement_costs_no_run(tmp_path: Path) -> None:
    """Hours of training would be repeated for one number."""
    store = Store(tmp_path)
    finish(store, CONFIG)
    for seed in (1, 2):  # damaged twice: the first one moved aside is kept
        store.write_measurement(MEASURE, [CONFIG.run_id], {"value": seed / 2})
        place(store, "measurement").write_bytes(b"{")
        assert len(repair(store, check(store))) == 1
    assert store.finished(CONFIG.run_id) and not store.measured(MEASURE, [CONFIG.run_id])
    assert len(list((tmp_path / "damaged").iterdir())) == 2 and not check(store).damaged


def test_a_measurement_in_anothers_place_is_noticed(tmp_path: Path) -> None:
    """A copied file would answer for a run that was never measured."""
    store = Store(tmp_path)
    finish(store, CONFIG)
    store.folder(OTHER).mkdir()
    store.write_measurement(MEASURE, [OTHER], {"value": 7.0})
    path = place(store, "measurement")
    path.parent.mkdir()
    store.measurement_path(MEASURE, [OTHER]).rename(path)
    with pytest.raises(StoreError, match="another run"):
        store.measurement(MEASURE, [CONFIG.run_id])
    assert len(check(store).damaged) == 1


@pytest.fixture(scope="module")
def under_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two checkpoints and the lease of a process that is gone."""
    store = Store(tmp_path_factory.mktemp("under_way"))
    folder = stopped_twice(store, CONFIG)
    lease = acquire(folder)
    assert lease is not None
    content = json.loads(lease.path.read_text())
    lease.path.write_text(json.dumps(content | {"pid": 2**22 - 1, "started": "1"}))
    return folder


@pytest.mark.parametrize("name", UNDER_WAY)
def test_no_damage_to_a_run_under_way_gives_another_run(name: str, under_way: Path, tmp_path: Path) -> None:
    """It would continue from altered weights or behind an altered curve, and publish both with valid digests."""
    expected, log = run(CONFIG)
    states = {3: load_tensors(under_way / "checkpoint.0.safetensors"), 6: load_tensors(under_way / "checkpoint.1.safetensors")}
    content, survived, seen = (under_way / name).read_bytes(), 0, set()
    for number, (what, damaged) in enumerate(damages(content)):
        store = Store(tmp_path / str(number))
        path = store.folder(CONFIG.run_id)
        shutil.copytree(under_way, path)
        (path / name).write_bytes(damaged)
        if name == "lease.json" and acquire(path) is None:  # it may name another machine now: then only time helps
            (path / name).unlink()
        (path / "lease.json").unlink(missing_ok=True)
        checkpoint = load_checkpoint(path)
        seen.add(None if checkpoint is None else checkpoint.current.step)
        if checkpoint is not None:
            state = states[checkpoint.current.step]
            assert state is not None
            kept = {n.removeprefix("current."): t for n, t in state[0].items() if n.startswith("current.")}
            assert identical(checkpoint.current.tensors, kept), what
        if number < 4 or number % 50 == 0:
            finish(store, CONFIG)
            assert identical(final_weights(store, CONFIG.run_id), expected.weights), what
            assert (path / "history.jsonl").read_bytes() == log.text and not check(store).damaged, what
            summary = store.summary(CONFIG.run_id)
            assert summary is not None and summary["test_loss"] == expected.values["test_loss"]
            assert (summary["seconds"] is None) == (name == "provenance.json"), what
        shutil.rmtree(store.root)
        survived += 1
    assert seen == {"checkpoint.1.safetensors": {3}, "history.jsonl": {3}}.get(name, {6})
    print(f"{name}: survived {survived}/{OFFSETS}")


def test_a_damaged_plan_mixes_no_rounding(tmp_path: Path) -> None:
    """A run begun in micro-batches would go on in whole ones: neither the one run nor the other."""
    config = toy_config(dataset="fashion-mini", n_train=40, momentum=0.9)
    weights = {}
    for size, root in ((None, "whole"), (3, "micro")):
        store = Store(tmp_path / root)
        assert run_task(Train(config), store, Machine(micro_batch=size), Stopper(), None) == Finished()
        weights[root] = final_weights(store, config.run_id)
    assert not identical(weights["whole"], weights["micro"])
    store, now = Store(tmp_path / "begun"), [0]
    folder = open_run(store, config, Machine(micro_batch=3), lambda: now[0] == 5, lambda step: now.__setitem__(0, step))
    assert folder is not None
    write_plan(folder.path, [config.run_id], 3)
    with pytest.raises(Interrupted):
        train(config, Machine(micro_batch=3), prepare(config, Machine(), read(config.dataset, None)), folder)
    folder.close()
    content = (folder.path / "plan.json").read_bytes()
    for number, (what, damaged) in enumerate([("whole", content), *damages(content, 12)]):
        other = Store(tmp_path / str(number))
        shutil.copytree(folder.path, other.folder(config.run_id))
        (other.folder(config.run_id) / "plan.json").write_bytes(damaged)
        assert run_task(Train(config), other, Machine(), Stopper(), None) == Finished()
        expected = weights["whole" if number else "micro"]
        assert identical(final_weights(other, config.run_id), expected), what


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"token": 1}', b"\xff"])
def test_a_damaged_lease_never_lets_two_processes_record(damage: bytes, tmp_path: Path) -> None:
    """Both would believe that they own the run."""
    store = Store(tmp_path)
    folder = start(store, CONFIG)
    folder.load()
    folder.lease.path.write_bytes(damage)
    with pytest.raises(LeaseLost):
        folder.load()
    folder.close()
    finish(store, CONFIG)
    assert not check(store).damaged


def test_a_history_altered_while_its_run_goes_on_is_never_published(tmp_path: Path) -> None:
    """Its digest would vouch for the damage."""
    store = Store(tmp_path)
    folder = start(store, CONFIG)
    outcome, _ = run(CONFIG)
    folder.load()
    folder.row({"kind": "train", "step": 1, "loss": 0.43})
    folder._write_rows()
    folder.history.write_bytes(folder.history.read_bytes().replace(b"0.43", b"0.53"))
    with pytest.raises(StoreError, match="altered while"):
        folder.publish(outcome)
    folder.close()
    assert not store.finished(CONFIG.run_id)
