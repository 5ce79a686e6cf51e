"""Many runs: columns are the rows they were made of, curves are what a group-by gives, and nothing is quadratic."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from benchmarks.grid import configs, fill, study
from benchmarks.table_scale import markdown
from threads import Threads
from toy_runs import toy_config
from toy_store import finish

from analysis import history as histories
from analysis.__main__ import main
from analysis.load import HISTORY, from_store
from experiments import keskar2017
from experiments.lab.declare.config import SCIENCE_VERSION, Machine, Norm, Optimizer, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.study import Record, Request, measure
from experiments.lab.store.files import StoreError
from experiments.lab.store.history import COLUMNS, columns, columns_of, history, pack, unpack
from experiments.lab.store.records import Store
from experiments.lab.sweep.launch import Result, execute
from experiments.lab.sweep.plan import find_study, measurements_due, plan, select
from experiments.lab.sweep.tasks import Finished, Train

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tests" / "benchmarks" / "bench_scale.py"

# --- configurations


CHANGES: tuple[dict[str, Any], ...] = (
    {"seed": 3}, {"lr": 1, "batch_size": 8}, {"norm": "ghost", "norm_batch": 4}, {"optimizer": "adam", "beta1": 0.5},
    {"parent": "a" * 20}, {"dropout": False}, {"seed": np.int64(7)},
)


@pytest.mark.parametrize("change", CHANGES)
def test_replace_is_construction(change: dict[str, Any]) -> None:
    """The copy would keep another run's id, or a value whose type makes one run two."""
    config = toy_config()
    assert config.run_id  # computed, and not to be inherited
    replaced, built = config.replace(**change), dataclasses.replace(config, **change)
    assert replaced == built and hash(replaced) == hash(built) and replaced.run_id == built.run_id != config.run_id
    assert [type(v) for v in replaced.full_dict().values()] == [type(v) for v in built.full_dict().values()]


@pytest.mark.parametrize("change", [{"norm": Norm.GHOST}, {"lr": -1.0}, {"lr": "1"}, {"optimizer": "none"}, {"epochs": 3}])
def test_replace_validates_the_whole(change: dict[str, Any]) -> None:
    """A run that cannot exist would be found by a worker, hours later."""
    with pytest.raises(ConfigError):
        toy_config().replace(**change)
    with pytest.raises(TypeError):
        toy_config().replace(colour="red")


def test_canonical_json_is_json() -> None:
    """Ids would change with the way they are computed."""
    for config in (toy_config(), toy_config(optimizer=Optimizer.ADAMW, lr=1e-5, norm=Norm.BATCH, dropout=False)):
        plain = {f.name: getattr(config, f.name) for f in dataclasses.fields(RunConfig) if getattr(config, f.name) != f.default}
        assert config.canonical() == json.dumps({"science_version": SCIENCE_VERSION, **plain}, sort_keys=True)


# --- columns

ROWS: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, "examples": 2**53 + 1, "epoch": 0.1, "loss": 5e-324, "lr": -0.0},
    {"kind": "eval", "step": 1, "examples": 2, "epoch": 0.1 + 0.2, "train_loss": None, "test_loss": 1.7976931348623157e308},
    {"kind": "check", "step": 2, "examples": -3, "epoch": 1 / 3, "train_loss": 1},
]


def test_columns_lose_nothing(tmp_path: Path) -> None:
    """A figure would show another number than was measured, or 0 where nothing was."""
    (tmp_path / "h").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    content = columns_of(tmp_path / "h")
    assert content is not None
    found = unpack(content)
    assert [found.kinds[k] for k in found.kind] == ["train", "eval", "check"]
    for name, values in found.numbers.items():
        for row, value in zip(ROWS, values.tolist(), strict=True):
            if row.get(name) is None:
                assert np.isnan(value), name
            else:
                assert value == row[name] and np.signbit(value) == np.signbit(row[name]), name
    assert {found.numbers[name].dtype for name in ("step", "examples")} == {np.dtype(np.int64)}
    assert set(found.numbers) == {name for row in ROWS for name in row} - {"kind"}


@pytest.mark.parametrize("value", [2**53 + 1, 2**70, True, "0.5", [1.0]])
def test_what_a_column_cannot_hold_stays_rows(value: Any, tmp_path: Path) -> None:
    """An integer would be rounded, or a run could not be recorded because of an odd row."""
    rows = [{"kind": "eval", "step": 1, "odd": value}, {"kind": "eval", "step": 2, "odd": None}]
    (tmp_path / "h").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert columns_of(tmp_path / "h") is None


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\xff" * 64, pack(columns(ROWS))[:-9], b"\x02" + bytes(7) + b"[]"])
def test_foreign_columns_are_refused(damage: bytes) -> None:
    """A traceback, or numbers out of a damaged file."""
    with pytest.raises(ValueError):
        unpack(damage)


def test_a_run_leaves_both(tmp_path: Path) -> None:
    """Analysis would read other numbers from the columns than from the rows; old records have rows alone."""
    store, config = Store(tmp_path), toy_config(steps=40)
    path = finish(store, config)
    record = store.record(config)
    assert record is not None and COLUMNS in record.values["files"]
    fast = histories.frame(store, [record])
    old = Record(config, "done", dict(record.values) | {"files": {}})
    pd.testing.assert_frame_equal(fast, histories.frame(store, [old]), check_like=True)
    assert len(fast) == len(store.history(config.run_id)) > 0
    content = bytearray((path / COLUMNS).read_bytes())
    content[-5] ^= 1
    (path / COLUMNS).write_bytes(content)
    with pytest.raises(StoreError, match=r"history\.safetensors"):
        history(store, record)


# --- curves


def test_curves_are_a_group_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells would be mixed, missing values count as 0, or a batch's border cut a cell in two."""
    store = synthetic.write(tmp_path, synthetic.study())
    _shorten(store, synthetic.config(16, 3))
    records = [record for record in store.records(synthetic.runs(Request("quick"), ())) if record is not None]
    whole = histories.frame(store, records)[list(HISTORY)]
    for rows in (1, 300, 10**6):
        monkeypatch.setattr(histories, "ROWS", rows)
        cells, rows_, curves = (pd.read_parquet(path) for path in histories.export(store, records, tmp_path / "out"))
        order = ["run_id", "step", "kind"]
        pd.testing.assert_frame_equal(_sorted(rows_, order)[list(HISTORY)], _sorted(whole, order), check_dtype=False)
        assert cells["runs"].tolist() == [synthetic.SEEDS] * len(synthetic.SIZES) and "seed" not in cells
        size = dict(zip(cells["cell"], cells["batch_size"], strict=True))
        of_run = {record.config.run_id: record.config.batch_size for record in records}
        asked = whole.assign(batch_size=whole["run_id"].map(of_run)).groupby(["batch_size", "kind", "step"])
        curves = curves.assign(batch_size=curves["cell"].astype(str).map(size))
        got = curves.set_index(["batch_size", "kind", "step"]).sort_index()
        assert len(got) == asked.ngroups == len(curves)
        for name in histories.MEASURED:
            assert got[f"{name}_n"].tolist() == asked[name].count().tolist()
            np.testing.assert_allclose(got[f"{name}_mean"], asked[name].mean(), rtol=1e-12)
            np.testing.assert_allclose(got[f"{name}_sd"], asked[name].std(), rtol=1e-9, atol=1e-12)
    assert not list((tmp_path / "out").glob(".*"))


def _sorted(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    return frame.astype({"run_id": "str", "kind": "str"}).sort_values(by).reset_index(drop=True)


def _shorten(store: Store, config: RunConfig) -> None:
    """Cut a run's history short, as that of a diverged one is, and null a value of it."""
    path = store.folder(config.run_id) / "history.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()][:7]
    rows[1]["test_loss"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_histories_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The files would lie where nobody looks, or an unfinished study pass for a whole one."""
    study = synthetic.study()
    monkeypatch.setattr("analysis.__main__.find_study", lambda name, *places: study)
    synthetic.write(tmp_path, study, synthetic.Truth(status=lambda c: None if c.seed == 0 else "done"))
    argv = ["histories", "toy", "--scale", "quick", "--store", str(tmp_path)]
    assert main([*argv, "--json"]) == 1
    out, error = capsys.readouterr()
    assert "4 runs of toy are missing" in error and error.count("\n") == 1
    written = [Path(entry["written"]) for entry in json.loads(out)]
    assert [path.name for path in written if path.is_file()] == ["cells.parquet", "history.parquet", "curves.parquet"]
    assert main([*argv, "--published"]) == 2


def test_an_empty_store_has_empty_histories(tmp_path: Path) -> None:
    """An error about concatenation."""
    paths = histories.export(Store(tmp_path), [], tmp_path / "out")
    assert [len(pd.read_parquet(path)) for path in paths] == [0, 0, 0]
    assert len(from_store(find_study(keskar2017.STUDY.name), "quick", Store(tmp_path)).history) == 0


# --- no step is quadratic


MANY, FEW = 1600, 200


def lines(work: Callable[[], object]) -> int:
    """Lines of Python that this thread passes, each turn of a loop anew: the same on a slow or busy machine."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("grid"))
    fill(store, configs(MANY), 40)
    return store


def planned(store: Store, runs: int) -> None:
    (stage,) = plan(study(runs, lambda config: (measure("lambda_max", examples=100),)), Request("quick"), store)
    assert stage.runs is not None and not stage.missing() and select(stage.runs, ["batch_size=32"])
    assert len(measurements_due(stage, Request("quick"), store)) == runs


def exported(store: Store, runs: int) -> None:
    histories.export(store, [record for record in store.records(configs(runs)) if record is not None], store.root / "out")


def given_out(store: Store, runs: int) -> None:
    result = Result()
    with Answering(store.root, Machine(), 2) as pool:
        execute(pool, [Train(config) for config in configs(runs)], "runs", result, quiet=True)
    assert result.trained == runs and not result.failures


class Answering(Threads):
    """For them every run is done at once."""

    def answer(self, pipe: Connection) -> None:
        while pipe.recv() is not None:
            pipe.send(Finished())


@pytest.mark.parametrize("work", [planned, exported, given_out])
def test_nothing_is_quadratic(work: Callable[[Store, int], None], grid: Store) -> None:
    """A loop over runs inside a loop over runs, which no small study shows: 64 times the lines for eight times the runs."""
    assert lines(lambda: work(grid, MANY)) < 10 * lines(lambda: work(grid, FEW))


def test_benchmark_fills_every_row(tmp_path: Path) -> None:
    """A benchmark that breaks with the harness; goals for seconds are its own, and met on a quiet machine."""
    argv = [sys.executable, str(BENCH), "--share", "1000", "--json", str(tmp_path / "scale.json"), "--folder", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scale.json").read_text())
    assert found["half finished"]["missing"] == found["half finished"]["runs"] - found["half finished"]["runs"] // 2
    assert found["histories"]["rows"]["history"] == 168 * 424 and found["histories"]["GB"] < found["goals"]["histories, GB"]
    text = markdown(found)
    assert text.count("\n| ") == 8 and "nan" not in text, text
