"""Many processes on one store: each run is recorded once, a live owner is left alone, a stale one changes nothing."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lives
import toy_owners
from lives import HANG
from toy_store import overwrite_lease

from experiments.lab.store.check import check
from experiments.lab.store.checkpoints import load_tensors
from experiments.lab.store.leases import EXPIRY, acquire
from experiments.lab.store.records import Store

PROCESSES = 8


def trainings(told: Path) -> collections.Counter[int]:
    """How often each run was trained."""
    return collections.Counter(int(line.split()[0]) for line in told.read_text().splitlines())


def assert_recorded(root: Path, runs: int) -> None:
    """Every run is there, and all its files are of one owner."""
    store = Store(root)
    assert not check(store).damaged and len(list(store.run_ids())) == runs
    for seed in range(runs):
        run_id = toy_owners.shared_config(seed).run_id
        summary = store.summary(run_id)
        assert summary is not None and [row["pid"] for row in store.history(run_id)] == [summary["pid"]]
        for name in ("final.safetensors", "predictions.safetensors"):
            tensors = load_tensors(store.folder(run_id) / name)
            assert tensors is not None and int(tensors[0]["pid"]) == summary["pid"]
        left = {path.name for path in store.folder(run_id).iterdir() if path.name.startswith((".", "lease", "checkpoint"))}
        assert not left, left


def test_eight_processes_share_two_hundred_runs(tmp_path: Path) -> None:
    """Two would train one run, or one would be left out."""
    root, told, runs = tmp_path / "store", tmp_path / "told", 200
    shared = [lives.start(toy_owners.share, root, runs, number, told, 0.0) for number in range(PROCESSES)]
    for process in shared:
        process.join(HANG)
    assert [process.exitcode for process in shared] == [0] * PROCESSES
    done = trainings(told)
    assert_recorded(root, runs)
    workers = {line.split()[1] for line in told.read_text().splitlines()}
    print(f"{sum(done.values())} trainings of {runs} runs by {len(workers)} processes, none twice")
    assert done == dict.fromkeys(range(runs), 1) and len(workers) > 1


def stands_still(pid: int | None) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def test_machines_that_stand_still_at_any_call(tmp_path: Path) -> None:
    """An owner that wakes up after its lease went to another machine would mix its files with the other one's."""
    root, told, runs = tmp_path / "store", tmp_path / "told", 40
    shared = [lives.start(toy_owners.share, root, runs, number, told, 0.01) for number in range(PROCESSES)]
    deadline, stops, chance = time.monotonic() + HANG, 0, random.Random(0)
    while (live := [process for process in shared if process.is_alive()]) and time.monotonic() < deadline:
        time.sleep(0.1)
        still = [process for process in live if stands_still(process.pid)]
        if len(still) >= min(4, len(live)):
            stops += 1
            os.kill(chance.choice(still).pid or 0, signal.SIGCONT)
    assert [process.exitcode for process in shared] == [0] * PROCESSES
    done = trainings(told)
    assert_recorded(root, runs)
    robbed = sum(done.values()) - runs
    print(f"survived {stops} stops of a machine: {runs} runs recorded once, {robbed} of them begun by two")
    assert set(done) == set(range(runs)) and robbed > 0


def stale_lease(folder: Path, kind: str, dead: int) -> None:
    folder.mkdir()
    lease = acquire(folder)
    assert lease is not None
    if kind == "dead":
        overwrite_lease(lease.path, pid=dead)
    elif kind == "reused":
        overwrite_lease(lease.path, started="1")
    elif kind == "elsewhere":
        overwrite_lease(lease.path, machine="elsewhere", pid=1, started="1")
        long_ago = time.time() - EXPIRY - 20
        os.utime(lease.path, (long_ago, long_ago))
    elif kind == "torn":
        lease.path.write_bytes(lease.path.read_bytes()[:20])


def race(root: Path, kinds: list[str], *, locks: bool) -> collections.Counter[str]:
    """How many of eight processes got the lease of each folder, all of them asking at the same instant."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    root.mkdir()
    folders = [root / f"{number} {kind}" for number, kind in enumerate(kinds)]
    for folder, kind in zip(folders, kinds, strict=True):
        stale_lease(folder, kind, process.pid)
    barrier, wins = lives.CONTEXT.Barrier(PROCESSES), [root / f"wins{number}" for number in range(PROCESSES)]
    racing = [lives.start(toy_owners.contend, folders, n, wins[n], barrier, locks) for n in range(PROCESSES)]
    for runner in racing:
        runner.join(HANG)
    assert [runner.exitcode for runner in racing] == [0] * PROCESSES
    return collections.Counter(name for win in wins for name in json.loads(win.read_text()))


def test_a_stale_lease_has_one_heir(tmp_path: Path) -> None:
    """Two processes that find the same stale lease would both train the run; a live owner would be robbed."""
    kinds = ["dead", "reused", "elsewhere", "torn"] * 50 + ["live"] * 20
    owners = race(tmp_path / "race", kinds, locks=True)
    assert owners == {f"{number} {kind}": 1 for number, kind in enumerate(kinds) if kind != "live"}
    print("survived 200/200 races for a stale lease, 20/20 attacks on a live one")


def test_without_the_lock_the_race_is_lost(tmp_path: Path) -> None:
    """The test above could not fail."""
    assert max(race(tmp_path / "race", ["dead"] * 30, locks=False).values()) > 1
