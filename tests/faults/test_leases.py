"""Who may compute and record a run: leases, publication, provenance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_runs import run, toy_config, toy_data
from toy_store import files, finish, overwrite_lease, start

from experiments.lab.declare.config import Machine
from experiments.lab.store import leases
from experiments.lab.store.checkpoints import load_checkpoint
from experiments.lab.store.leases import EXPIRY, acquire, is_live
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import Interrupted, LeaseLost, RunFolder, open_run
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.tasks import Finished, Train
from experiments.lab.sweep.worker import run_task
from experiments.lab.training.loop import train


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
    code = f"from pathlib import Path; from experiments.lab.store.leases import acquire; acquire(Path({str(tmp_path)!r}))"
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


@pytest.mark.parametrize("content", [b"", b'{"token": "a', b"[]", b'{"token": "a", "machine": "b", "pid": -1, "started": "1"}'])
def test_a_damaged_lease_is_nobodys(content: bytes, tmp_path: Path) -> None:
    """A process killed while it wrote its lease would lock its run for ever, or end the next one with a traceback."""
    (tmp_path / "lease.json").write_bytes(content)
    lease = acquire(tmp_path)
    assert lease is not None and lease.held()


def test_a_lease_that_cannot_be_read_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk would look like a lease that is not there."""
    first = acquire(tmp_path)
    assert first is not None
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        acquire(tmp_path)
    monkeypatch.undo()
    assert first.held()


def test_nobody_takes_a_lease_while_its_owner_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale owner that wakes up in the middle of publishing would mix its files with its successor's."""
    monkeypatch.setattr(leases, "LOCK_SECONDS", 0.05)
    lease = acquire(tmp_path)
    assert lease is not None
    overwrite_lease(lease.path, machine="elsewhere")
    os.utime(lease.path, (0, 0))
    with lease.keep() as held:
        assert held and acquire(tmp_path) is None
    assert acquire(tmp_path) is not None
    with lease.keep() as held:
        assert not held


@pytest.mark.parametrize(("age", "taken"), [(EXPIRY - 20, False), (EXPIRY + 20, True)])
def test_another_users_process_is_judged_by_its_touches(
    age: float, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system hides others' processes, a live owner would look dead."""
    lease = acquire(tmp_path)
    assert lease is not None
    os.utime(lease.path, (time.time() - age, time.time() - age))
    monkeypatch.setattr(leases, "_started", lambda pid: leases.HIDDEN)
    assert is_live(lease.path) != taken


def test_the_clock_of_the_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is ahead would rob every other one."""
    lease = acquire(tmp_path)
    assert lease is not None
    overwrite_lease(lease.path, machine="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert is_live(lease.path)


def test_a_long_evaluation_keeps_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Touches between updates alone would lose the run to another machine."""
    monkeypatch.setattr(leases, "TOUCH", 0.01)
    folder = start(Store(tmp_path), toy_config())
    os.utime(folder.lease.path, (0, 0))
    while folder.lease.path.stat().st_mtime == 0:  # for ever, without the touch
        time.sleep(0.01)
    folder.close()


def test_what_a_kill_after_publication_left_is_removed(tmp_path: Path) -> None:
    """Checkpoints of a finished run would stay for ever, because nobody works on it again."""
    path = finish(Store(tmp_path), toy_config())
    recorded = files(path)
    (path / "checkpoint.0.safetensors").write_bytes(b"large")
    lease = acquire(path)
    assert lease is not None
    leases.clear_record(path)
    assert files(path).keys() > recorded.keys()  # its owner lives and will do that
    overwrite_lease(lease.path, started="1")
    leases.clear_record(path)
    assert files(path) == recorded


def test_only_the_owner_keeps_a_lease_warm(tmp_path: Path) -> None:
    """A loser would keep its successor's lease alive after that one died."""
    loser = acquire(tmp_path)
    assert loser is not None
    overwrite_lease(loser.path, token="another")
    os.utime(loser.path, (0, 0))
    loser.touch()
    assert loser.path.stat().st_mtime == 0


def rob(folder: RunFolder) -> None:
    """Another machine takes the run over."""
    overwrite_lease(folder.lease.path, token="another", machine="elsewhere")


def test_a_stale_owner_changes_nothing(tmp_path: Path) -> None:
    """Its weights would lie under the summary of another machine's run."""
    store, config = Store(tmp_path), toy_config()
    folder = start(store, config)
    outcome = train(config, Machine(), toy_data(config), folder)
    rob(folder)
    before = files(folder.path)
    assert not folder.publish(outcome)
    folder.close()
    assert files(folder.path) == before and not store.finished(config.run_id)
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
    folder.close()
    assert load_checkpoint(folder.path) is None and not folder.history.exists()


def test_two_publishers_leave_one_summary(tmp_path: Path) -> None:
    """A run would be recorded twice."""
    store, config = Store(tmp_path), toy_config()
    path = finish(store, config)
    recorded = files(path)
    lease = acquire(path)
    assert lease is not None
    late = RunFolder(store, config, Machine(), lease, lambda: False, lambda step: None)
    outcome, _ = run(config)
    late.row({"kind": "late"})
    assert not late.publish(outcome)
    late.close()
    assert files(path) == recorded


def test_a_finished_run_is_not_touched_again(tmp_path: Path) -> None:
    """A second sweep would overwrite the record it finds, provenance included."""
    store, config = Store(tmp_path), toy_config(dataset="fashion-mini", n_train=40)
    assert run_task(Train(config), store, Machine(), Stopper(), None) == Finished()
    recorded = files(tmp_path)
    assert run_task(Train(config), store, Machine(), Stopper(), None) == Finished()
    assert files(tmp_path) == recorded
    assert not [name for name in recorded if "checkpoint" in name or ".tmp" in name or "lease" in name]


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
