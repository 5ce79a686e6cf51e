"""What a user sees of a study: names that tell runs apart, how long it will take, what is under way, what a command says last."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import toy_study
from threads import Threads
from toy_runs import toy_config, toy_data, toy_images
from toy_store import finish, overwrite_lease, start, stopped_twice

from experiments.__main__ import main
from experiments.lab import datasets
from experiments.lab.declare.config import Machine, Norm, Optimizer, RunConfig
from experiments.lab.declare.study import Request, Scale, Stage, Study
from experiments.lab.store import leases as lease
from experiments.lab.store.files import to_json, write_atomic
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import open_run
from experiments.lab.store.underway import begun, look, note_failure
from experiments.lab.sweep import commands as command
from experiments.lab.sweep import launch, progress
from experiments.lab.sweep.launch import run_study
from experiments.lab.sweep.progress import LATER, Sweep, Training, names_among
from experiments.lab.sweep.tasks import Failed, Finished, MeasurePair
from experiments.lab.training import data
from experiments.lab.training.loop import train

ROOT = Path(__file__).resolve().parents[2]

# --- names


@pytest.mark.parametrize("change", [
    {"lr": 0.2}, {"optimizer": Optimizer.ADAM}, {"norm": Norm.BATCH}, {"steps": 9},
    {"budget": "epochs", "steps": None, "epochs": 3},
    {"momentum": 0.9}, {"augment": "crop-flip"}, {"seed": 4}, {"parent": "ab" * 10}, {"lr": 0.05000001}, {"dropout": False},
])
def test_runs_that_differ_have_other_names(change: dict[str, Any]) -> None:
    """A failure would name several runs, and nobody could tell which one."""
    runs = [toy_config(), toy_config().replace(**change)]
    one, other = map(names_among(runs).of, runs)
    assert one != other and "width" not in one and "mlp" not in one


def test_names_are_short() -> None:
    """A line per worker that nobody can read."""
    parents = [toy_config(lr=0.1 * 2 ** (k / 3), seed=k % 2, batch_size=8 * (k + 1), parent=f"{k}" * 20) for k in range(4)]
    assert [*map(names_among(parents).of, parents)] == ["B 8 lr 0.1 seed 0", "B 16 lr 0.126 seed 1", "B 24 lr 0.159 seed 0",
                                                        "B 32 lr 0.2 seed 1"]
    assert names_among(parents).of(*parents[::2]) == "seed 0"
    assert names_among(parents[:1]).of(parents[0]) == "mlp B 8 lr 0.1 seed 0"


# --- how long


def test_an_eta_says_what_it_is_made_of() -> None:
    """A bound would look like a count, a guess like a measurement, and an idle worker like a busy one."""
    fast, slow = ("train", "fast"), ("train", "slow")
    sweep = Sweep(6, 2, pending=Counter({fast: 3, slow: 1, LATER: 2}))
    assert sweep.left(0) == "ETA unknown yet" and sweep.count() == "0 of at most 6"
    sweep.measured(fast, 10)
    sweep.finish(fast)
    assert sweep.left(0) == "ETA at most about 0 min 25 s"
    sweep.pending[LATER] = 0
    assert sweep.left(0) == "ETA about 0 min 15 s" and sweep.count() == "1 of 6"
    sweep.measured(slow, 100)
    sweep.finish(slow, failed=True)
    assert sweep.left(0) == "ETA 0 min 10 s" and sweep.count() == "1 of 6" and sweep.failed == 1
    sweep.finish(fast)
    assert sweep.left(4) == "ETA 0 min 06 s"  # one task keeps one worker busy, not two


def test_measuring_says_nothing_about_training() -> None:
    """A second of measuring would promise that hours of training end at once."""
    sweep = Sweep(2, 1, pending=Counter({("train", "a"): 1, ("measure", "a"): 1}))
    sweep.measured(("measure", "b"), 1)
    sweep.measured(("train", "b"), 50)
    assert sweep.eta() == 51


class Answering(Threads):
    """They record every run at once."""

    failing: tuple[RunConfig, ...] = ()

    def answer(self, pipe: Connection) -> None:
        store = Store(self.root)
        while (task := pipe.recv()) is not None:
            if isinstance(task, MeasurePair):
                store.write_measurement(task.measure, task.run_ids, {"value": 1.0})
            elif task.config in self.failing:
                store.folder(task.config.run_id).mkdir(exist_ok=True)
                pipe.send(Failed("no memory"))
                continue
            else:
                store.folder(task.config.run_id).mkdir(exist_ok=True)
                summary = {"status": "done", "validation_accuracy": 100 * task.config.lr}
                write_atomic(store.folder(task.config.run_id) / "summary.json", to_json(summary))
                for measure in task.measures:
                    store.write_measurement(measure, [task.config.run_id], {"value": 1.0})
            pipe.send(Finished())


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained; every look at progress is shown."""
    monkeypatch.setattr(launch, "Workers", Answering)
    monkeypatch.setattr(launch, "check_data", lambda *given: {})
    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1.0)


def toy(store: Store, **options: Any) -> Any:
    return run_study(toy_study.STUDY, Request("quick"), store, Machine(), workers=1, **options)


def test_a_study_is_counted_as_a_whole(answering: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each stage would begin at nought again, and nobody know whether an hour or a night is left."""
    assert toy(Store(tmp_path)).complete
    lines = capsys.readouterr().err.splitlines()
    head = re.compile(r"toy quick: (\d+) of (at most )?7 runs, .* ETA (.*?);")
    heads = [found.groups() for line in lines if (found := head.match(line))]
    counts = [int(count) for count, _, _ in heads]
    assert counts == sorted(counts) and set(counts) == set(range(1, 8)) | {counts[0]}
    assert {int(count) for count, bound, _ in heads if bound} == set(range(counts[0], 6))
    assert {int(count) for count, bound, _ in heads if not bound} == {6, 7}  # the last stage is known after five
    assert all(eta.startswith("at most") or eta == "unknown yet" for _, bound, eta in heads if bound)
    assert any("pairs of runs: 1 of 1" in line for line in lines)
    assert any("; stage tune: 1 of 3, ETA" in line for line in lines)


def test_a_second_call_says_that_it_resumes(answering: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would look as if everything were computed anew."""
    store = Store(tmp_path)
    toy(store, where=["lr=0.01"])
    assert "already" not in capsys.readouterr().err
    left = toy_study.BASE.replace(lr=0.02, seed=1000)
    store.folder(left.run_id).mkdir()
    shutil.copy(stopped_twice(Store(tmp_path / "other"), toy_config()) / "checkpoint.1.safetensors", store.folder(left.run_id))
    toy(store)
    said = [line for line in capsys.readouterr().err.splitlines() if "already" in line]
    assert said == ["1 of at most 7 runs is in the store already; 1 goes on from its checkpoint (step 6 of 250)"]
    toy(store)
    assert capsys.readouterr().err == "7 of 7 runs are in the store already\n"
    toy(store, quiet=True)
    assert capsys.readouterr().err == ""


def test_a_failure_names_its_run(answering: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs of one model, batch size and seed: any of them might be meant."""
    failing = toy_study.BASE.replace(lr=0.02, seed=1000)
    monkeypatch.setattr(Answering, "failing", (failing,))
    result = toy(Store(tmp_path))
    assert result.failures[0] == f"lr 0.02 ({failing.run_id[:8]}): no memory"
    found = look(Store(tmp_path), failing.run_id)
    assert found is not None and (found.state, found.failure) == ("failed", "no memory")


# --- what is under way


RUNS = [toy_config(seed=seed) for seed in range(6)]


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """One run in each state, in the order of `RUNS`: done, here, elsewhere, interrupted, failed, waiting."""
    store = Store(tmp_path)
    study = Study("toy", "Toy", "none", (Scale("quick", "toy", ""),), (Stage("train", lambda request, records: RUNS),), ())
    monkeypatch.setattr(command, "find_study", lambda *given: study)
    finish(store, RUNS[0])
    for config in RUNS[1:3]:
        start(store, config).end_warmth()
    overwrite_lease(store.folder(RUNS[2].run_id) / "lease.json", machine="elsewhere", pid=1, started="1")
    stopped_twice(store, RUNS[3])
    folder = start(store, RUNS[4])
    folder.close()
    note_failure(store, RUNS[4].run_id, "no memory")
    return store


def status(store: Store, *more: str) -> int:
    return main(["status", "toy", "--scale", "quick", "--store", str(store.root), *more])


def test_status_shows_what_is_under_way(mixed: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A user could not tell whether anybody is at work, or what a night left undone."""
    assert status(mixed, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    (stage,) = document["stages"]
    assert stage["counts"] == {"done": 1, "missing": 5} and (stage["known"], stage["at_most"]) == (True, 6)
    assert stage["states"] == {"done": 1, "running": 2, "interrupted": 1, "failed": 1, "waiting": 1}
    here, elsewhere = document["running"]
    assert (here["machine"], here["pid"], here["name"], here["step"]) == ("this", os.getpid(), "seed 1", None) and here["since"]
    assert (elsewhere["machine"], elsewhere["pid"]) == ("another", None)
    assert [(run["run_id"], run["step"], run["of_steps"]) for run in document["interrupted"]] == [(RUNS[3].run_id, 6, 8)]
    assert [run["failure"] for run in document["failed"]] == ["no memory"]
    assert [run["run_id"] for run in document["waiting"]] == [RUNS[5].run_id]

    assert status(mixed) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("stage"))
    assert lines[at].split() == ["stage", "runs", "done", "running", "interrupted", "failed", "waiting"]
    assert lines[at + 1].split() == ["train", "6", "1", "2", "1", "1", "1"]
    said = ("this machine", "another machine", "checkpoint at step 6 of 8", "no memory", "")
    for config, words in zip(RUNS[1:], said, strict=True):
        (line,) = [line for line in lines if line.startswith(f"  {config.run_id[:8]}")]
        assert f"seed {config.seed}" in line and words in line


def test_plan_marks_what_is_under_way(mixed: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is being computed would look as if nobody had begun it."""
    assert main(["plan", "toy", "--scale", "quick", "--store", str(mixed.root), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["stages"][0]["runs"]
    assert [run["state"] for run in runs] == ["done", "running", "running", "interrupted", "failed", "missing"]


def test_a_new_attempt_forgets_the_old_failure(mixed: Store) -> None:
    """A run that goes on well would be called failed for ever."""
    folder = start(mixed, RUNS[4])
    folder.load()
    folder.close()
    found = look(mixed, RUNS[4].run_id)
    assert found is not None and found.state == "waiting"


def test_only_folders_that_exist_are_looked_at(mixed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A status of 100,000 runs would ask the disk a million times."""
    asked: list[Path] = []
    monkeypatch.setattr("experiments.lab.store.underway.holder", lambda path: asked.append(path))
    begun(mixed, [toy_config(seed=seed).run_id for seed in range(100)])
    assert len(asked) == len(RUNS) - 1


def test_what_ends_while_status_reads(mixed: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is recorded, or a folder that is moved, between two looks: a traceback, or a run in two states."""

    def first_done(path: Path) -> None:
        write_atomic(path.parent / "summary.json", to_json({"status": "done"}))

    monkeypatch.setattr("experiments.lab.store.underway.holder", first_done)
    assert status(mixed, "--json") == 1
    assert json.loads(capsys.readouterr().out)["stages"][0]["states"] == {"done": 5, "waiting": 1}
    (mixed.folder(RUNS[3].run_id) / "summary.json").unlink()
    monkeypatch.setattr("experiments.lab.store.underway.holder", lambda path: shutil.rmtree(path.parent))
    assert status(mixed, "--json") == 1
    assert json.loads(capsys.readouterr().out)["stages"][0]["states"] == {"done": 4, "waiting": 2}


@pytest.mark.parametrize("content", [b"", b"\xff" * 9, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}"])
def test_a_damaged_checkpoint_says_no_step(mixed: Store, content: bytes) -> None:
    """A traceback, or gigabytes read for a length that is none."""
    for path in mixed.folder(RUNS[3].run_id).glob("checkpoint.*"):
        path.write_bytes(content)
    found = look(mixed, RUNS[3].run_id)
    assert found is not None and (found.state, found.step) == ("waiting", None)


def test_a_store_that_may_only_be_read(mixed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at another one's store would need leave to write there."""

    def refused(folder: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lease, "_now", refused)
    found = look(mixed, RUNS[2].run_id)
    assert found is not None and (found.state, found.here) == ("running", False)


# --- what a command says


TRAIN = ["train", "--budget", "steps", "--steps", "12", "--lr", "0.1", "--batch-size", "10", "--width", "4", "--depth", "1",
         "--n-train", "60"]


def test_train_shows_its_loss_and_says_first_what_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of silence, then accuracy somewhere in an alphabet."""
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    for module in (datasets, data):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images())
    argv = [*TRAIN, "--store", str(tmp_path)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^step 6 of 12: epoch 1, training loss \d\S+, test loss \d\S+, test accuracy \d\S+%; ", err), err
    assert [line.split("  ")[0] for line in out.splitlines()[:4]] == ["status", "test accuracy", "test loss", "training loss"]
    (run_id,) = Store(tmp_path).run_ids()
    first = out.partition("\n\n")[0]
    assert all(word in first for word in ("generalization gap", "steps", "epochs", "time", str(tmp_path / "runs" / run_id)))
    summary = Store(tmp_path).summary(run_id)
    assert summary is not None and f"{summary['test_accuracy']:.6g}%" in first and "distance_from_start" not in first
    assert main(argv) == 0
    again, err = capsys.readouterr()
    assert again == out and err == f"run {run_id} is finished already: this is its record\n"
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == summary and err == ""


def test_a_run_without_a_row_shows_its_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The history of a run shorter than an epoch is empty: a user would see nothing of it."""
    config = toy_config(steps=3)
    with Training(config, 72) as watch:
        folder = open_run(Store(tmp_path), config, Machine(), lambda: False, lambda step: None, watch)
        assert folder is not None
        train(config, Machine(), toy_data(config), folder)
        folder.close()
    assert re.match(r"step 3 of 3: epoch 0\.667, training loss \d", capsys.readouterr().err)


def test_train_says_where_it_goes_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A user would not know that an hour is not lost."""
    store, config = Store(tmp_path), toy_config()
    stopped_twice(store, config)
    with Training(config, 72) as watch:
        folder = open_run(store, config, Machine(), lambda: False, lambda step: None, watch)
        assert folder is not None
        train(config, Machine(), toy_data(config), folder)
        folder.close()
    assert capsys.readouterr().err.startswith("goes on from its checkpoint at step 6 of 8\n")


def test_long_training_writes_few_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of a night with a line per update; or none at all until the first epoch ends."""
    now = [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Training(toy_config(steps=36000), 960)
    for step in range(1, 36001):
        now[0] += 1
        watch({"kind": "step", "step": step, "recent_loss": lambda: None})
        if step % 60 == 0:
            watch({"kind": "train", "step": step, "epoch": step / 60, "loss": 0.5})
            watch({"kind": "eval", "step": step, "epoch": step / 60, "test_loss": 0.6, "test_accuracy": 80.0})
    lines = capsys.readouterr().err.splitlines()
    assert 36000 / 60 <= len(lines) <= 36000 / 40 and lines[0].startswith("step 4 of 36,000: epoch 0.0667; ")
    assert ", training loss 0.5, test loss 0.6, test accuracy 80% (at epoch 599); 9 h 59 min" in lines[-1]


def test_run_ends_with_what_comes_next(answering: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who does not know the other command line would stand there with a store."""
    monkeypatch.setattr(command, "find_study", lambda *given: toy_study.STUDY)
    argv = ["run", "toy", "--scale", "quick", "--workers", "1", "--store", str(tmp_path / "a store")]
    monkeypatch.setattr(Answering, "failing", (toy_study.BASE.replace(lr=0.02, seed=1000),))
    assert main(argv) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "toy quick: 2 of 7 runs finished (2 done); 1 failed, see above"
    assert out[-1] == "next:   the same command makes what is missing"
    monkeypatch.setattr(Answering, "failing", ())
    assert main(argv) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "toy quick: 7 of 7 runs finished (7 done)"
    assert out[-1] == f"next:   python -m analysis report toy --scale quick --store '{tmp_path}/a store'"
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == "" and document["counts"] == {"done": 7} and document["complete"]
    assert document["next"].startswith("python -m analysis report toy ")


class Terminal:
    """stderr that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...
    def isatty(self) -> bool:
        return True


def test_a_stop_is_told_on_a_terminal(answering: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live lines would swallow it, or leave the cursor hidden."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(command, "find_study", lambda *given: toy_study.STUDY)
    answer = Answering.answer

    def stop_first(self: Answering, pipe: Connection) -> None:
        self.signal_number = 15
        answer(self, pipe)

    monkeypatch.setattr(Answering, "answer", stop_first)
    argv = ["run", "toy", "--scale", "quick", "--workers", "1", "--store", str(tmp_path)]
    assert main(argv) == 143
    assert screen.text.rstrip().endswith("stopped; the same command continues from the checkpoints")
    assert screen.text.count("\x1b[?25l") == screen.text.count("\x1b[?25h")  # the cursor is shown again


# --- make clean


def test_clean_keeps_every_store(tmp_path: Path) -> None:
    """Days of training would be gone with the environment."""
    planned = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True).stdout
    removed = {word for line in planned.splitlines() if "rm " in line for word in line.split()[1:]}
    assert removed == {"-rf", ".venv", "build"}
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (".venv", "build", "store/runs/a", "store/reproduce/runs/b"):
        (tmp_path / name).mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("BATCHLAB_STORE", "MAKEFLAGS", "STORE")}
    done = subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and {path.name for path in tmp_path.iterdir()} == {"Makefile", "store"}
    assert "the runs in store/reproduce" in done.stdout and "the runs in store;" in done.stdout
    assert (tmp_path / "store/runs/a").is_dir() and (tmp_path / "store/reproduce/runs/b").is_dir()
