"""Other versions of the science, the data, the metrics and the record under an old store: refused or left alone, never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from toy_runs import toy_config
from toy_store import files, finish, stopped_twice

from experiments.__main__ import main
from experiments.lab.datasets import DataError
from experiments.lab.declare import config as config_module
from experiments.lab.declare.config import Budget, Machine, RunConfig
from experiments.lab.declare.study import Record, Request, Scale, Stage, Study, measure
from experiments.lab.declare.vocabulary import metrics
from experiments.lab.store import check as check_module
from experiments.lab.store import provenance as provenance_module
from experiments.lab.store import records as store_module
from experiments.lab.store import run_folder as folder_module
from experiments.lab.store.check import check, repair
from experiments.lab.store.checkpoints import digest, final_weights, load_tensors
from experiments.lab.store.checksums import SCHEMA, with_checksum
from experiments.lab.store.files import StoreError, to_json
from experiments.lab.store.history import history
from experiments.lab.store.records import Store, measurement_id
from experiments.lab.store.transfer import export_runs, import_runs
from experiments.lab.sweep.plan import measurements_due, plan
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.tasks import Failed, Train
from experiments.lab.sweep.worker import run_task
from experiments.lab.training.data import prepare, read

MEASURE = measure("lambda_max", examples=10)


def two(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return [toy_config(seed=seed) for seed in (0, 1)]


STUDY = Study("toy", "", "", (Scale("quick", "", ""),), (Stage("only", two, measures=lambda config: [MEASURE]),), ())


def rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next science version."""
    version = config_module.SCIENCE_VERSION + 1
    for module in (config_module, folder_module, store_module, check_module, provenance_module):
        monkeypatch.setattr(module, "SCIENCE_VERSION", version)


def make_old(store: Store, run_id: str) -> None:
    """Rewrite a record as schema 1 had it: no seals, digests of tensors alone, no columns."""
    folder = store.folder(run_id)
    for path in (folder / "summary.json", folder / "provenance.json", *(folder / "measurements").glob("*.json")):
        document = json.loads(path.read_bytes())
        del document["seal"], document["schema"]
        if path.name == "summary.json":
            (folder / "history.safetensors").unlink()
            document["files"] = {}
            for name in ("final.safetensors", "predictions.safetensors"):
                loaded = load_tensors(folder / name)
                assert loaded is not None
                document["files"][name] = digest(loaded[0])
                content = save(loaded[0], metadata={"sha256": digest(loaded[0]), "text": ""})
                (folder / name).write_bytes(content)
        path.write_bytes(to_json(document))


@pytest.fixture
def filled(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for config in two(Request("quick"), ()):
        finish(store, config)
        store.write_measurement(MEASURE, [config.run_id], {"value": 1.0})
    return store


def test_a_raised_science_version_uses_no_old_run(filled: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of two sciences would stand in one mean."""
    old, before = list(filled.run_ids()), files(filled.root)
    rise(monkeypatch)
    (stage,) = plan(STUDY, Request("quick"), filled)
    assert stage.missing() == stage.runs and not measurements_due(stage, Request("quick"), filled)
    for run_id in old:
        with pytest.raises(StoreError, match="science version 1"):
            filled.config(run_id)
        assert main(["measure", run_id, "--store", str(filled.root)]) == 1
        assert "science version" in capsys.readouterr().err
    assert main(["store", "check", "--json", "--store", str(filled.root)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["of_another_science_version"] == old and document["damaged"] == [] and document["notes"]
    assert not repair(filled, check(filled))
    export_runs(filled, tmp_path / "runs.tar")
    assert import_runs(Store(tmp_path / "other"), tmp_path / "runs.tar") == 2  # whole records, only not of this science
    finish(filled, toy_config())
    assert {name: content for name, content in files(filled.root).items() if name in before} == before


def test_a_raised_science_version_resumes_no_old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run would begin under one science and end under another."""
    store = Store(tmp_path)
    old = stopped_twice(store, toy_config())
    rise(monkeypatch)
    new = finish(store, toy_config())
    assert new != old and not check(store).damaged and len(list(old.glob("checkpoint.*"))) == 2


def test_a_commit_changes_nothing(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit would cost every run."""
    monkeypatch.setattr(folder_module, "commit", lambda: "another")
    monkeypatch.setattr("experiments.lab.store.provenance.commit", lambda: "another")
    (stage,) = plan(STUDY, Request("quick"), filled)
    assert stage.complete and not measurements_due(stage, Request("quick"), filled) and not check(filled).foreign


def test_a_raised_metric_version_measures_again(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two definitions of one metric would stand in one column."""
    run_id = toy_config().run_id
    before = measurement_id(MEASURE, [run_id])
    monkeypatch.setitem(metrics(), "lambda_max", replace(metrics()["lambda_max"], version=2))
    assert measurement_id(MEASURE, [run_id]) != before and filled.measurement(MEASURE, [run_id]) is None
    (stage,) = plan(STUDY, Request("quick"), filled)
    assert len(measurements_due(stage, Request("quick"), filled)) == 2 and not check(filled).damaged


def cifar_folder(root: Path, value: int) -> Path:
    root.mkdir(exist_ok=True)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (root / name).write_bytes(b"".join(bytes([label]) + bytes([value + label]) * 3072 for label in range(10)) * 4)
    return root


def test_edited_data_are_never_mixed_with_old_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sharpness of old weights on new examples, or a parent's weights from data that are gone: both look like results."""
    root, store = cifar_folder(tmp_path / "data", 1), tmp_path / "store"
    argv = ["train", "--budget", "steps", "--steps", "2", "--lr", "0.1", "--batch-size", "10", "--width", "4", "--depth", "1",
            "--dataset", f"cifar-bin:{root}", "--store", str(store), "--json"]
    assert main(argv) == 0
    old = json.loads(capsys.readouterr().out)["run_id"]
    cifar_folder(root, 2)
    assert main(["measure", old, "--metrics", "lambda_max", "--store", str(store)]) == 1
    assert "has changed: its SHA-256 is" in capsys.readouterr().err
    assert main(argv) == 0 and json.loads(capsys.readouterr().out)["run_id"] != old
    cifar_folder(root, 1)
    assert main(["measure", old, "--metrics", "lambda_max", "--store", str(store)]) == 0


def test_data_that_change_after_planning(tmp_path: Path) -> None:
    """The run would carry the hash of data it never saw."""
    root = cifar_folder(tmp_path / "data", 1)
    config = RunConfig(dataset=f"cifar-bin:{root}", data_sha256="0" * 64, batch_size=10, lr=0.1, budget=Budget.STEPS, steps=1,
                       width=4, depth=1)
    report = run_task(Train(config), Store(tmp_path / "store"), Machine(), Stopper(), None)
    assert isinstance(report, Failed) and "has changed" in report.why
    assert not Store(tmp_path / "store").finished(config.run_id)
    with pytest.raises(DataError, match="has changed"):
        prepare(config, Machine(), read(config.dataset, None))


@pytest.mark.parametrize("field", [{"colour": "red"}, {"optimizer": "sgd2"}])
def test_a_newer_config_is_one_sentence(field: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store shared with a newer batchlab would end every command in a traceback, or its runs pass for damaged."""
    store = Store(tmp_path)
    path = finish(store, toy_config())
    document = {**json.loads((path / "config.json").read_bytes()), **field}
    run_id = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:20]
    path = path.rename(path.with_name(run_id))
    (path / "config.json").write_bytes(to_json(document))
    summary = json.loads((path / "summary.json").read_bytes()) | {"run_id": run_id}
    summary["files"]["config.json"] = hashlib.sha256(to_json(document)).hexdigest()
    del summary["seal"]
    (path / "summary.json").write_bytes(with_checksum(to_json(summary)))
    assert main(["measure", run_id, "--store", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "newer batchlab" in error and error.count("\n") == 1
    assert main(["store", "check", "--store", str(tmp_path)]) == 0
    export_runs(store, tmp_path / "runs.tar")
    assert import_runs(Store(tmp_path / "other"), tmp_path / "runs.tar") == 1


@pytest.mark.parametrize("name", ["summary.json", "measurement"])
def test_a_newer_schema_is_one_sentence(name: str, filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields that mean something else there would be read as they are here."""
    run_id = toy_config().run_id
    path = filled.measurement_path(MEASURE, [run_id]) if name == "measurement" else filled.folder(run_id) / name
    document = {**json.loads(path.read_bytes()), "schema": SCHEMA + 1}
    del document["seal"]
    path.write_bytes(with_checksum(to_json(document)))
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}, which a newer batchlab wrote"):
        filled.measurement(MEASURE, [run_id])
        filled.summary(run_id)
    assert main(["store", "check", "--repair", "--json", "--store", str(filled.root)]) == 1 and path.exists()
    document = json.loads(capsys.readouterr().out)
    assert document["damaged"] == document["moved"] == [] and len(document["unreadable"]) == 1


@pytest.mark.parametrize("schema", ["x", None, 1.5, True, 0, [2]])
def test_a_schema_that_is_no_number_is_damage(schema: Any, filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Anybody's archive would end an import in a traceback."""
    path = filled.folder(toy_config().run_id) / "summary.json"
    document = {**json.loads(path.read_bytes()), "schema": schema}
    del document["seal"]
    path.write_bytes(with_checksum(to_json(document)))
    assert main(["store", "check", "--store", str(filled.root)]) == 1
    assert "its schema is no number" in capsys.readouterr().out


def test_an_old_store_is_read_and_said_to_be_unchecked(filled: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Months of runs would be lost to the new layout, or pass for vouched for."""
    config, other = two(Request("quick"), ())
    record = filled.record(config)
    assert record is not None
    expected = final_weights(filled, config.run_id), filled.history(config.run_id), history(filled, record).numbers["step"]
    make_old(filled, config.run_id)
    record = filled.record(config)
    assert record is not None and record.values["test_loss"] is not None
    now = final_weights(filled, config.run_id), filled.history(config.run_id), history(filled, record).numbers["step"]
    assert all(torch.equal(now[0][name], value) for name, value in expected[0].items())
    assert now[1] == expected[1] and (now[2] == expected[2]).all()
    measured = [filled.measurement(MEASURE, [c.run_id]) for c in (config, other)]
    assert measured[0] and measured[1] and measured[0] == measured[1] | {"runs": [config.run_id]}
    assert main(["store", "check", "--json", "--store", str(filled.root)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["unchecked"]) == 2 and config.run_id in document["unchecked"] and "older" in document["notes"][0]
    export_runs(filled, tmp_path / "runs.tar")
    assert import_runs(Store(tmp_path / "other"), tmp_path / "runs.tar") == 2
    path = filled.folder(config.run_id) / "final.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert check(filled).damaged
    with pytest.raises(StoreError, match="missing or altered"):
        final_weights(filled, config.run_id)


def test_the_schema_is_recorded(filled: Store) -> None:
    """The next layout could not tell this one from the first."""
    folder = filled.folder(toy_config().run_id)
    for path in (folder / "summary.json", folder / "provenance.json", *(folder / "measurements").glob("*.json")):
        assert json.loads(path.read_bytes())["schema"] == SCHEMA == 2
