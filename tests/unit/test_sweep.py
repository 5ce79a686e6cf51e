"""A sweep without ceremony: from the command line and from Python, kept in a store and found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import main as analysis
from analysis.draw import show
from analysis.figures import heat_map
from analysis.load import of_sweep
from experiments.__main__ import main
from experiments.lab import models
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import ConfigError, UsageError
from experiments.lab.store import sweeps
from experiments.lab.store.records import Store
from experiments.lab.sweep import in_process
from experiments.lab.sweep.in_process import sweep

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--n-train", "100", "--width", "4", "--depth", "1", "--steps", "3"]
GRID = ["sweep", "--batch-size", "8,32", "--lr", "0.1,1e30", "--seeds", "2", *TINY]
ARRAYS = np.linspace(-1, 1, 120, dtype=np.float32).reshape(60, 2), np.arange(60) % 2


def called(words: list[str], store: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    status = (analysis if words[0] in ("tables", "figures", "report") else main)([*words, "--store", str(store)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by a worker."""
    root = tmp_path_factory.mktemp("sweep")
    assert main([*GRID, "--name", "first", "--workers", "1", "--json", "--store", str(root)]) == 0
    return root


def in_python(root: Path, **fields: object) -> in_process.Runs:
    given = {"batch_sizes": (8, 32), "lrs": (0.1, 1e30), "seeds": 2, "n_train": 100, "width": 4, "depth": 1, "steps": 3}
    return sweep("mlp", "fashion-mini", store=root, quiet=True, **{**given, **fields})


def test_found_again(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep that only the command which made it can see."""
    status, out, _ = called(["plan", "first", "--json"], store, capsys)
    runs = [run["config"] for run in json.loads(out)["stages"][0]["runs"]]
    assert status == 0 and len(runs) == 8
    assert {(r["batch_size"], r["lr"], r.get("seed", 0)) for r in runs} == {(b, r, s) for b in (8, 32) for r in (0.1, 1e30)
                                                                             for s in (0, 1)}
    status, out, _ = called(["status", "first", "--json"], store, capsys)
    assert (status, json.loads(out)["stages"][0]["counts"]) == (0, {"done": 4, "diverged": 4})


def test_its_table_and_figures(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A diverged run that is not counted, a cell that is left out, a figure that is not drawn."""
    status, out, _ = called(["tables", "first", "--json"], store, capsys)
    (table,) = json.loads(out)
    cells = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert status == 0 and [(c["B"], c["LR"], c["n"]) for c in cells] == [
        ("8", "0.1", "2"), ("8", "1e+30", "2 (2 diverged)"), ("32", "0.1", "2"), ("32", "1e+30", "2 (2 diverged)")]
    status, out, _ = called(["report", "first", "--json"], store, capsys)
    (report,) = json.loads(out)
    assert status == 0 and [(f["name"], f["state"]) for f in report["figures"]] == [
        ("heat_map", "drawn"), ("generalization_gap", "drawn")]


def test_the_same_command_goes_on(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained twice; a file written anew; another sweep in the place of one that exists."""
    before = (store / "sweeps" / "first.json").read_bytes()
    status, out, _ = called([*GRID, "--name", "first", "--json"], store, capsys)
    assert (status, json.loads(out)["trained_or_measured_now"]) == (0, 0)
    for more, why in ((["--momentum", "0.9"], "its momentum is 0, here 0.9"), (["--seeds", "3"], "its seeds are 2, here 3")):
        status, _, err = called([*GRID, *more, "--name", "first"], store, capsys)
        assert status == 2 and f"the sweep first in {store} is another one ({why})" in err and err.count("\n") == 1
    assert (store / "sweeps" / "first.json").read_bytes() == before


def test_a_name_of_its_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sweeps under one name, or one under two."""
    for words in (GRID, [w.replace("8,32", "32,8") for w in GRID], [*GRID, "--seed", "7"], [*GRID, "--lr", "0.1"]):
        assert called([*words, "--plan"], tmp_path, capsys)[0] == 0
    assert len(list((tmp_path / "sweeps").glob("sweep-????????.json"))) == 3


@pytest.mark.parametrize(("more", "why"), {
    "a word": (["--lr", "0.1,fast"], "--lr is '0.1,fast', but must be a number, or several with commas between"),
    "twice": (["--lr", "0.1,0.10"], "each once"),
    "budget": (["--epochs", "2"], "a sweep needs one length of its runs"),
    "impossible": (["--norm", "ghost", "--norm-batch", "16"], "norm_batch 16 does not divide batch_size 8"),
    "unknown": (["--model", "mlp,cnn"], "model is 'cnn'"),
    "seeds": (["--seeds", "0"], "--seeds is 0"),
    "path": (["--name", "../x"], "--name is '../x'"),
    "taken": (["--name", "keskar2017"], "--name keskar2017 is the name of a study"),
}.values())
def test_what_cannot_be_is_one_sentence(more: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, or a sweep that fails run by run."""
    status, _, err = called([*GRID, *more], tmp_path, capsys)
    assert status == 2 and why in err and err.count("\n") == 1 and not list(tmp_path.glob("sweeps/*"))


def test_a_damaged_sweep_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a grid, in silence."""
    assert called([*GRID, "--name", "first", "--plan"], tmp_path, capsys)[0] == 0
    file = tmp_path / "sweeps" / "first.json"
    file.write_text(file.read_text().replace('"batch_size": 32', '"batch_size": 16'))
    status, _, err = called(["run", "first"], tmp_path, capsys)
    assert status == 1 and f"{file} is damaged" in err and err.count("\n") == 1


def test_same_bits_in_this_process(store: Path, tmp_path: Path) -> None:
    """A notebook's results, which another machine's workers would not give."""
    runs = in_python(tmp_path, name="first")
    assert runs.counts == {"done": 4, "diverged": 4}
    here, there = Store(tmp_path), Store(store)
    assert list(here.run_ids()) == list(there.run_ids())
    assert all((here.summary(i) or {})["files"]["final.safetensors"] == (there.summary(i) or {})["files"]["final.safetensors"]
               for i in here.run_ids())
    assert (tmp_path / "sweeps" / "first.json").read_bytes() == (store / "sweeps" / "first.json").read_bytes()


def test_interrupted_it_goes_on(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook loses the run, or continues it otherwise; the kernel is left with our handler."""
    handler, train = signal.getsignal(signal.SIGINT), in_process.run_task

    def interrupted(*given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return train(*given)

    monkeypatch.setattr(in_process, "run_task", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        in_python(tmp_path, batch_sizes=8, lrs=0.1, seeds=1)
    assert signal.getsignal(signal.SIGINT) is handler and list(tmp_path.glob("runs/*/checkpoint.*"))
    monkeypatch.undo()
    in_python(tmp_path, batch_sizes=8, lrs=0.1, seeds=1)
    (run_id,) = Store(tmp_path).run_ids()
    files = [(Store(root).summary(run_id) or {})["files"]["final.safetensors"] for root in (tmp_path, store)]
    assert files[0] == files[1]


def test_arrays_at_hand(tmp_path: Path) -> None:
    """Arrays of another content under one id; a store that cannot be read again; a value beside its cell."""
    given = {"batch_sizes": (8, 16), "lrs": (0.1, 0.2), "seeds": 2, "steps": 4, "width": 4, "depth": 1, "quiet": True}
    runs = sweep("mlp", ARRAYS, store=tmp_path / "a", **given)
    tables = of_sweep(runs)
    data = heat_map.load_data(tables, heat_map.settings())
    expected = tables.runs.groupby(["batch_size", "lr"])["test_accuracy"].mean()
    assert data.set_index(["batch_size", "lr"])["value"].to_dict() == pytest.approx(expected.to_dict())
    assert len(show(tables, "heat_map").figure.axes) == 2 and len(show(tables, "generalization_gap").figure.axes) == 3
    assert len(tables.history) and set(tables.history["run_id"]) == set(tables.runs["run_id"])
    (tmp_path / "a").rename(tmp_path / "b")  # moved, the arrays go with it
    again = sweep("mlp", {"train": ARRAYS, "test": ARRAYS}, store=tmp_path / "b", **given)
    assert not set(of_sweep(again).runs["run_id"]) & set(tables.runs["run_id"])
    (run_id, *_) = tables.runs["run_id"]
    assert main(["measure", run_id, "--metrics", "trace", "--examples", "20", "--store", str(tmp_path / "b")]) == 0


def test_numbers_have_a_gap_in_loss_alone(tmp_path: Path) -> None:
    """A regression whose tables are called damaged, or whose figure has no panel because no accuracy is known."""
    x, _ = ARRAYS
    runs = sweep("mlp", (x, x[:, 0] ** 2), batch_sizes=(8, 16), lrs=0.1, seeds=2, steps=4, width=4, depth=1, loss="mse",
                 store=tmp_path, quiet=True)
    tables = of_sweep(runs)
    assert [axes.get_title() for axes in show(tables, "generalization_gap").figure.axes] == ["generalization gap in mse"]
    assert (heat_map.load_data(tables, heat_map.settings())["label"] == "test loss").all()


NOTEBOOK = '''
import json, sys
import numpy as np
import torch
from torch import nn
from experiments import sweep

x, y = np.linspace(-1, 1, 120, dtype=np.float32).reshape(60, 2), np.arange(60) % 2
width, changing, store = 4, [1], sys.argv[1]

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, width)
    def forward(self, x):
        return self.linear(x).relu()

def net(input_shape, outputs, slope=1.0):
    return nn.Sequential(Block(), nn.LeakyReLU(slope), nn.Linear(width, outputs))

class Net(nn.Module):
    def __init__(self, input_shape, outputs):
        super().__init__()
        self.body = nn.Linear(input_shape[0], outputs)
    def forward(self, x):
        return self.body(x)

def changes(outputs):
    return nn.Linear(2, changing[0] + outputs - 1)

def maker(n):
    def inner(outputs):
        return nn.Linear(2, outputs)
    return inner

inner = maker(2)

def absolute(outputs, targets):
    return (outputs - nn.functional.one_hot(targets, 2)).abs().mean(1)

def rms(parameters, lr):
    return torch.optim.RMSprop(parameters, lr=lr)

namespace = {"__name__": "__main__"}
exec("def nowhere(outputs):\\n    return None", namespace)
nowhere = namespace["nowhere"]

def ids(given, **more):
    try:
        runs = sweep(given, (x, y), batch_sizes=8, lrs=0.1, seeds=1, steps=2, store=store, quiet=True, **more)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return runs.sweep.cells[0].run_id

found = {"net": ids(net), "again": ids(net), "option": ids(net, model_options={"slope": 0.5}), "class": ids(Net),
         "loss": ids(net, loss=absolute), "optimizer": ids(net, optimizer=rms),
         "changes": ids(changes), "inner": ids(inner), "lambda": ids(lambda outputs: nn.Linear(2, outputs)),
         "nowhere": ids(nowhere), "instance": ids(nn.Linear(2, 2))}
width = 5
found["width"] = ids(net)
print(json.dumps(found))
'''
"""a script is a `__main__` as a notebook is"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "cells.py").write_text(NOTEBOOK)
    done = subprocess.run([sys.executable, folder / "cells.py", folder / "store"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return folder / "store", json.loads(done.stdout)


def test_identity_of_a_function_of_a_notebook(notebook: tuple[Path, dict[str, str]]) -> None:
    """A network whose source, options, loss or globals changed, under the old one's id."""
    _, found = notebook
    ids = [found[name] for name in ("net", "option", "class", "loss", "optimizer", "width")]
    assert found["net"] == found["again"] and len(set(ids)) == 6 and all(len(i) == 20 for i in ids), found


def test_functions_that_may_change_are_refused(notebook: tuple[Path, dict[str, str]]) -> None:
    """A closure that gives another network tomorrow, under the same id."""
    _, found = notebook
    assert "uses changing, a list of the notebook, which may change" in found["changes"]
    assert "one made in another function" in found["inner"] and "a lambda has no name" in found["lambda"]
    assert "source of nowhere is not known" in found["nowhere"]
    assert "is a Linear, but must be a name, a function" in found["instance"]
    assert all(found[n].startswith("ConfigError: ") for n in ("changes", "inner", "lambda", "nowhere", "instance"))


def test_elsewhere_it_is_refused(notebook: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Another function's numbers for a notebook's run, or a traceback where its code is not there."""
    store, found = notebook
    status, _, err = called(["measure", found["net"], "--metrics", "trace"], store, capsys)
    assert status == 2 and "is of a notebook or script that this process does not have" in err and err.count("\n") == 1
    (store / "runs" / found["net"] / "summary.json").unlink()
    (name,) = [name for name in sweeps.names(store) if found["net"] in (sweeps.read(store, name) or pytest.fail()).content[0]]
    status, _, err = called(["run", name], store, capsys)
    assert status == 2 and "which only that can train and measure" in err and err.count("\n") == 1


def test_edited_code_is_not_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old weights measured in a new network; a sweep that goes on with other code than it was kept with."""
    (tmp_path / "edited_net.py").write_text("from torch import nn\ndef net(outputs):\n    return nn.Linear(2, outputs)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = RunConfig(model="edited_net:net", model_sha256="0" * 64, batch_size=2, lr=0.1, budget="steps", steps=1)
    with pytest.raises(ConfigError, match="edited_net:net has changed"):
        models.build(config, (2,), 2)


def test_seeds_of_a_python_sweep_are_counted(tmp_path: Path) -> None:
    """0 seeds: an empty sweep that looks finished."""
    with pytest.raises(UsageError, match="seeds is 0"):
        in_python(tmp_path, seeds=0)
