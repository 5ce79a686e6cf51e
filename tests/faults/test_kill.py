"""A sweep killed at any instant is finished by the same command: same weights, no run lost or doubled, no orphan."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.lab.store import Store

ROOT = Path(__file__).resolve().parents[2]
RUNS = 7
"""3 to tune, 2 fresh seeds, 2 warm starts"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc"),
]


class Sweep:
    """A sweep in a process group of its own."""

    def __init__(self, store: Path, workers: int = 2, argv: list[str] | None = None) -> None:
        self.store = store
        argv = argv or ["tests/toy_study.py", str(store), str(workers)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=environment, start_new_session=True,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip

    def wait_for_training(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if any(not Store(self.store).finished(lease.parent.name) for lease in self.store.glob("runs/*/lease.json")):
                return
            time.sleep(0.02)

    def end(self) -> int:
        """Wait for the end; its exit status. Nothing of it may be left, and nobody may have seen a traceback."""
        _, error = self.process.communicate(timeout=120)
        assert "Traceback" not in error, error
        deadline = time.monotonic() + 10
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, "orphans"
        return self.process.returncode

    def members(self) -> list[int]:
        """Living processes of the group."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == self.process.pid and state != "Z":
                found.append(int(path.parent.name))
        return found


def results(root: Path) -> dict[str, Any]:
    """What a sweep leaves: every run's status, values, digests and history, and the measurements' values."""
    store, found = Store(root), {}
    for run_id in store.run_ids():
        summary = store.summary(run_id)
        assert summary is not None, f"{run_id} is not finished"
        drop = ("seconds", "commit", "hardware", "seal")
        del summary["files"]["provenance.json"]  # holds seconds
        found[run_id] = {name: value for name, value in summary.items() if name not in drop}, store.history(run_id)
        assert not list(store.folder(run_id).glob("checkpoint.*")) and not list(store.folder(run_id).glob("lease.json"))
    for path in sorted(root.rglob("measurements/*.json")):
        found[path.name] = json.loads(path.read_text())["value"]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("undisturbed")
    assert Sweep(root).end() == 0
    found = results(root)
    assert len(list(Store(root).run_ids())) == RUNS and len(found) == RUNS + 3
    return found


def test_killed_at_random_instants(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Torn checkpoints, stale leases, doubled rows; at the end two sweeps share the store."""
    chance = random.Random(1)
    for _ in range(3):
        sweep = Sweep(tmp_path)
        sweep.wait_for_training()
        time.sleep(chance.uniform(0, 0.8))
        os.killpg(sweep.process.pid, signal.SIGKILL)
        assert sweep.end() == -signal.SIGKILL
    both = [Sweep(tmp_path, workers=1), Sweep(tmp_path, workers=1)]
    assert [sweep.end() for sweep in both] == [0, 0]
    assert results(tmp_path) == undisturbed


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """An orphan would keep its lease, and train on."""
    sweep = Sweep(tmp_path)
    sweep.wait_for_training()
    assert len(sweep.members()) > 1
    sweep.process.kill()
    assert sweep.end() == -signal.SIGKILL


def test_stopped_by_signals(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """SIGTERM to the command alone, Ctrl-C to its whole group: checkpoints, the agreed exit status, and on it goes."""
    sweep = Sweep(tmp_path)
    sweep.wait_for_training()
    sweep.process.terminate()
    assert sweep.end() == 143
    sweep = Sweep(tmp_path)
    sweep.wait_for_training()
    time.sleep(0.3)
    os.killpg(sweep.process.pid, signal.SIGINT)
    assert sweep.end() == 130
    assert list(tmp_path.glob("runs/*/checkpoint.*")) and not list(tmp_path.glob("runs/*/lease.json"))
    assert Sweep(tmp_path).end() == 0
    assert results(tmp_path) == undisturbed


def test_the_command_line_stops_in_order(tmp_path: Path) -> None:
    """The same of the real command; what it leaves is a checkpoint."""
    argv = ["-m", "experiments", "run", "keskar2017", "--scale", "quick", "--seeds", "1", "--where", "batch_size=32",
            "--store", str(tmp_path), "--json"]  # fmt: skip
    sweep = Sweep(tmp_path, argv=argv)
    sweep.wait_for_training()
    time.sleep(1)
    os.killpg(sweep.process.pid, signal.SIGTERM)
    assert sweep.end() == 143
    (run_id,) = Store(tmp_path).run_ids()
    assert list(Store(tmp_path).folder(run_id).glob("checkpoint.*")) and not Store(tmp_path).finished(run_id)
