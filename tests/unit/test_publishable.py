"""What must not be published, one sentence each; and what is published may be."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic

from analysis.figures import Drawn
from analysis.load import Tables, from_published, from_store
from analysis.publishable import code, powers, refuse, undrawn, values, verdictless
from analysis.verdicts import verdicts
from experiments.lab.declare.claims import Claim, Power
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import PILOT, Stage, Study
from experiments.lab.store.files import StoreError
from experiments.lab.store.provenance import committed

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "figures").glob("*/*/runs.parquet"))
FIRST = synthetic.CLAIMS[0]
PILOTS = 6


def pilot_runs(request: object, records: object) -> list[RunConfig]:
    return [synthetic.config(size, PILOT + seed) for size in synthetic.SIZES for seed in range(PILOTS)]


def tables(root: Path, claim: Claim = FIRST, study: Study | None = None) -> Tables:
    study = study or synthetic.study(claims=(claim,))
    return from_store(study, "quick", synthetic.write(root, study))


def pilots(root: Path, claim: Claim, **truth: Any) -> Tables:
    study = synthetic.study(claims=(claim,), stages=(Stage("train", pilot_runs),))
    return from_store(study, "quick", synthetic.write(root, study, synthetic.Truth(**truth)))


def commits(of: Tables, commit: str | None) -> Tables:
    return replace(of, runs=of.runs.assign(commit=[commit, *of.runs["commit"].iloc[1:]]).astype({"commit": "str"}))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_what_is_published_may_be(folder: Path) -> None:
    """A rule that the project's own pages do not meet."""
    published = from_published(folder)
    commits = published.runs["commit"]
    assert commits.notna().all() and not commits.str.endswith("+").any()
    assert [*powers(published, None), *values(published)] == []


def test_uncommitted_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that names a commit which did not make its runs."""
    monkeypatch.setattr("analysis.publishable.committed", lambda path: True)
    found = tables(tmp_path)
    assert not list(code(found, project=True))
    (sentence,) = code(commits(found, "c0ffee+"), project=False)
    assert "1 of 32 runs of toy were made by uncommitted code (commit c0ffee+); commit" in sentence
    (sentence,) = code(commits(found, None), project=True)
    assert "name no commit" in sentence
    assert not list(code(commits(found, None), project=False))


@pytest.mark.parametrize(("clean", "own", "project"), [(True, 0, 0), (False, 1, 1), (None, 0, 1)])
def test_uncommitted_study_is_refused(
    clean: bool | None, own: int, project: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims that nobody can look up; a folder of one's own need not be a git repository."""
    monkeypatch.setattr("analysis.publishable.committed", lambda path: clean)
    found = tables(tmp_path)
    assert (len(list(code(found, project=False))), len(list(code(found, project=True)))) == (own, project)


def test_committed_is_what_git_says(tmp_path: Path) -> None:
    """An edited, new or ignored file that passes for a committed one."""
    path = tmp_path / "study.py"
    path.write_text("1\n")
    assert committed(path) is None
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    (tmp_path / "ignored.py").write_text("")
    for words in (("init", "-q"), ("add", "study.py"), ("commit", "-qm", "one")):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert committed(path) and committed(tmp_path / "ignored.py") is False
    path.write_text("2\n")
    assert committed(path) is False
    subprocess.run([*git, "add", "study.py"], check=True)
    assert committed(path) is False


def stated(**fields: Any) -> Claim:
    """The synthetic truth: a difference of 0.74 points, SD 0.2."""
    return replace(FIRST, power=Power(**({"effect": 0.5, "sd": 0.25, "pilot": "seeds 1000 to 1005", "seeds": 8} | fields)))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, None), ({"sd": 0.5}, "0.46 instead of 0.80"), ({"seeds": 1}, "no test has"), ({"sd": 0.0}, "no test has"),
     ({"seeds": 12}, "takes 12 seeds per group, where B 500 has 8"), ({"sd": 0.05}, "its pilots contradict: sd 0.05, where"),
     ({"effect": 2.0}, "its pilots contradict: effect 2, where")],
)
def test_power_is_what_its_numbers_and_the_pilots_give(fields: dict[str, Any], reason: str | None, tmp_path: Path) -> None:
    """Seeds that were chosen for an effect or a spread that no pilot saw."""
    claim = stated(**fields)
    found = list(powers(tables(tmp_path / "runs", claim), pilots(tmp_path / "pilots", claim)))
    assert (found == []) if reason is None else any(reason in sentence for sentence in found), found


def test_a_claim_that_pilots_find_false_can_be_published(tmp_path: Path) -> None:
    """Only what a study hoped for would reach the board: its size may be for its paper's effect, whatever pilots find."""
    flat: Callable[[int], float] = lambda B: 84.0  # noqa: E731
    claim = stated(effect=0.5)  # the paper's
    assert not list(powers(tables(tmp_path / "a", claim), pilots(tmp_path / "b", claim, test_accuracy=flat)))
    claim = replace(claim, paper_value=None)
    (sentence,) = powers(tables(tmp_path / "a", claim), pilots(tmp_path / "b", claim, test_accuracy=flat))
    assert "effect 0.5" in sentence


def test_runs_of_verdicts_are_no_pilots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that ignores `--pilot` would be judged by the runs of its own verdicts."""
    monkeypatch.setattr("analysis.publishable.committed", lambda path: True)
    claim = stated(sd=0.05)
    found = tables(tmp_path / "runs", claim)
    refuse(found, found, project=True)
    with pytest.raises(StoreError, match="its pilots contradict"):
        refuse(found, pilots(tmp_path / "pilots", claim), project=True)


def test_values_that_no_run_has_are_refused(tmp_path: Path) -> None:
    """A claim with a typing error, published as one that is inconclusive; a row of dashes beside the paper's number."""
    found = tables(tmp_path)
    wrong = replace(FIRST, contrast=replace(FIRST.contrast, value="test_acuracy"))
    (sentence,) = values(replace(found, study=replace(found.study, claims=(wrong,))))
    assert "claim tests-worse of toy speaks of test_acuracy, which none of its 16 runs has" in sentence
    row = replace(found.study.paper[0], value="phi_ful")
    (sentence,) = values(replace(found, study=replace(found.study, paper=(row,))))
    assert "the row test accuracy of Table 2 in toy speaks of phi_ful" in sentence
    lost = next(iter(values(replace(found, runs=found.runs.assign(test_accuracy=float("nan"))))))
    assert "speaks of test_accuracy" in lost


def test_no_verdict_and_no_figure_are_refused(tmp_path: Path) -> None:
    """A page with a claim that was never answered, or a figure that is not there."""
    group = replace(FIRST.contrast.groups[0], where=(("batch_size", 3),))
    wrong = replace(FIRST, contrast=replace(FIRST.contrast, groups=(group, FIRST.contrast.groups[1])))
    found = replace(tables(tmp_path), study=synthetic.study(claims=(wrong,)))
    with pytest.raises(StoreError, match="has no verdict though no run is missing"):
        verdictless(found, verdicts(found))
    empty = Drawn("training_curves", "no data", reason="no finished run has curve points")
    with pytest.raises(StoreError, match="the figure training_curves of toy has nothing to show"):
        undrawn(found, [empty])
    undrawn(found, [replace(empty, name="effects")])  # which a study without claims does not fill
    undrawn(replace(found, runs=found.runs.assign(status="diverged")), [empty])
