"""Wrong input ends in one sentence and the right exit status, with the store as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_runs import toy_config

from experiments.__main__ import main
from experiments.lab.declare.config import Budget, RunConfig
from experiments.lab.store.files import to_json, write_atomic
from experiments.lab.store.records import Store

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["train", "--budget", "steps", "--steps", "2"]
RUN = ["run", "keskar2017", "--scale", "quick"]

USAGE: dict[str, list[str]] = {
    "there is no study 'nothing'": ["run", "nothing", "--scale", "quick"],
    "has no scale 'huge'": ["run", "keskar2017", "--scale", "huge"],
    "there is no data set 'imagenet'": [*RUN, "--dataset", "imagenet"],
    "--seeds is 0": [*RUN, "--seeds", "0"],
    "--workers is 0": [*RUN, "--workers", "0"],
    "no device 'tpu'": [*RUN, "--device", "tpu"],
    "device cuda:99 is not": [*RUN, "--device", "cuda:99"],
    "names 'colour'": [*RUN, "--where", "colour=red"],
    "takes FIELD=VALUE": [*RUN, "--where", "batch_size"],
    "keeps no known run": [*RUN, "--where", "batch_size=7"],
    "batch_size is 0": [*TRAIN, "--lr", "0.1", "--batch-size", "0"],
    "batch_size 10001 exceeds": [*TRAIN, "--lr", "0.1", "--batch-size", "10001"],
    "batch_size 500 exceeds": [*TRAIN, "--lr", "0.1", "--batch-size", "500", "--n-train", "400"],
    "n_train 9999 and n_validation 2": [*TRAIN, "--lr", "0.1", "--batch-size", "5", "--n-train", "9999", "--n-validation", "2"],
    "lr is nan": [*TRAIN, "--lr", "nan", "--batch-size", "10"],
    "lr is inf": [*TRAIN, "--lr", "inf", "--batch-size", "10"],
    "takes no epochs": [*TRAIN, "--lr", "0.1", "--batch-size", "10", "--epochs", "1"],
    "cannot split": [*TRAIN, "--lr", "0.1", "--batch-size", "10", "--norm", "batch", "--micro-batch", "5"],
    "threads is 0": [*TRAIN, "--lr", "0.1", "--batch-size", "10", "--threads", "0"],
    "no metric 'beauty'": ["measure", "abc", "--metrics", "beauty"],
    "needs the archive's name": ["store", "export"],
}
FAILURES: dict[str, list[str]] = {
    "data folder": [*RUN, "--data-dir", "/no/such/folder"],
    "is not a folder": [*RUN, "--dataset", "cifar-bin:/no/such/folder"],
    "there is no data set 'x'": [*TRAIN, "--lr", "0.1", "--batch-size", "10", "--dataset", "x"],
    "parent run abc has no weights": [*TRAIN, "--lr", "0.1", "--batch-size", "10", "--parent", "abc"],
    "needs 32 x 32 pixels": [*TRAIN, "--lr", "0.1", "--batch-size", "10", "--model", "keskar-c2"],
    "has an id that starts with 'abc'": ["measure", "abc", "--metrics", "lambda_max"],
    "runs.tar cannot be read": ["store", "import", "/no/such/runs.tar"],
}


def complaint(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that `argv` is refused with."""
    assert main(argv) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def unfinished(root: Path) -> bool:
    """No record: folders at most."""
    return not [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", USAGE)
def test_wrong_usage(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, or hours of the wrong runs."""
    assert words in complaint([*USAGE[words], "--store", str(tmp_path / "store")], 2, capsys)
    assert unfinished(tmp_path)


@pytest.mark.parametrize("words", FAILURES)
def test_missing_things(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same, where the command is right and something it needs is not there."""
    assert words in complaint([*FAILURES[words], "--store", str(tmp_path / "store")], 1, capsys)
    assert unfinished(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run of the sweep would fail, one after the other."""
    assert "has 0 GPUs; use cpu" in complaint([*RUN, "--device", "cuda", "--store", str(tmp_path)], 2, capsys)


@pytest.mark.parametrize("argv", [RUN, [*TRAIN, "--lr", "0.1", "--batch-size", "10"], ["store", "import", "runs.tar"]])
def test_a_store_that_cannot_be_written(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training for nothing."""
    (tmp_path / "file").write_text("")
    assert "cannot be written" in complaint([*argv, "--store", str(tmp_path / "file" / "store")], 1, capsys)


@pytest.mark.parametrize("command", ["plan", "status"])
def test_looking_creates_no_store(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt --store would become a new empty one."""
    assert main([command, "keskar2017", "--scale", "quick", "--store", str(tmp_path / "store")]) in (0, 1)
    assert not list(tmp_path.iterdir())


def test_a_damaged_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan over a damaged record would end in a traceback."""
    from experiments.keskar2017 import STUDY
    from experiments.lab.declare.study import Request

    store, config = Store(tmp_path), STUDY.stages[0].runs_of(Request("quick"), ())[0]
    store.folder(config.run_id).mkdir()
    for content in (b'{"status": "do', b"{}"):
        write_atomic(store.folder(config.run_id) / "summary.json", content)
        assert "summary.json" in complaint(["plan", "keskar2017", "--scale", "quick", "--store", str(tmp_path)], 1, capsys)


def test_two_runs_with_one_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first of them would be measured."""
    store = Store(tmp_path)
    for run_id in ("ab" + "0" * 18, "ab" + "1" * 18):
        store.folder(run_id).mkdir()
    assert "the ids of 2 runs start with 'ab'" in complaint(["measure", "ab", "--store", str(tmp_path)], 1, capsys)


def test_a_run_that_is_not_finished_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its owner would be told to delete it."""
    store, config = Store(tmp_path), toy_config()
    store.folder(config.run_id).mkdir()
    write_atomic(store.folder(config.run_id) / "config.json", to_json(config.to_dict()))
    assert "is not finished" in complaint(["measure", config.run_id, "--store", str(tmp_path)], 1, capsys)


@pytest.mark.parametrize("argv", [["fly"], ["run"], ["train", "--colour", "red"], [*RUN, "--seeds", "x"]])
def test_unknown_options(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The parser's own complaints: status 2."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_diverged_run_says_so(tmp_path: Path) -> None:
    """A NaN run would exit 0. In a process of its own: also its stderr has no traceback."""
    argv = [*TRAIN, "--lr", "1e30", "--batch-size", "20", "--n-train", "40", "--width", "8", "--depth", "1", "--json"]
    done = subprocess.run([sys.executable, "-m", "experiments", *argv, "--store", str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 1 and '"status": "diverged"' in done.stdout and "Traceback" not in done.stderr
    config = RunConfig(budget=Budget.STEPS, steps=2, lr=1e30, batch_size=20, n_train=40, width=8, depth=1)
    assert Store(tmp_path).finished(config.run_id)  # the same run, whoever asks for it
