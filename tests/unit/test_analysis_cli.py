"""`python -m analysis`: exit statuses, one JSON document, and publishing as the same road as a store."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic

from analysis import __main__ as command
from analysis import publish
from analysis.draw import figures_of
from analysis.load import from_published, from_store
from analysis.verdicts import verdicts
from experiments.keskar2017 import STUDY
from experiments.lab.store.files import StoreError
from experiments.lab.store.records import Store
from experiments.lab.sweep import board

QUICK = ("keskar2017", "--scale", "quick")
FIELDS = {"study", "scale", "claim", "claim_hash", "verdict", "effect", "ci_low", "ci_high", "unit", "n_seeds",
          "p_value", "decided_by", "paper_value", "paper_source", "runs", "source"}
README = "before\n<!-- begin:board -->\nold\n<!-- end:board -->\nafter\n<!-- begin:reproduce -->\n<!-- end:reproduce -->\n"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("full"), STUDY).root


@pytest.fixture
def partial(full: Path, tmp_path: Path) -> Path:
    """A store that lacks one run."""
    store = Path(shutil.copytree(full, tmp_path / "partial"))
    shutil.rmtree(sorted((store / "runs").iterdir())[0])
    return store


@pytest.fixture(scope="module")
def published(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    (root / "README.md").write_text(README)
    publish.write(from_store(STUDY, "quick", Store(full)), figures=root / "figures", readme=root / "README.md")
    return root


def test_verdicts_as_json(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program that reads the verdicts finds something else on stdout, or lacks a field that is promised."""
    before = sorted(full.iterdir())
    assert command.main(["verdicts", *QUICK, "--store", str(full), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and [v["claim"] for v in found] == [c.id for c in STUDY.claims_at("quick")]
    for verdict in found:
        assert set(verdict) >= FIELDS and verdict["source"] == "store" and len(verdict["runs"]) == 24
    assert sorted(full.iterdir()) == before  # reading leaves no folder behind


@pytest.mark.parametrize("name", ["verdicts", "tables"])
def test_missing_runs_are_status_1(name: str, partial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that takes an incomplete study for a finished one."""
    assert command.main([name, *QUICK, "--store", str(partial), "--json"]) == 1
    out, err = capsys.readouterr()
    json.loads(out)
    assert err.startswith("error: 1 runs and") and err.count("\n") == 1


def test_report_holds_verdicts_tables_figures_and_deviations(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one document that a person reads lacks a part."""
    assert command.main(["report", *QUICK, "--store", str(full)]) == 0
    text = (full / "reports" / "store" / "keskar2017" / "quick" / "report.md").read_text()
    for claim in STUDY.claims_at("quick"):
        assert claim.sentence in text
    assert all(f"({figure.name}.png)" in text for figure in figures_of(STUDY, "quick"))
    assert "98.03 ± 0.07" in text and "TIMIT" in text and "Incomplete" not in text
    out = capsys.readouterr().out
    assert out.count("REPRODUCED") == 5 and out.count("(drawn)") == len(figures_of(STUDY, "quick"))


@pytest.mark.parametrize("words",
                         [("verdicts", "nobody2020", "--scale", "quick"), ("verdicts", "keskar2017", "--scale", "huge"),
                          ("verdicts", *QUICK, "--store", "/nonexistent"), ("publish", *QUICK, "--published")])
def test_wrong_usage_is_status_2(
    words: tuple[str, ...], published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback, or a status that says a run failed."""
    monkeypatch.setattr(command, "FIGURES", published / "figures")
    assert command.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("name", ["summary.json", "history.jsonl", "predictions.safetensors"])
def test_damaged_record_is_status_1(name: str, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback where a disk cut a file short."""
    store = Path(shutil.copytree(full, tmp_path / "damaged"))
    path = sorted(store.glob(f"runs/*/{name}"))[0]
    path.write_bytes(path.read_bytes()[:20] + b"\n")
    assert command.main(["verdicts", *QUICK, "--store", str(store)]) == 1
    err = capsys.readouterr().err
    assert str(path) in err and err.count("\n") == 1


def test_published_is_the_store(
    full: Path, published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Published verdicts, tables or figures that the store does not give."""
    ours, theirs = from_store(STUDY, "quick", Store(full)), from_published(published / "figures" / "keskar2017" / "quick")
    for name in ("runs", "history", "measurements"):
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name))
    resampled = ours.correct["run_id"].isin(theirs.correct["run_id"])
    pd.testing.assert_frame_equal(ours.correct[resampled].reset_index(drop=True), theirs.correct)
    assert 0 < resampled.sum() < len(ours.runs)
    assert ours.digest == theirs.digest
    assert (theirs.missing_runs, theirs.missing_measurements) == (0, 0)
    expected = [replace(v, source="published").to_dict() for v in verdicts(ours)]
    monkeypatch.setattr(command, "FIGURES", published / "figures")
    assert command.main(["verdicts", *QUICK, "--published", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert json.loads((published / "figures" / "keskar2017" / "quick" / "verdicts.json").read_text()) == expected


def test_publishing_again_changes_nothing(full: Path, published: Path, tmp_path: Path) -> None:
    """A diff in what is published though no run changed."""
    (tmp_path / "README.md").write_text(README)
    tables = from_store(STUDY, "quick", Store(full))
    written = publish.write(tables, figures=tmp_path / "figures", readme=tmp_path / "README.md")
    names = {path.name for path in written}
    assert {"runs.parquet", "verdicts.json", "table_cells.tex", "generalization_gap.pdf", "README.md"} <= names
    for path in written:
        assert path.read_bytes() == (published / path.relative_to(tmp_path)).read_bytes(), path


def test_readme_is_filled_between_its_marks(published: Path) -> None:
    """Text of a person overwritten, a block doubled, or an old number left standing."""
    text = (published / "README.md").read_text()
    assert text.startswith("before\n<!-- begin:board -->\n")
    assert "<!-- end:board -->\nafter\n" in text and text.endswith("```\n\n<!-- end:reproduce -->\n")
    assert "old" not in text.split("-->")[1].split() and "5 published verdicts" in text and "\nREPRODUCED " in text
    found = board.published(published / "figures")
    assert publish.renewed(text, found) == text
    assert publish.renewed("no marks\n", found) == "no marks\n"
    page = (published / "figures" / "keskar2017" / "quick" / "README.md").read_text()
    assert "![contour](contour.png)" in page and "TIMIT" in page and "12 seeds per group" in page
    assert len(found) == 5 and all(verdict["sentence"] in (published / "figures" / "README.md").read_text() for verdict in found)


def test_incomplete_study_is_not_published(partial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a study in figures/."""
    with pytest.raises(StoreError, match="1 runs"):
        publish.publish(from_store(STUDY, "quick", Store(partial)), figures=tmp_path / "figures", readme=tmp_path / "README.md")
    assert command.main(["publish", *QUICK, "--store", str(partial), "--to", str(tmp_path / "figures")]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "figures").exists()


def test_uncommitted_code_is_not_published(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run of an edited checkout among all others, on a page that names a commit."""
    store = Path(shutil.copytree(full, tmp_path / "store"))
    path = sorted(store.glob("runs/*/summary.json"))[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "c0ffee+"}))
    (tmp_path / "README.md").write_text(README)
    for name, value in (("FIGURES", tmp_path / "figures"), ("README", tmp_path / "README.md"), ("inside", lambda folder: True)):
        monkeypatch.setattr(command, name, value)
    assert command.main(["publish", *QUICK, "--store", str(store)]) == 1
    out, err = capsys.readouterr()
    assert "uncommitted code (commit c0ffee+); commit the code and make them anew" in err and err.count("\n") == 1
    assert out == "" and not (tmp_path / "figures").exists()


def test_what_is_published_stands_beside(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader whose numbers are others would not learn whether they agree; or is asked for figures that are not there."""
    words = ["verdicts", *QUICK, "--store", str(full)]
    theirs = {v["claim"]: v for v in board.published() if (v["study"], v["scale"]) == ("keskar2017", "quick")}
    assert command.main(words) == 0
    out = capsys.readouterr().out
    assert "yours" in out and "Yours were made on none, the published ones on" in out
    assert command.main([*words, "--json"]) == 0
    for verdict in json.loads(capsys.readouterr().out):
        beside = verdict["published"]
        assert beside["answer"] in ("agrees", "differs") and beside["effect"] == theirs[verdict["claim"]]["effect"]
    monkeypatch.setattr(command, "FIGURES", tmp_path)
    assert command.main(words) == 0 and "yours" not in capsys.readouterr().out
    assert command.main([*words, "--json"]) == 0
    assert all(verdict["published"] is None for verdict in json.loads(capsys.readouterr().out))


def edit_scale(folder: Path) -> None:
    frame = pd.read_parquet(folder / "runs.parquet")
    frame.loc[0, "scale"] = "laptop"
    frame.to_parquet(folder / "runs.parquet")


def edit_settings(folder: Path, name: str, value: Any) -> None:
    document = json.loads((folder / "settings.json").read_text())
    document["shared"][name] = value
    if name in document["columns"]:
        document["columns"][document["columns"].index(name)] = "seed"
    (folder / "settings.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lambda f: (f / "history.parquet").unlink(), "no history.parquet"), (edit_scale, "2 studies and scales"),
     (lambda f: (f / "runs.parquet").write_bytes(b"PAR1"), "is damaged"),
     (lambda f: (f / "settings.json").unlink(), "no settings.json"),
     (lambda f: (f / "settings.json").write_text('{"runs": [3]}'), "settings.json is damaged"),
     (lambda f: edit_settings(f, "batch_size", -1), "of another batchlab"),
     (lambda f: edit_settings(f, "colour", "red"), "no field 'colour'")],
    ids=["absent", "mixed", "torn", "no settings", "torn settings", "impossible", "later"],
)
def test_unusable_publication_is_status_2(
    damage: Any, reason: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A traceback for somebody who cloned without the records."""
    folder = Path(shutil.copytree(published / "figures", tmp_path / "published")) / "keskar2017" / "quick"
    damage(folder)
    monkeypatch.setattr(command, "FIGURES", tmp_path / "published")
    assert command.main(["verdicts", *QUICK, "--published"]) == 2
    err = capsys.readouterr().err
    assert reason in err and err.count("\n") == 1
