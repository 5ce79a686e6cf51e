"""`store import --published`: a clone goes on from what the project publishes."""

from __future__ import annotations

import builtins
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.__main__ import main as analyse
from analysis.load import TABLES, from_published, from_store
from analysis.verdicts import verdicts
from experiments.__main__ import main
from experiments.lab.declare.study import Request, measure
from experiments.lab.store.check import check
from experiments.lab.store.files import StoreError
from experiments.lab.store.records import Store
from experiments.lab.store.transfer import export_runs, import_runs
from experiments.lab.sweep.plan import find_study, plan
from experiments.lab.sweep.published import import_published

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "figures"
FOLDERS = sorted(path.parent for path in FIGURES.glob("*/*/settings.json"))
KESKAR = FIGURES / "keskar2017" / "quick"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The published runs of keskar2017: with pairs of runs, warm starts and bits per test example."""
    store = Store(tmp_path_factory.mktemp("imported"))
    import_published(store, FIGURES, "keskar2017", "quick")
    return store


def same_as_published(store: Store, folder: Path) -> None:
    study, scale = find_study(folder.parent.name), folder.name
    assert all(stage.complete for stage in plan(study, Request(scale), store))
    ours, theirs = from_store(study, scale, store), from_published(folder)
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.missing_runs, ours.missing_measurements, ours.digest) == (0, 0, theirs.digest)
    assert [replace(v, source="published") for v in verdicts(ours)] == verdicts(theirs)
    assert ours.imported == set(ours.runs["run_id"]) and not theirs.imported


def test_an_imported_store_gives_the_published_tables_and_verdicts(imported: Store) -> None:
    """A study that goes on from a clone would answer with other numbers than those published."""
    same_as_published(imported, KESKAR)
    assert not any(vars(check(imported)).values())


@pytest.mark.verify
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_every_published_scale_can_be_imported(folder: Path, tmp_path: Path) -> None:
    """As above, of every study."""
    store = Store(tmp_path)
    import_published(store, FIGURES, folder.parent.name, folder.name)
    same_as_published(store, folder)


def test_more_seeds_than_published_leave_only_the_new_runs_to_train(imported: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """`run --seeds 14` would train all runs anew, or think that nothing is left."""
    words = ["keskar2017", "--scale", "quick", "--store", str(imported.root), "--json"]
    assert main(["status", *words]) == 0
    capsys.readouterr()
    assert main(["plan", *words, "--seeds", "14"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    missing = [run["config"] for stage in stages for run in stage["runs"] if run["state"] == "missing"]
    assert {config.get("seed", 0) for config in missing} == {12, 13} and stages[0]["stage"] == "train"


def test_records_say_that_they_were_not_computed_here(imported: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Published numbers would pass as computed in this store."""
    assert analyse(["verdicts", "keskar2017", "--scale", "quick", "--store", str(imported.root), "--json"]) == 0
    for verdict in json.loads(capsys.readouterr().out):
        assert verdict["published_records"] == len(verdict["runs"]) > 0
    assert analyse(["verdicts", "keskar2017", "--scale", "quick", "--store", str(imported.root)]) == 0
    assert "published records, not computed in this store" in capsys.readouterr().out
    run_id = next(imported.run_ids())
    for name in ("summary.json", "provenance.json"):
        source = json.loads((imported.folder(run_id) / name).read_text())["published"]
        assert (source["study"], source["scale"]) == ("keskar2017", "quick")


def test_a_published_record_cannot_be_measured(imported: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, or a measurement of weights that are not there."""
    assert main(["measure", next(imported.run_ids()), "--metrics", "trace", "--store", str(imported.root)]) == 1
    err = capsys.readouterr().err
    assert "is a published record, which has no weights" in err and err.count("\n") == 1


def test_imported_records_travel(imported: Store, tmp_path: Path) -> None:
    """A store with published records could not be exported, or would arrive as its owner's runs."""
    other = Store(tmp_path / "other")
    assert export_runs(imported, tmp_path / "runs.tar") == import_runs(other, tmp_path / "runs.tar") > 0
    same_as_published(other, KESKAR)


def test_own_runs_stay_as_they_are(imported: Store, tmp_path: Path) -> None:
    """A run trained here, or one under way, replaced by what is published; a pair that nobody could measure any more."""
    store, request = Store(tmp_path / "own"), Request("quick")
    pairs = [p for stage in plan(find_study("keskar2017"), request, imported) for p in stage.pairs(request)]
    paired = {config.run_id for pair in pairs for config in (pair.first, pair.second)}
    first, begun, *_ = (run_id for run_id in imported.run_ids() if run_id not in paired)
    own = store.folder(first)
    shutil.copytree(imported.folder(own.name), own)
    shutil.rmtree(own / "measurements")
    document = json.loads((own / "summary.json").read_text())
    (own / "summary.json").write_text(json.dumps({k: v for k, v in document.items() if k not in ("seal", "schema", "published")}))
    store.folder(begun).mkdir()
    (store.folder(begun) / "checkpoint.0.safetensors").write_bytes(b"own")
    before = (own / "summary.json").read_bytes()
    taken, left = import_published(store, FIGURES, "keskar2017", "quick")
    assert (taken, left) == (len(list(imported.run_ids())) - 2, 2)
    assert (own / "summary.json").read_bytes() == before and not (own / "measurements").exists()
    assert [path.name for path in store.folder(begun).iterdir()] == ["checkpoint.0.safetensors"]
    assert import_published(store, FIGURES, "keskar2017", "quick") == (0, taken + left)
    other = Store(tmp_path / "other")
    other.folder(pairs[0].first.run_id).mkdir()
    with pytest.raises(StoreError, match="has a run of its own in one: import into a new store"):
        import_published(other, FIGURES, "keskar2017", "quick")
    assert list(other.run_ids()) == [pairs[0].first.run_id]


@pytest.mark.parametrize(
    "words",
    [["import", "--published", "nobody2020"], ["import", "--published", "keskar2017", "--scale", "huge"],
     ["import", "--scale", "quick", "runs.tar"], ["export", "--published", "keskar2017"], ["check", "--published"]],
)
def test_wrong_words_are_status_2(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, or an import of nothing that passes for one."""
    assert main(["store", *words, "--store", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_damaged_publications_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of a scale would be in the store."""
    folder = Path(shutil.copytree(KESKAR, tmp_path / "figures" / "keskar2017" / "quick"))
    (folder / "history.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"history\.parquet cannot be read"):
        import_published(Store(tmp_path / "store"), tmp_path / "figures")
    assert list((tmp_path / "store" / "runs").iterdir()) == [] and not list((tmp_path / "store").glob(".import.*"))


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback for somebody who installed no more than training needs."""
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(StoreError, match=r"batchlab\[analysis\]"):
        import_published(Store(tmp_path), FIGURES, "dinh2017")


def test_what_a_run_lacks_is_not_made_up(imported: Store) -> None:
    """A run without a history row or a value would get a 0."""
    record = imported.summary(next(imported.run_ids()))
    assert record is not None and record["validation_loss"] is None and record["files"].keys() >= {"history.jsonl"}
    assert imported.measurement(measure("no_such_metric"), [next(imported.run_ids())]) is None
