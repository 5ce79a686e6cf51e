"""A visit keeps its times and leaves readable results however it ends, and its checks can fail. No GPU is needed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu import checks, parts, visit
from synthetic import Truth, write

from analysis import publish
from analysis.load import from_store
from experiments.keskar2017 import STUDY
from experiments.lab.declare.study import Request
from experiments.lab.store.records import Store
from experiments.lab.store.transfer import import_runs
from experiments.lab.sweep.plan import find_study

ENDLESS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
MACHINE = {"hardware": "a machine", "torch": "2.13", "cuda available": False}
WORK: dict[str, Any] = {
    "machine": MACHINE,
    "correctness": {"checks": [{"name": "a", "status": "failed", "sentence": "off by 1", "numbers": {}}], "not run": ["b"]},
    "speed": {"small batches": {"bfloat16": {"eager": 0.5, "fused 2 / eager": 2.0}}, "large batch": {"error": "E: no"}},
    "study": {"batch sizes": {"10": {"finished": 1, "declared": 2, "measured": 0, "runs": [{"test_accuracy": 70.0}]}},
              "failures": [], "verdicts": [{"verdict": None, "sentence": "worse", "decided_by": "1 of 2 values are missing"}]},
}


def script(part: str, out: Path, then: str = "") -> str:
    return f"import json; open({str(out / (part + '.json'))!r}, 'w').write(json.dumps({WORK[part]!r}))\n{then}"


@pytest.fixture
def a_visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> visit.Visit:
    """A visit whose parts write at once and end."""
    monkeypatch.setattr(visit, "GRACE", 0.2)
    monkeypatch.setattr(visit, "WORTH", 0.1)
    monkeypatch.setattr(visit.Visit, "command", lambda self, part: [sys.executable, "-c", script(part, tmp_path)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return visit.Visit(argparse.Namespace(out=tmp_path, store=tmp_path, minutes=7.0, device="cuda", rehearsal=False, data=None,
                                          records=None))


def test_a_part_that_hangs_takes_no_other_with_it(
    a_visit: visit.Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A driver that never answers would cost the whole visit, and what was found before."""
    monkeypatch.setattr(visit, "BOXES", {"machine": 20.0, "correctness": 0.6, "speed": 20.0})
    monkeypatch.setattr(
        visit.Visit, "command",
        lambda self, part: [sys.executable, "-c", script(part, tmp_path, ENDLESS if part == "correctness" else "")],
    )
    assert a_visit.run() == 1
    found = json.loads((tmp_path / "summary.json").read_text())
    states = {part: facts["status"] for part, facts in found["parts"].items()}
    assert states == {"machine": "ok", "correctness": "timed out", "speed": "ok", "study": "ok"}
    assert found["rehearsal"].startswith("rehearsal on CPU")
    text = capsys.readouterr().out
    for told in ("REHEARSAL ON CPU", "1 failed, 1 not run", "off by 1", "2x", "E: no", "B 10: 1 of 2 seeds", "NO VERDICT"):
        assert told in text


def test_exit_status_is_0_only_if_everything_ended_well(a_visit: visit.Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert a_visit.run() == 0
    monkeypatch.setattr(visit.Visit, "command", lambda self, part: [sys.executable, "-c", "raise SystemExit(1)"])
    assert visit.Visit(a_visit.chosen).run() == 1


def test_no_time_left_is_said(a_visit: visit.Visit) -> None:
    """A part with a second left would be started for nothing."""
    a_visit.part("study", 0.05)
    assert a_visit.summary["parts"]["study"] == {"status": "skipped", "sentence": "no time was left"}


def test_killed_at_once_it_leaves_what_was_written_and_no_process(tmp_path: Path) -> None:
    """After kill -9 a part would keep the GPU (this test would never end), and a summary would be cut in the middle."""
    words = [sys.executable, visit.HERE / "visit.py", "--out", tmp_path, "--device", "cpu"]
    began = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (log := tmp_path / "visit.log").exists() or "machine" not in log.read_text():
        time.sleep(0.05)
    children = Path(f"/proc/{began.pid}/task/{began.pid}/children")
    while not (own := children.read_text().split()):
        time.sleep(0.05)
    os.kill(began.pid, signal.SIGKILL)
    began.wait()
    assert json.loads((tmp_path / "summary.json").read_text())["parts"]["machine"]["status"] == "running"
    while any(alive(int(child)) for child in own):
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("words, told", [
    (["--minutes", "0"], "must be from 0.5"), (["--data", "/nowhere"], "/nowhere does not exist"),
    (["--records", "/none.tar"], "there is no archive /none.tar"),
])
def test_a_visit_that_cannot_begin_says_why(words: list[str], told: str, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    assert visit.main(["--out", str(tmp_path), *words]) == 2
    assert told in capsys.readouterr().err


def test_without_its_packages_it_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    """An error minutes later, on a machine that is paid for."""
    monkeypatch.setattr(visit, "NEEDED", ("numpy", "no_such_package"))
    assert visit.main(["--out", str(tmp_path)]) == 2
    assert "no_such_package is not installed here; nothing was run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["products of C1", "measurements", "CUDA graphs", "bfloat16", "recorded updates", "two places"])
def test_a_check_passes_on_the_cpu(name: str) -> None:
    """It would cry wolf on a GPU. The others take long, and the engine's own tests make them."""
    found = checks.run(name, "cpu")
    assert found.status == ("skipped" if name == "CUDA graphs" else "passed"), found.sentence


def test_the_page_lists_the_checks() -> None:
    """A check that nobody knows of, or one that is gone."""
    rows = re.findall(r"^\| ([^|]+) \|", (visit.ROOT / "docs" / "gpu.md").read_text(), re.MULTILINE)
    assert rows[rows.index("check") + 1 :] == list(checks.CHECKS)
    assert {*visit.PARTS} <= {*rows}


def test_a_wrong_product_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that cannot fail: TF32 keeps ten bits."""

    def short(op: Any, oracle: Any, count: int) -> float:
        v = np.random.default_rng(0).standard_normal(oracle.shape[0])
        rounded = torch.from_numpy(v).to(torch.bfloat16).double().numpy()
        return checks.relative(op @ rounded, oracle @ v)

    monkeypatch.setattr(checks, "products", short)
    found = checks.run("curvature products", "cpu")
    assert found.status == "failed" and "allowed is at most 1e-04" in found.sentence


@pytest.mark.parametrize("numbers, status", [
    ({"a": 0.0}, "failed"), ({"a": 0.05}, "passed"), ({"a": 0.05, "b": 0.2}, "failed"), ({"a": 0.05, "b": np.nan}, "failed"),
])
def test_a_difference_must_lie_in_its_band(numbers: dict[str, float], status: str) -> None:
    """NaN would pass, and so would bfloat16 that was never switched on."""
    assert checks.Compared("x", numbers, 0.1, least=1e-4).found("x").status == status


def test_an_error_is_a_failure_of_its_check_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.CHECKS, "two places", lambda device: 1 / 0)
    assert checks.run("two places", "cpu").sentence == "ZeroDivisionError: division by zero"


def test_bits_that_differ_are_counted() -> None:
    first = {"w": torch.zeros(4)}
    assert checks.differing(first, {"w": torch.tensor([0.0, 0.0, 0.0, 1e-30])}) == 0.25
    assert checks.differing(first, {"w": torch.zeros(3)}) == 1.0


def test_rounds_compare_both_batch_sizes_from_the_start() -> None:
    """Time that runs out would leave all seeds of one batch size, and no comparison."""
    runs = STUDY.stages[0].runs_of(Request("gpu"), ())
    found = parts.rounds(runs, parts.TOGETHER)
    told = [({c.batch_size for c in group}, [c.seed for c in group]) for group in found]
    assert told == [({256}, [0, 1, 2]), ({5000}, [0, 1, 2]), ({256}, [3, 4, 5]), ({5000}, [3, 4, 5])]
    assert [c for group in parts.rounds(runs[:6], 4) for c in group] == sorted(runs[:6], key=lambda c: c.batch_size)


def test_unfinished_seeds_leave_records_and_no_verdict(tmp_path: Path) -> None:
    """What a visit had time for would be lost, or 3 of 6 seeds would be a verdict."""
    study, request = find_study("keskar2017"), Request("gpu")
    first = Truth(status=lambda config: "done" if config.seed < 3 else None)
    store = write(tmp_path / "store", study, first, "gpu")
    job = parts.Job(tmp_path, store.root, "cuda", False, None, None)
    exported = parts.export(job, study, request, store)
    assert exported is not None and exported["runs"] == 6 and exported["with weights"] == 0
    elsewhere = Store(tmp_path / "elsewhere")
    assert import_runs(elsewhere, tmp_path / "runs.tar") == 6
    cells = parts.progress(study, request, elsewhere)["batch sizes"]
    assert {size: (c["finished"], c["measured"], c["declared"]) for size, c in cells.items()} == {
        "256": (3, 3, 6), "5000": (3, 3, 6)
    }
    found = parts.answers(study, elsewhere)["verdicts"]
    assert all(verdict["verdict"] is None for verdict in found)
    assert {verdict["decided_by"].partition(" ")[0] for verdict in found} == {"6"}


def test_scale_gpu_is_published_from_imported_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A visit whose results no page can show."""
    monkeypatch.setattr("analysis.publish.draw_all", lambda *_: [])
    study = find_study("keskar2017")
    job = parts.Job(tmp_path, tmp_path / "store", "cuda", False, None, None)
    truth = Truth(extra={"device": "cuda", "hardware": "A GPU of 80 GB"})
    parts.export(job, study, Request("gpu"), write(tmp_path / "store", study, truth, "gpu"))
    elsewhere = Store(tmp_path / "elsewhere")
    import_runs(elsewhere, tmp_path / "runs.tar")
    (tmp_path / "README.md").write_text("<!-- begin:board --><!-- end:board -->")
    publish.write(from_store(study, "gpu", elsewhere), tmp_path / "figures", tmp_path / "README.md")
    page = (tmp_path / "figures" / "keskar2017" / "gpu" / "README.md").read_text()
    assert "12 runs" in page and "on A GPU of 80 GB" in page and "C1, matched training loss: batch size 5000" in page
    assert "keskar2017/gpu/README.md" in (tmp_path / "figures" / "README.md").read_text()


def test_a_rehearsal_is_marked_everywhere(tmp_path: Path) -> None:
    """Numbers of a laptop would pass for a GPU's."""
    job = parts.Job(tmp_path, tmp_path, "cpu", True, None, None)
    job.write("study", {})
    assert "no results" in json.loads((tmp_path / "study.json").read_text())["rehearsal"]
    assert dataclasses.replace(job, rehearsal=False).mark is None
