"""A sweep killed at any instant is finished by the same command: same weights, no run lost or doubled, no orphan."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lives
import pytest
from lives import HANG

from experiments.lab.store.check import check
from experiments.lab.store.records import Store

ROOT = Path(__file__).resolve().parents[2]
RUNS = 30
STOPS, WORKERS = 5, 3

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")


class Sweep:
    """The toy sweep in a process group of its own, with workers that are forked instead of spawned."""

    def __init__(self, store: Path) -> None:
        self.store, self.messages = store, store.with_suffix(".messages")
        self.messages.write_text("")
        self.process: Any = lives.start(lives.sweep, store, 2, self.messages)

    def wait(self, seconds: float) -> int | None:
        """The exit status; None while it goes on."""
        self.process.join(seconds)
        return self.process.exitcode

    def under_way(self) -> list[Path]:
        """Folders of the runs that are being trained now."""
        leases = self.store.glob("runs/*/lease.json")
        return [lease.parent for lease in leases if not (lease.parent / "summary.json").exists()]

    def wait_for_training(self) -> list[Path]:
        deadline = time.monotonic() + HANG
        while not (found := self.under_way()) and self.wait(0.005) is None and time.monotonic() < deadline:
            pass
        return found

    def kill(self) -> bool:
        """Kill the whole group; False when it had ended before."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for the end; its exit status. Nothing of it may be left, and nobody may have seen a traceback."""
        status = self.wait(HANG)
        assert status is not None, "it hangs"
        assert "Traceback" not in self.messages.read_text(), self.messages.read_text()
        deadline = time.monotonic() + HANG
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left, "orphans"
        return status

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


class Command(Sweep):
    """A sweep as a user starts it: a new interpreter, spawned workers."""

    def __init__(self, store: Path, *argv: str) -> None:
        self.store, self.messages = store, store.with_suffix(f".{random.getrandbits(32)}.messages")
        command = [sys.executable, *(argv or ("tests/toy_sweep.py", str(store), "1"))]
        with self.messages.open("w") as messages:
            self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=messages,
                                            stdout=subprocess.DEVNULL, start_new_session=True)

    def wait(self, seconds: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode


def owner(run: Path) -> int | None:
    """The process that holds a run's lease; None where there is none, or it is just being written."""
    try:
        return json.loads((run / "lease.json").read_bytes())["pid"]
    except (FileNotFoundError, ValueError):
        return None


def results(root: Path) -> dict[str, Any]:
    """What a sweep leaves: every run's status, values, digests and history, and the measurements' values."""
    store, found = Store(root), {}
    assert not check(store).damaged and not list(root.glob("runs/*/.*"))
    assert not [*root.glob("runs/*/checkpoint.*"), *root.glob("runs/*/lease.json")]
    for run_id in store.run_ids():
        summary = store.summary(run_id)
        assert summary is not None, f"{run_id} is not finished"
        drop = ("seconds", "commit", "hardware", "seal")
        summary["files"].pop("provenance.json")
        found[run_id] = {name: value for name, value in summary.items() if name not in drop}, store.history(run_id)
    for path in sorted(root.rglob("measurements/*.json")):
        found[str(path.relative_to(root))] = json.loads(path.read_text())["value"]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("undisturbed") / "store"
    assert Sweep(root).end() == 0
    found = results(root)
    assert len(list(Store(root).run_ids())) == RUNS and len(found) == RUNS + 6
    return found


@pytest.mark.parametrize("kills", [30, pytest.param(100, marks=pytest.mark.verify)])
def test_killed_at_random_instants(kills: int, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Torn checkpoints, stale leases, doubled rows, files that nobody removes."""
    chance, done, sweeps, met = random.Random(1), 0, 0, 0
    while done < kills:
        root, sweeps = tmp_path / f"store{sweeps}", sweeps + 1
        while done < kills:
            sweep = Sweep(root)
            if chance.random() < 0.7:
                sweep.wait_for_training()
            if sweep.wait(chance.uniform(0, 0.3)) is not None or not sweep.kill():
                break
            done, met = done + 1, met + bool(sweep.under_way())
        assert Sweep(root).end() == 0
        assert results(root) == undisturbed
    print(f"survived {done}/{kills} kills in {sweeps} sweeps of {RUNS} runs; {met} of them met a run in training")
    assert met > kills / 4


def test_killed_and_finished_by_two_commands_at_once(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Spawned workers would behave in another way; two sweeps on one store would do runs twice."""
    root = tmp_path / "store"
    sweep = Command(root)
    sweep.wait_for_training()
    time.sleep(0.5)
    assert sweep.kill()
    both = [Command(root), Command(root)]
    assert [sweep.end() for sweep in both] == [0, 0]
    assert results(root) == undisturbed


def test_a_killed_worker_costs_one_run(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The system kills a process when memory runs out: its siblings must go on, the user be told, the next call mend it."""
    chance = random.Random(2)
    for number in range(WORKERS):
        root = tmp_path / f"store{number}"
        sweep = Sweep(root)
        while True:
            time.sleep(chance.uniform(0, 0.05))
            victim = chance.choice(sweep.wait_for_training())
            if (pid := owner(victim)) is None:
                continue
            os.kill(pid, signal.SIGSTOP)
            if owner(victim) == pid and not (victim / "summary.json").exists():
                os.kill(pid, signal.SIGKILL)
                break
            os.kill(pid, signal.SIGCONT)
        assert sweep.end() == 1
        message = sweep.messages.read_text()
        assert message.count("process died (exit code -9; out of memory") == 1 and message.strip().count("\n") == 0, message
        assert [path for path in root.glob("runs/*") if not (path / "summary.json").exists()] == [victim]
        assert Sweep(root).end() == 0 and results(root) == undisturbed
    print(f"survived {WORKERS}/{WORKERS} workers killed")


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """An orphan would keep its lease, and train on."""
    sweep = Sweep(tmp_path / "store")
    sweep.wait_for_training()
    assert len(sweep.members()) > 1
    os.kill(sweep.process.pid, signal.SIGKILL)
    assert sweep.end() == -signal.SIGKILL


@pytest.mark.parametrize(("number", "status", "whole_group"), [(signal.SIGTERM, 143, False), (signal.SIGINT, 130, True)])
def test_stopped_by_signals(number: int, status: int, whole_group: bool, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """SIGTERM to the command alone, Ctrl-C to its whole group: checkpoints, the agreed exit status, and on it goes."""
    chance, left, stops, stores = random.Random(3), 0, 0, 0
    while stops < STOPS:
        root, stores = tmp_path / f"store{stores}", stores + 1
        while stops < STOPS:
            sweep = Sweep(root)
            sweep.wait_for_training()
            time.sleep(chance.uniform(0, 0.1))
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(sweep.process.pid, number)
            if (ended := sweep.end()) == 0:  # it was faster
                break
            assert ended == status and not list(root.glob("runs/*/lease.json"))
            left, stops = left + len(list(root.glob("runs/*/checkpoint.*"))), stops + 1
        assert Sweep(root).end() == 0 and results(root) == undisturbed
    assert left
    print(f"survived {stops}/{stops} stops")


def test_the_command_line_stops_in_order(tmp_path: Path) -> None:
    """The same of the real command; what it leaves is a checkpoint."""
    root = tmp_path / "store"
    sweep = Command(root, "-m", "experiments", "run", "keskar2017", "--scale", "quick", "--seeds", "1", "--where",
                    "batch_size=32", "--store", str(root), "--json")
    sweep.wait_for_training()
    time.sleep(1)
    os.killpg(sweep.process.pid, signal.SIGTERM)
    assert sweep.end() == 143
    (run_id,) = Store(root).run_ids()
    assert list(Store(root).folder(run_id).glob("checkpoint.*")) and not Store(root).finished(run_id)
