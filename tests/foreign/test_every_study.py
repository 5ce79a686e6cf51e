"""Every study on somebody's own network and data: verdicts and figures, or one sentence of what the task lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import __main__ as analysis
from experiments import __main__ as command
from experiments.lab.declare.checkout import ROOT
from experiments.lab.declare.finding import search

HERE = Path(__file__).parent
TASK = ["--model", "theirs:cnn", "--data", "theirs:images"]
TINY = {
    "cohen2021": "n_train=64 batch_sizes=16,64 time=0.4 beta_steps=10 examples=32",
    "dose": "batch_sizes=8,16,32 dose=16 straight=8 steps=20 examples=32",
    "foret2021": "batch_sizes=16 epochs=2 target=0.8 examples=32",
    "geiping2022": "n_train=96 batch_sizes=16,96 epochs=2 longer=3",
    "goyal2017": "batch_sizes=8,16,24,32 moderate=16 late=24 epochs=2 other_seeds=1",
    "jastrzebski2018": "batch_sizes=8,16,24,32 epochs=2 target=0.8 matched_epochs=20 examples=32",
    "jiang2020": "batch_sizes=8,32 train_loss=0.8 max_epochs=20 examples=32 lr=0.01",
    "keskar2017": "batch_sizes=8,32 smaller= target=0.5 max_epochs=20 lr=0.003 examples=32",
    "li2018": "batch_sizes=8,32 epochs=2 examples=32",
    "malladi2022": "batch_sizes=8,16,32 epochs=2 few=1",
    "masters2018": "batch_sizes=8,16,32 narrow=8 other=16 octaves=1 tuning_seeds=1 epochs=2",
    "shallue2019": "batch_sizes=8,16,24,32 curve=8,16,32 perfect=8,16 train_loss=0.8 fewest_epochs=4 fewest_updates=40 "
                   "curve_seeds=2 others=1",
    "smith2018": "n_train=100 batch_sizes=1,10,100 epochs=2",
    "smith2020": "batch_sizes=8,16,32 matched=16 steps=20 epochs=2 train_loss=0.8 max_epochs=8 compared=2 others=1 confirm=1",
    "yao2018": "batch_sizes=8,32 epochs=2 target=0.8 max_epochs=20 examples=32",
    "zhang2019": "batch_sizes=8,32 max_epochs=4,4 sgd=0.1,0.1 heavy_ball=0.01,0.02 preconditioned=0.01,0.01 averaged=0.1,0.1 "
                 "octaves=1 others=1 train_loss=1 precision=float32",
}
"""as small as each study can be asked; where no claim can be decided it still has an answer"""
LACKS = {
    "dinh2017": "layers are rescaled in a chain of ReLU layers, which theirs:cnn is not known to be",
    "hoffer2017": "norm and dropout are for built-in models; your own brings its layers with it",
    "wu2018": "norm and dropout are for built-in models; your own brings its layers with it",
}
"""studies of what only a built-in network can change"""
SAMPLE = ("dose", "keskar2017")
VERDICTS = ("reproduced", "contradicted", "no effect", "inconclusive")


@pytest.fixture(autouse=True)
def beside_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


def test_every_study_is_here() -> None:
    """A study that nobody tried on another task."""
    own = {name for name, study in search().studies.items() if study.module.startswith("experiments.")}
    assert own == TINY.keys() | LACKS.keys()


@pytest.mark.parametrize("study", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.verify) for name in TINY])
def test_a_study_answers_for_their_task(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No answer, a number of the paper's beside it, no figure, or their code run to read results."""
    words = [study, "--scale", "quick", *TASK, *(word for given in f"seeds=2 {TINY[study]}".split() for word in ("--set", given))]
    store = ["--store", str(tmp_path)]
    assert command.main(["run", *words, *store, "--workers", "2", "--json"]) == 0, capsys.readouterr().err
    document = json.loads(capsys.readouterr().out)
    assert document["complete"] and document["scale"].startswith("quick-")
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); from analysis.__main__ import main\n"
            f"code = main({['report', *words, *store, '--json']!r})\nassert 'theirs' not in sys.modules; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert report["verdicts"] and report["figures"]
    for verdict in report["verdicts"]:
        assert verdict["verdict"] in VERDICTS and verdict["regime"] == "own" and verdict["scale"] == document["scale"], verdict
        assert verdict["paper_value"] is None and verdict["published"] is None
    assert any(figure["files"] for figure in report["figures"])
    assert all(figure["files"] or figure["reason"] for figure in report["figures"])


@pytest.mark.verify
def test_a_regression_is_answered_in_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No verdict where no example has a class, or one with the wrong sign."""
    task = ["--model", "theirs:regressor", "--data", "theirs:points", "--loss", "mse"]
    given = f"seeds=8 {TINY['goyal2017']}".split()
    words = ["goyal2017", "--scale", "quick", *task, *(word for one in given for word in ("--set", one))]
    assert command.main(["run", *words, "--store", str(tmp_path), "--json"]) == 0
    capsys.readouterr()
    assert analysis.main(["report", *words, "--store", str(tmp_path), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert {v["unit"] for v in report["verdicts"]} == {"loss"} and all(f["files"] for f in report["figures"])
    unscaled = next(v for v in report["verdicts"] if "unscaled" in v["sentence"])
    assert "asked in loss" in unscaled["sentence"] and unscaled["effect"] is not None
    losses = {rule: [] for rule in ("none", "linear")}
    for run_id in unscaled["runs"]:
        folder = tmp_path / "runs" / run_id
        rule = json.loads((folder / "config.json").read_text()).get("scaling", "none")
        losses[rule].append(json.loads((folder / "summary.json").read_text())["test_loss"])
    none, linear = (sum(losses[rule]) / len(losses[rule]) for rule in ("none", "linear"))
    assert unscaled["effect"] == pytest.approx(none - linear)


@pytest.mark.parametrize("study", LACKS)
def test_what_the_task_lacks_is_one_sentence(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs in which nothing was changed, with verdicts about them."""
    words = [study, "--scale", "quick", *TASK, "--store", str(tmp_path / "store")]
    assert command.main(["run", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and LACKS[study] in err


def test_their_code_is_not_run_to_read_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that knows nothing of a task would be answered by running it."""
    (tmp_path / "runs").mkdir()
    assert analysis.main(["verdicts", "yao2018", "--scale", "quick", *TASK, "--store", str(tmp_path)]) == 2
    assert "nothing is known of the data theirs:images" in capsys.readouterr().err
