"""A sweep whose runs train as one program: a killed worker costs time, not the program, its checkpoints or its rounding."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.lab.store.records import Store

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs process ids as Linux has them")


def start(store: Path, fused: int | None) -> subprocess.Popen[str]:
    argv = ["tests/toy_study.py", str(store), "1", *([] if fused is None else [str(fused)])]
    return subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(sweep: subprocess.Popen[str]) -> tuple[int, str]:
    out, error = sweep.communicate()
    assert "Traceback" not in error, error
    return sweep.returncode, out


def results(root: Path) -> dict[str, Any]:
    store = Store(root)
    found = {}
    for run_id in store.run_ids():
        summary = store.summary(run_id)
        assert summary is not None, f"{run_id} is not finished"
        digests = {name: sha for name, sha in summary["files"].items() if name != "provenance.json"}
        found[run_id] = (digests, summary["test_loss"], summary["steps"])
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("fused")
    assert end(start(root, 8))[0] == 0
    return results(root)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a sweep whose worker was killed while it trained a group."""
    root = tmp_path_factory.mktemp("killed")
    sweep = start(root, 8)
    while not (found := [p for p in root.glob("runs/*/checkpoint.1.safetensors") if (p.parent / "plan.json").exists()]):
        assert sweep.poll() is None
        time.sleep(0.01)
    owner = json.loads((found[0].parent / "lease.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)
    status, said = end(sweep)
    assert status == 1 and "worker process died" in said
    return root


@pytest.mark.parametrize("again", [8, None], ids=["fused", "plain"])
def test_a_killed_worker_costs_no_program(again: int | None, undisturbed: dict[str, Any], killed: Path, tmp_path: Path) -> None:
    """Its members would begin anew, each alone, with another rounding; also where the next call does not ask for fusing."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    begun = [p.parent.name for p in tmp_path.glob("runs/*/checkpoint.*")]
    assert begun and end(start(tmp_path, again))[0] == 0
    store = Store(tmp_path)
    for run_id in set(begun):
        processes = json.loads((store.folder(run_id) / "provenance.json").read_text())["processes"]
        assert len({process["members"] for process in processes}) == 1
        assert len(processes) == 2, "it began anew"
    if again is not None:
        assert results(tmp_path) == undisturbed
    else:
        ours = results(tmp_path)
        assert all(ours[run_id] == undisturbed[run_id] for run_id in set(begun))
