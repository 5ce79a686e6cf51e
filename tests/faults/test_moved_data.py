"""Data that moved are found by their content, from any folder; what is found otherwise is refused, in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cifar_folders import two_kinds, write_binary

from experiments.__main__ import main
from experiments.lab.datasets import DataError, identity
from experiments.lab.store.data_places import content_of, remember, seen

ARGV = ["train", "--budget", "steps", "--steps", "2", "--lr", "0.1", "--batch-size", "10", "--width", "4", "--depth", "1",
        "--dataset", "cifar-bin:mine", "--json"]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """A folder `work` with data `mine`, beside it a store in which a run was trained by the relative name, and the run's id. The
    working folder is another."""
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    write_binary(work / "mine", two_kinds(40, 0), two_kinds(10, 1))
    elsewhere.mkdir()
    monkeypatch.delenv("BATCHLAB_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.chdir(work)
    assert main([*ARGV, "--store", str(tmp_path / "store")]) == 0
    monkeypatch.chdir(elsewhere)
    return work, json.loads(capsys.readouterr().out)["run_id"]


def measured(work: Path, run_id: str, *more: str) -> int:
    return main(["measure", run_id, "--metrics", "lambda_max", "--store", str(work.parent / "store"), *more])


def test_measured_from_another_folder(trained: tuple[Path, str]) -> None:
    """A relative folder would be gone as soon as one stands elsewhere."""
    assert measured(*trained) == 0


@pytest.mark.parametrize("data_dir", ["", "moved", "../up"])
def test_found_where_data_dir_says(trained: tuple[Path, str], data_dir: str) -> None:
    """Data that moved would need their old name: in the data folder, the data folder itself, or under their name in it."""
    work, run_id = trained
    new = work / "../up/mine" if data_dir == "../up" else work / "moved"
    new.parent.mkdir(exist_ok=True)
    shutil.move(work / "mine", new)
    write_binary(work / "another", two_kinds(40, 2), two_kinds(10, 3))
    assert measured(work, run_id, "--data-dir", str(work / data_dir)) == 0
    assert Path(next(iter(seen(work.parent / "store").values()))["place"]).resolve() == new.resolve()


def test_other_data_under_the_old_name_are_refused(trained: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Old weights would be measured on other images."""
    work, run_id = trained
    shutil.rmtree(work / "mine")
    write_binary(work / "mine", two_kinds(40, 2), two_kinds(10, 3))
    assert measured(work, run_id, "--data-dir", str(work)) == 1
    said = capsys.readouterr().err
    assert str(work / "mine") in said and "--data-dir" in said and "Traceback" not in said and said.count("\n") == 1


def test_training_goes_on_where_data_moved(trained: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The same command would begin a study anew, or end."""
    work, run_id = trained
    shutil.move(work / "mine", work / "moved")
    assert main([*ARGV, "--store", str(work.parent / "store"), "--data-dir", str(work)]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == run_id
    assert main([*ARGV, "--seed", "1", "--store", str(work.parent / "store"), "--data-dir", str(work / "moved")]) == 0


def test_runs_of_another_machine_name_their_data(trained: tuple[Path, str]) -> None:
    """A store that was imported knows no place: its results, and the data under a new name, could not be reached."""
    work, store = trained[0], trained[0].parent / "store"
    (work / "mine").rename(work / "renamed")
    (store / "data.json").unlink()
    name, own = "cifar-bin:mine", content_of("cifar-bin:mine", None, store)
    assert own == identity(f"cifar-bin:{work / 'renamed'}") == content_of(name, work / "renamed", work.parent / "none")
    with pytest.raises(DataError):
        content_of(name, None, work.parent / "none")


@pytest.mark.parametrize("content", ["", "[]", "{\"x\": 1}", "{\"x\": {}}", "[" * 100_000])
def test_a_damaged_memory_is_none(tmp_path: Path, content: str) -> None:
    """A file that only helps would end every command."""
    (tmp_path / "data.json").write_text(content)
    assert seen(tmp_path) == {}
    remember(tmp_path, "0" * 64, "cifar-bin:mine", tmp_path)
    assert seen(tmp_path) == {"0" * 64: {"name": "cifar-bin:mine", "place": str(tmp_path)}}
    remember(tmp_path / "nowhere", "0" * 64, "cifar-bin:mine", tmp_path)
