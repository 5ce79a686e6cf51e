"""What the README, the board and the pages of the studies say is what the published records give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.table import RESULTS, markdown, with_block

from analysis.draw import Drawn
from analysis.load import Tables, from_published
from analysis.publish import full_board, renewed
from analysis.report import markdown as page_of
from analysis.verdicts import verdicts
from experiments.lab import board

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "figures").glob("*/*/runs.parquet"))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def tables(folder: Path) -> Tables:
    return from_published(folder)


def test_board_is_current() -> None:
    """A verdict in the README that is not the published one; `python -m analysis publish` renews it."""
    text, found = (ROOT / "README.md").read_text(), board.published()
    assert text.count("<!-- begin:board -->") == 1 and "| verdict |" in text
    assert renewed(text, found) == text and full_board(found) == (ROOT / "figures" / "README.md").read_text()


def test_page_is_current(tables: Tables, folder: Path) -> None:
    """A study's page with numbers, figures or deviations that are not its own any more."""
    drawn = [Drawn(figure.name, "unchanged", ("", "")) for figure in tables.study.figures]
    assert page_of(tables, verdicts(tables), drawn) == (folder / "README.md").read_text()


def test_verdicts_are_current(tables: Tables, folder: Path) -> None:
    """Verdicts that were published before the claims or the statistics changed."""
    published = json.loads((folder / "verdicts.json").read_text())
    # another processor may round a quantile otherwise
    for ours, theirs in zip([v.to_dict() for v in verdicts(tables)], published, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name


def test_what_was_tried_is_said(tables: Tables) -> None:
    """A reader of a claim that was not reproduced could not tell whether the claim or the scale is at fault."""
    assert tables.study.tried or all(verdict.verdict == "reproduced" for verdict in verdicts(tables))


def test_all_runs_are_published(tables: Tables) -> None:
    """Records that lack a run of the study."""
    assert (tables.missing_runs, tables.missing_measurements) == (0, 0)


def test_figures_are_of_these_records(tables: Tables, folder: Path) -> None:
    """A figure of older runs, or of claims that were reworded since."""
    for figure in tables.study.figures:
        origin = json.loads((folder / f"{figure.name}.json").read_text())
        assert (origin["tables_sha256"], origin["runs"]) == (tables.digest, sorted(tables.runs["run_id"]))
        assert origin["claims"] == {claim.id: claim.hash for claim in tables.study.claims_at(tables.scale)}


def test_benchmark_table_is_current() -> None:
    """A ratio in the README that was not measured."""
    text = (ROOT / "README.md").read_text()
    assert with_block(text, markdown(json.loads(RESULTS.read_text()))) == text
