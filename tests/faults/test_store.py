"""Damaged files of a record: noticed, the last good state used, or the run redone; a failed write leaves the old file."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_runs import identical, run, toy_config, toy_data
from toy_store import files, finish, stopped_twice

from experiments.__main__ import main
from experiments.lab.declare.config import Machine
from experiments.lab.declare.study import measure
from experiments.lab.store.check import check, repair
from experiments.lab.store.checkpoints import load_checkpoint, load_tensors, save_tensors
from experiments.lab.store.files import StoreError, write_atomic
from experiments.lab.store.leases import acquire
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import Interrupted, RunFolder, open_run
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.tasks import Failed, Finished, Train
from experiments.lab.sweep.worker import run_task
from experiments.lab.training.loop import train


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """Training would continue from damaged weights, or start again from nothing."""
    store, config = Store(tmp_path), toy_config(momentum=0.9)
    path = stopped_twice(store, config)
    older, newer = sorted(path.glob("checkpoint.*"))
    damage(newer)
    checkpoint = load_checkpoint(path)
    assert checkpoint is not None and checkpoint.current.step == 3
    expected, log = run(config)
    finish(store, config)
    loaded = load_tensors(path / "final.safetensors")
    assert loaded is not None and identical(loaded[0], expected.weights)
    assert (path / "history.jsonl").read_bytes() == log.text
    assert not older.exists()


def test_a_damaged_checkpoint_is_not_one_of_the_two_kept(tmp_path: Path) -> None:
    """Of the two that are kept one would be damaged: the next damage would cost the whole run."""
    store, config = Store(tmp_path), toy_config()
    path = stopped_twice(store, config)
    (path / "checkpoint.1.safetensors").write_bytes(b"")
    now = [0]
    folder = open_run(store, config, Machine(), lambda: now[0] == 5, lambda step: now.__setitem__(0, step))
    assert folder is not None
    with pytest.raises(Interrupted):
        train(config, Machine(), toy_data(config), folder)
    folder.close()
    newest = sorted(path.glob("checkpoint.*"))[-1]
    loaded = load_checkpoint(path)
    assert len(list(path.glob("checkpoint.*"))) == 2 and loaded is not None and loaded.current.step == 5
    truncate(newest)
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded.current.step == 3


def test_without_a_whole_checkpoint_a_run_starts_again(tmp_path: Path) -> None:
    """The history of the lost part would be kept and repeated."""
    store, config = Store(tmp_path), toy_config()
    path = stopped_twice(store, config)
    for checkpoint in path.glob("checkpoint.*"):
        truncate(checkpoint)
    finish(store, config)
    assert (path / "history.jsonl").read_bytes() == run(config)[1].text


def test_a_cut_history_takes_its_checkpoints_with_it(tmp_path: Path) -> None:
    """It would be filled up with zero bytes, or the run go on behind a hole in its curve."""
    store, config = Store(tmp_path), toy_config()
    path = stopped_twice(store, config)
    (path / "history.jsonl").write_bytes(b"")
    finish(store, config)
    assert (path / "history.jsonl").read_bytes() == run(config)[1].text


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    """Each kill would leave a file as large as a checkpoint."""
    store, config = Store(tmp_path), toy_config()
    path = stopped_twice(store, config)
    (path / ".checkpoint.7.safetensors.123.abcd.tmp").write_bytes(b"half")
    finish(store, config)
    assert not list(path.glob(".*"))


def test_old_halves_of_measurements_are_removed(tmp_path: Path) -> None:
    """Each kill while a measurement is written would leave a file; another process's, under way, must stay."""
    store = Store(tmp_path)
    old, young, other = (store.root / "measurements" / name for name in (
        ".slice-1.json.12.0123abcd.tmp", ".slice-2.json.12.0123abcd.tmp", ".hidden"))
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (0, 0))
    Store(tmp_path)
    assert {path.name for path in old.parent.iterdir()} == {young.name, other.name}


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    """Reading a run under way would fail; a damaged line inside must."""
    store, config = Store(tmp_path), toy_config()
    path = stopped_twice(store, config)
    rows = store.history(config.run_id)
    with open(path / "history.jsonl", "ab") as file:
        file.write(b'{"kind": "tra')
    assert store.history(config.run_id) == rows
    with open(path / "history.jsonl", "ab") as file:
        file.write(b"\n")
    with pytest.raises(StoreError, match="damaged"):
        store.history(config.run_id)


@pytest.mark.parametrize("content", [b"", b'{"status": "do', b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_summary_is_one_sentence(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would read as missing, retrain over the record, or end in a traceback."""
    store, config = Store(tmp_path), toy_config()
    path = finish(store, config)
    (path / "summary.json").write_bytes(content)
    with pytest.raises(StoreError):
        store.record(config)
    assert main(["store", "check", "--store", str(tmp_path)]) == 1
    assert "summary.json" in capsys.readouterr().out
    report = run_task(Train(config), store, Machine(), Stopper(), None)
    assert isinstance(report, Failed) and "summary.json" in report.why and "\n" not in report.why


def replace_by_another_runs(path: Path) -> None:
    """Whole in itself, but not the file that was recorded."""
    tensors = load_tensors(path)
    assert tensors is not None
    save_tensors(path, {name: value + 1 for name, value in tensors[0].items()})


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, Path.unlink, replace_by_another_runs])
def test_altered_weights_are_noticed(damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sharpness would be measured at weights that no run ended with."""
    config = toy_config(dataset="fashion-mini", n_train=40)
    assert run_task(Train(config), Store(tmp_path), Machine(), Stopper(), None) == Finished()
    assert main(["store", "check", "--store", str(tmp_path)]) == 0
    damage(Store(tmp_path).folder(config.run_id) / "final.safetensors")
    assert main(["store", "check", "--store", str(tmp_path)]) == 1
    assert "final.safetensors is missing or altered" in capsys.readouterr().out
    assert main(["measure", config.run_id[:8], "--metrics", "lambda_max", "--store", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "missing or altered" in error and error.count("\n") == 1


def test_a_renamed_run_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record would answer for another configuration."""
    path = finish(Store(tmp_path), toy_config())
    path.rename(path.with_name(toy_config(seed=1).run_id))
    assert main(["store", "check", "--store", str(tmp_path)]) == 1
    assert "another run" in capsys.readouterr().out


def test_writing_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would leave half a file, or destroy the old one."""
    write_atomic(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"file cannot be written \(No space left on device\); free space"):
        write_atomic(tmp_path / "file", b"new")
    assert files(tmp_path) == {"file": b"old"}


def test_a_full_disk_is_one_sentence_and_frees_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease would stay with a worker that has given the run up."""
    config = toy_config(dataset="fashion-mini", n_train=40)
    monkeypatch.setattr(RunFolder, "row", lambda self, row: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    report = run_task(Train(config), Store(tmp_path), Machine(), Stopper(), None)
    assert isinstance(report, Failed) and "No space left" in report.why
    assert not (Store(tmp_path).folder(config.run_id) / "lease.json").exists()


def test_measurement_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """One infinite loss on a slice would fail the whole sweep, or print a number that is none."""
    store, asked = Store(tmp_path), measure("slice", points=3)
    store.write_measurement(asked, ["a", "b"], {"value": float("nan"), "details": {"train_loss": [1.0, float("inf")]}})
    found = store.measurement(asked, ["a", "b"])
    assert found is not None and found["value"] is None and found["details"] == {"train_loss": [1.0, None]}


def two_damaged(root: Path) -> tuple[Store, list[Path]]:
    """Two runs, each with a folder in the place of a file."""
    store = Store(root)
    folders = [finish(store, toy_config(seed=seed)) for seed in (0, 1)]
    for folder, name in zip(folders, ("final.safetensors", "summary.json"), strict=True):
        (folder / name).unlink()
        (folder / name).mkdir()
    return store, folders


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("name", ["summary.json", "config.json", "final.safetensors"])
def test_a_file_that_the_system_does_not_give_is_no_damage(name: str, number: int, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad read would cost a good run, or end the check of all others."""
    store, folders = two_damaged(tmp_path)
    good = finish(store, toy_config(seed=2))

    def failing(own: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, *rest: Any, **named: Any) -> Any:
            if str(path) == str(good / name):
                raise OSError(number, "bad", str(path))
            return own(path, *rest, **named)

        return opened

    monkeypatch.setattr("builtins.open", failing(open))
    monkeypatch.setattr(os, "open", failing(os.open))
    found = check(store)
    assert [path for path, _ in found.unreadable] == [good] and {path for path, _ in found.damaged} == set(folders)
    assert len(repair(store, found)) == 2 and good.exists()
    assert main(["store", "check", "--store", str(tmp_path)]) == 1


def test_repair_looks_again(tmp_path: Path) -> None:
    """A run that was redone since, or is being redone, would be moved away under its owner."""
    store, folders = two_damaged(tmp_path)
    asked, pair = measure("slice", points=3), ["a", "b"]
    store.write_measurement(asked, pair, {"value": 1.0})
    content = store.measurement_path(asked, pair).read_bytes()
    store.measurement_path(asked, pair).write_bytes(b"{")
    found = check(store)
    assert len(found.damaged) == 3
    shutil.rmtree(folders[0])
    stopped_twice(store, toy_config(seed=0))
    lease = acquire(folders[1])
    assert lease is not None
    store.measurement_path(asked, pair).write_bytes(content)
    assert repair(store, found) == [] and [path for path, _ in found.unreadable] == [folders[1]]
    lease.release()
    assert [Path(moved).name for moved in repair(store, check(store))] == [folders[1].name]
    assert folders[0].exists() and not folders[1].exists()
    assert not (tmp_path / "damaged" / folders[1].name / "lease.json").exists()
