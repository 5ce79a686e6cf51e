"""The store under hostile conditions: many owners, stale leases, damaged files, foreign archives."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import identical, run, toy_config, toy_data

from experiments.__main__ import main
from experiments.lab import lease as leases
from experiments.lab.config import Machine, RunConfig
from experiments.lab.folder import Interrupted, LeaseLost, RunFolder, open_run
from experiments.lab.lease import EXPIRY, acquire, is_live
from experiments.lab.store import Store, StoreError, write_atomic
from experiments.lab.study import measure
from experiments.lab.training.checkpoint import load_checkpoint, load_tensors, save_tensors
from experiments.lab.training.train import train
from experiments.lab.worker import Stopper, Train, run_task


def start(store: Store, config: RunConfig, stop: Callable[[], bool] = lambda: False) -> RunFolder:
    folder = open_run(store, config, Machine(), stop, lambda step: None)
    assert folder is not None
    return folder


def finish(store: Store, config: RunConfig) -> Path:
    """Train and publish `config` on the toy data; returns its folder."""
    folder = start(store, config)
    assert folder.publish(train(config, Machine(), toy_data(config), folder))
    folder.close()
    return folder.path


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def overwrite_lease(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- leases


def test_a_lease_is_exclusive_until_released(tmp_path: Path) -> None:
    """Two processes would train one run."""
    first = acquire(tmp_path)
    assert first is not None and acquire(tmp_path) is None and is_live(first.path)
    first.release()
    second = acquire(tmp_path)
    assert second is not None and second.held() and not first.held()
    first.release()  # a late release of the first owner
    assert second.held()
    assert [path.name for path in tmp_path.iterdir()] == ["lease.json"]


def test_a_dead_process_leaves_a_stale_lease(tmp_path: Path) -> None:
    """A killed sweep would lock its runs for ever."""
    code = f"from pathlib import Path; from experiments.lab.lease import acquire; acquire(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "lease.json").exists() and not is_live(tmp_path / "lease.json")
    assert acquire(tmp_path) is not None


def test_a_reused_pid_leaves_a_stale_lease(tmp_path: Path) -> None:
    """Another program that got the pid would hold the run."""
    first = acquire(tmp_path)
    assert first is not None
    overwrite_lease(first.path, started="1")
    assert acquire(tmp_path) is not None


@pytest.mark.parametrize(("age", "taken"), [(EXPIRY - 20, False), (EXPIRY + 20, True)])
def test_another_machines_lease_expires(age: float, taken: bool, tmp_path: Path) -> None:
    """A live owner elsewhere would be robbed, or a dead one keep its run."""
    first = acquire(tmp_path)
    assert first is not None
    overwrite_lease(first.path, machine="elsewhere", pid=1, started="1")
    os.utime(first.path, (time.time() - age, time.time() - age))
    assert (acquire(tmp_path) is not None) == taken


def test_a_live_lease_is_never_taken_however_old(tmp_path: Path) -> None:
    """A long evaluation without a touch would cost the run."""
    first = acquire(tmp_path)
    assert first is not None
    os.utime(first.path, (0, 0))
    assert acquire(tmp_path) is None and first.held()


def test_a_lease_taken_between_look_and_removal_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that find the same stale lease would both own the run."""
    stale = acquire(tmp_path)
    assert stale is not None
    overwrite_lease(stale.path, started="1")
    winners, live = [], leases.is_live

    def another_is_faster(path: Path) -> bool:
        monkeypatch.setattr(leases, "is_live", live)
        winners.append(acquire(tmp_path))
        return False

    monkeypatch.setattr(leases, "is_live", another_is_faster)
    assert acquire(tmp_path) is None
    assert winners[0] is not None and winners[0].held()
    assert [path.name for path in tmp_path.iterdir()] == ["lease.json"]


def test_only_the_owner_keeps_a_lease_warm(tmp_path: Path) -> None:
    """A loser would keep its successor's lease alive after that one died."""
    loser = acquire(tmp_path)
    assert loser is not None
    overwrite_lease(loser.path, token="another")
    os.utime(loser.path, (0, 0))
    loser.touch()
    assert loser.path.stat().st_mtime == 0


# --- publishing


def rob(folder: RunFolder) -> None:
    """Another machine takes the run over."""
    overwrite_lease(folder.lease.path, token="another", machine="elsewhere")


def test_a_stale_owner_changes_nothing(tmp_path: Path) -> None:
    """Its weights would lie under the summary of another machine's run."""
    store, config = Store(tmp_path), toy_config()
    folder = start(store, config)
    outcome = train(config, Machine(), toy_data(config), folder)
    rob(folder)
    before = files(folder.path).keys()
    assert not folder.publish(outcome)
    assert files(folder.path).keys() == before and not store.finished(config.run_id)
    folder.close()
    assert folder.lease.path.exists()  # the other one's


def test_a_stale_owner_writes_no_checkpoint(tmp_path: Path) -> None:
    """Two machines' checkpoints would be mixed."""
    store, config, asked = Store(tmp_path), toy_config(), [False]
    folder = start(store, config, stop=lambda: asked[0])
    folder.load()
    rob(folder)
    asked[0] = True
    with pytest.raises(LeaseLost):
        train(config, Machine(), toy_data(config), folder)
    assert load_checkpoint(folder.path) is None


def test_two_publishers_leave_one_summary(tmp_path: Path) -> None:
    """A run would be recorded twice."""
    store, config = Store(tmp_path), toy_config()
    path = finish(store, config)
    recorded = files(path)
    late = RunFolder(store, config, Machine(), acquire(path), lambda: False, lambda step: None)  # type: ignore[arg-type]
    outcome, _ = run(config)
    late.history = open(path / "history.jsonl", "ab")  # noqa: SIM115
    assert not late.publish(outcome)
    late.close()
    assert {name: content for name, content in files(path).items() if name != "history.jsonl"} == {
        name: content for name, content in recorded.items() if name != "history.jsonl"
    }


def test_a_finished_run_is_not_touched_again(tmp_path: Path) -> None:
    """A second sweep would overwrite the record it finds, provenance included."""
    store, config = Store(tmp_path), toy_config(dataset="fashion-mini", n_train=40)
    assert run_task(Train(config), store, Machine(), Stopper(), None).kind == "done"
    recorded = files(tmp_path)
    assert run_task(Train(config), store, Machine(), Stopper(), None).kind == "done"
    assert files(tmp_path) == recorded
    assert not [name for name in recorded if "checkpoint" in name or ".tmp" in name or "lease" in name]


# --- damaged files


def stopped_twice(store: Store, config: RunConfig) -> Path:
    """A run with two checkpoints, after 3 and 6 updates."""
    for stop in (3, 6):
        now = [0]
        folder = open_run(store, config, Machine(), lambda: now[0] == stop, lambda step: now.__setitem__(0, step))  # noqa: B023
        assert folder is not None
        with pytest.raises(Interrupted):
            train(config, Machine(), toy_data(config), folder)
        folder.close()
    return store.folder(config.run_id)


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


def test_without_a_whole_checkpoint_a_run_starts_again(tmp_path: Path) -> None:
    """The history of the lost part would be kept and repeated."""
    store, config = Store(tmp_path), toy_config()
    path = stopped_twice(store, config)
    for checkpoint in path.glob("checkpoint.*"):
        truncate(checkpoint)
    finish(store, config)
    assert (path / "history.jsonl").read_bytes() == run(config)[1].text


def test_a_cut_history_is_noticed(tmp_path: Path) -> None:
    """It would be filled up with zero bytes."""
    store, config = Store(tmp_path), toy_config()
    path = stopped_twice(store, config)
    (path / "history.jsonl").write_bytes(b"")
    folder = start(store, config)
    with pytest.raises(StoreError, match="shorter than its checkpoint"):
        folder.load()
    folder.close()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    """Each kill would leave a file as large as a checkpoint."""
    store, config = Store(tmp_path), toy_config()
    path = stopped_twice(store, config)
    (path / ".checkpoint.7.safetensors.123.abcd.tmp").write_bytes(b"half")
    finish(store, config)
    assert not list(path.glob(".*"))


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    """Reading a run under way would fail; a damaged line inside must."""
    store, config = Store(tmp_path), toy_config()
    path = finish(store, config)
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
    assert report.kind == "failed" and "summary.json" in report.detail and "\n" not in report.detail


def replace_by_another_runs(path: Path) -> None:
    """Whole in itself, but not the file that was recorded."""
    tensors = load_tensors(path)
    assert tensors is not None
    save_tensors(path, {name: value + 1 for name, value in tensors[0].items()})


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, Path.unlink, replace_by_another_runs])
def test_altered_weights_are_noticed(damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sharpness would be measured at weights that no run ended with."""
    config = toy_config(dataset="fashion-mini", n_train=40)
    assert run_task(Train(config), Store(tmp_path), Machine(), Stopper(), None).kind == "done"
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
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "file", b"new")
    assert files(tmp_path) == {"file": b"old"}


def test_a_full_disk_is_one_sentence_and_frees_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease would stay with a worker that has given the run up."""
    config = toy_config(dataset="fashion-mini", n_train=40)
    monkeypatch.setattr(RunFolder, "row", lambda self, row: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    report = run_task(Train(config), Store(tmp_path), Machine(), Stopper(), None)
    assert report.kind == "failed" and "No space left" in report.detail
    assert not (Store(tmp_path).folder(config.run_id) / "lease.json").exists()


# --- archives


def filled(root: Path) -> Store:
    store = Store(root)
    for seed in (0, 1):
        finish(store, toy_config(seed=seed))
    ids = [toy_config(seed=seed).run_id for seed in (0, 1)]
    store.write_measurement(measure("lambda_max", examples=10), ids[:1], {"value": 1.0})
    store.write_measurement(measure("slice", examples=10), ids, {"value": 2.0})
    stopped_twice(store, toy_config(seed=2))
    return store


def test_export_and_import_carry_every_finished_run(tmp_path: Path) -> None:
    """Records of a GPU machine would arrive incomplete, or unfinished ones as finished."""
    store, archive = filled(tmp_path / "a"), str(tmp_path / "runs.tar")
    unfinished = toy_config(seed=2).run_id
    assert main(["store", "export", archive, "--store", str(store.root)]) == 0
    assert main(["store", "import", archive, "--store", str(tmp_path / "b")]) == 0
    expected = {name: content for name, content in files(store.root).items() if unfinished not in name}
    assert files(tmp_path / "b") == expected
    assert len([name for name in expected if "measurements" in name]) == 2


def test_an_archive_names_no_user(tmp_path: Path) -> None:
    """The exporting user's name would travel with the records."""
    from experiments.lab.transfer import export_runs

    export_runs(filled(tmp_path / "a"), tmp_path / "runs.tar")
    with tarfile.open(tmp_path / "runs.tar") as tar:
        assert {(m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, "", "")}


def test_import_leaves_finished_runs_alone(tmp_path: Path) -> None:
    """Two machines' records of one run would be mixed."""
    from experiments.lab.transfer import export_runs, import_runs

    store = filled(tmp_path / "a")
    export_runs(store, tmp_path / "runs.tar")
    (store.folder(toy_config(seed=1).run_id) / "summary.json").unlink()
    (store.folder(toy_config(seed=0).run_id) / "provenance.json").write_text('{"mine": true}')
    assert import_runs(store, tmp_path / "runs.tar") == 1
    assert store.finished(toy_config(seed=1).run_id)
    assert (store.folder(toy_config(seed=0).run_id) / "provenance.json").read_text() == '{"mine": true}'


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


RUN = "runs/" + "0" * 20
HOSTILE = [
    member("../escaped.json", size=4),
    member("/tmp/escaped.json", size=4),
    member(f"{RUN}/../../../escaped.json", size=4),
    member(f"{RUN}/summary.json/../../../../escaped.json", size=4),
    member(f"{RUN}/summary.json", type=tarfile.SYMTYPE, linkname="../../../escaped.json"),
    member(f"{RUN}/summary.json", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    member(f"{RUN}/summary.json", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member(f"{RUN}/summary.json", type=tarfile.FIFOTYPE),
    member("runs", type=tarfile.SYMTYPE, linkname=".."),
    member(f"{RUN}/run.py", size=4),
    member(f"{RUN}/measurements/.._x.json/y.json", size=4),
    member("runs/0/summary.json", size=4),
]


@pytest.mark.parametrize("info", HOSTILE, ids=[f"{info.name[-30:]}-{info.type.decode()}" for info in HOSTILE])
def test_a_hostile_archive_is_refused_whole(info: tarfile.TarInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file would be written outside the store (CVE-2025-4517 and its kin), or half an archive be taken."""
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(member(f"{RUN}/config.json", size=2), io.BytesIO(b"{}"))
        tar.addfile(info, io.BytesIO(b"evil"[: info.size]))
    Store(tmp_path / "store")
    before = files(tmp_path)
    assert main(["store", "import", str(tmp_path / "bad.tar"), "--store", str(tmp_path / "store")]) == 1
    assert "no part of a record" in capsys.readouterr().err
    assert files(tmp_path) == before
    assert not Path("/tmp/escaped.json").exists() and not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_no_archive_is_one_sentence(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cut download would end in a traceback."""
    if content is not None:
        (tmp_path / "runs.tar").write_bytes(content)
    assert main(["store", "import", str(tmp_path / "runs.tar"), "--store", str(tmp_path / "store")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_cut_archive_finishes_no_run_without_its_files(tmp_path: Path) -> None:
    """A summary alone means finished: it must come after everything it stands for."""
    from experiments.lab.transfer import export_runs, import_runs

    export_runs(filled(tmp_path / "a"), tmp_path / "runs.tar")
    content = (tmp_path / "runs.tar").read_bytes()
    for cut in range(512, len(content), len(content) // 7):
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        store = Store(tmp_path / f"b{cut}")
        with contextlib.suppress(StoreError):
            import_runs(store, tmp_path / "cut.tar")
        for run_id in store.run_ids():
            loaded = load_tensors(store.folder(run_id) / "final.safetensors")
            assert not store.finished(run_id) or (loaded is not None and torch.isfinite(loaded[0]["1.weight"]).all())


def test_measurement_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """One infinite loss on a slice would fail the whole sweep, or print a number that is none."""
    store, asked = Store(tmp_path), measure("slice", points=3)
    store.write_measurement(asked, ["a", "b"], {"value": float("nan"), "details": {"train_loss": [1.0, float("inf")]}})
    found = store.measurement(asked, ["a", "b"])
    assert found is not None and found["value"] is None and found["details"] == {"train_loss": [1.0, None]}


def test_every_process_of_a_run_leaves_its_provenance(tmp_path: Path) -> None:
    """A run made by two commits, or on two machines, would look like one; its seconds would be the last one's."""
    config, store = toy_config(), Store(tmp_path)

    def attempt(stops: Callable[[], bool]) -> None:
        folder = open_run(store, config, Machine(), stops, lambda step: None)
        assert folder is not None
        try:
            folder.publish(train(config, Machine(), toy_data(config), folder))
        finally:
            folder.close()

    with pytest.raises(Interrupted):
        attempt(lambda: True)
    attempt(lambda: False)
    processes = json.loads((store.folder(config.run_id) / "provenance.json").read_text())["processes"]
    summary = store.summary(config.run_id)
    assert len(processes) == 2 and summary is not None
    assert summary["seconds"] == pytest.approx(sum(process["seconds"] for process in processes))
