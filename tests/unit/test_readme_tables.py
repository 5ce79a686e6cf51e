"""What the README, the board and the pages of the studies say is what the published records give."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.draw import code_of, figures_of
from analysis.figures import Drawn
from analysis.load import Tables, from_published
from analysis.publish import full_board, renewed
from analysis.report import markdown as page_of
from analysis.report import tried_at
from analysis.verdicts import Verdict, verdicts
from experiments.lab.sweep import board

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "figures").glob("*/*/runs.parquet"))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def tables(folder: Path) -> Tables:
    return from_published(folder)


@pytest.fixture(scope="module")
def found(tables: Tables) -> list[Verdict]:
    return verdicts(tables)


def words(page: str) -> str:
    """A page of the project without its line breaks."""
    return " ".join((ROOT / page).read_text().split())


def test_board_is_current() -> None:
    """A count in the README or a verdict on the board that is not the published one; `python -m analysis publish` renews them."""
    text, found = (ROOT / "README.md").read_text(), board.published()
    assert text.count("<!-- begin:board -->") == 1 and f"{len(found)} published verdicts" in text
    assert renewed(text, found) == text and full_board(found) == (ROOT / "figures" / "README.md").read_text()


def test_readme_shows_what_reproduce_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """A first screen that promises other verdicts, or other words, than a reader will see."""
    text = (ROOT / "README.md").read_text()
    assert main(["verdicts", "keskar2017", "--scale", "quick", "--published"]) == 0
    assert f"```text\n{capsys.readouterr().out}\n  published " in text and text.count(" same\n") == 5
    runs = from_published(ROOT / "figures" / "keskar2017" / "quick").runs
    assert f"trains the {runs['run_id'].nunique()} networks" in text and f"{runs['n_train'].max():,} images" in text


def test_page_is_current(tables: Tables, found: list[Verdict], folder: Path) -> None:
    """A study's page with numbers, figures or deviations that are not its own any more."""
    drawn = [Drawn(figure.name, "unchanged", ("", "")) for figure in figures_of(tables.study, tables.scale)]
    assert page_of(tables, found, drawn) == (folder / "README.md").read_text()


def test_verdicts_are_current(found: list[Verdict], folder: Path) -> None:
    """Verdicts that were published before the claims or the statistics changed."""
    published = json.loads((folder / "verdicts.json").read_text())
    # another processor may round a quantile otherwise
    for ours, theirs in zip([v.to_dict() for v in found], published, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name


def test_what_was_tried_is_said(tables: Tables, found: list[Verdict]) -> None:
    """A reader of a claim that was not reproduced could not tell whether the claim or the scale is at fault."""
    assert tried_at(tables.study, tables.scale) or all(verdict.verdict == "reproduced" for verdict in found)


def test_all_runs_are_published(tables: Tables) -> None:
    """Records that lack a run of the study."""
    assert (tables.missing_runs, tables.missing_measurements) == (0, 0)


def test_figures_are_of_these_records(tables: Tables, folder: Path) -> None:
    """A figure of older runs or older code, or of claims that were reworded since."""
    for figure in figures_of(tables.study, tables.scale):
        origin = json.loads((folder / f"{figure.name}.json").read_text())
        assert origin["code_sha256"] == code_of(import_module(f"analysis.figures.{figure.kind}")), f"draw {figure.name} anew"
        assert (origin["tables_sha256"], origin["runs"]) == (tables.digest, sorted(tables.runs["run_id"]))
        assert origin["claims"] == {claim.id: claim.hash for claim in tables.study.claims_at(tables.scale)}


def claims_of(study: str, scale: str) -> dict[str, dict]:
    """The published verdicts by the claims' names."""
    found = [v for v in board.published() if (v["study"], v["scale"]) == (study, scale)]
    return {v["claim"].removeprefix(f"{scale}-"): v for v in found}


def test_sentences_of_smith2020_are_the_verdicts() -> None:
    """The answer to who is right, with numbers that no interval gives."""
    text = words("docs/findings.md")
    found = claims_of("smith2020", "quick")
    gap, loss = found["equal-steps-gap"], found["equal-steps-train-loss"]
    seeds, both = (f"[{gap[f'{of}_low']:.3g}, {gap[f'{of}_high']:.3g}]" for of in ("ci", "both"))
    assert f"{gap['effect']:.3g} points better than 1,024 ({seeds} over seeds, {both} over seeds and test examples)" in text
    assert gap["ci90_high"] < 0.5
    assert f"at a {1 / loss['ratio']:.2f} times higher training loss" in text
    cifar = claims_of("smith2020", "laptop")
    large, lower = cifar["equal-steps-gap"], cifar["equal-steps-train-loss"]
    short = f"{gap['effect']:.3g} points on Fashion-MNIST and {large['effect']:.2f} points on CIFAR-10 (JPEG copy)"
    assert short in words("README.md")
    seeds, both = (f"[{large[f'{of}_low']:.2f}, {large[f'{of}_high']:.2f}]" for of in ("ci", "both"))
    assert f"{large['effect']:.2f} points better than 1,024 ({seeds} over seeds, {both} over seeds and test examples)" in text
    low, high = lower["ratio_low"], lower["ratio_high"]
    assert f"at a {lower['ratio']:.2f} times lower training loss [{low:.2f}, {high:.2f}]" in text and large["ci_low"] > 0.5
    carried = from_published(ROOT / "figures" / "smith2020" / "laptop").runs
    carried = carried[carried["stage"].str.startswith("untuned") & (carried["scaling"] == "none")]
    alike = carried.groupby("batch_size")["test_accuracy"].mean().loc[[256, 1024]].round(1)
    assert alike.nunique() == 1 and f"256 and 1,024 test alike, {alike.iloc[0]}%" in text
    runs = from_published(ROOT / "figures" / "smith2020" / "quick").runs
    tuned = runs[(runs["stage"].isin(["tune", "confirm"])) & (runs["target_steps"] == 512)].groupby(["batch_size", "lr"])
    values = tuned[["validation_accuracy", "test_accuracy", "train_loss"]].mean()
    chosen, other, small = values.loc[(1024, 0.04)], values.loc[(1024, 0.08)], values.loc[(256, 0.08)]
    assert f"prefers by {chosen['validation_accuracy'] - other['validation_accuracy']:.2f} points" in text
    assert abs(chosen["test_accuracy"] - other["test_accuracy"]) < 0.1 and 3 < small["train_loss"] / other["train_loss"] < 3.5


def test_sentences_of_dose_are_the_verdicts() -> None:
    """Shares and factors that are not those of the published runs."""
    text, shares = words("docs/findings.md"), []
    for scale, where in (("quick", "on Fashion-MNIST"), ("laptop", "on CIFAR-10 (JPEG copy)")):
        runs, rng = from_published(ROOT / "figures" / "dose" / scale).runs, np.random.default_rng(0)
        cells = [(stage, b) for stage, b in (("noise", 128), ("small", 128), ("noise", 512), ("sam", 512))]
        values = [runs[(runs["stage"] == s) & (runs["noise_batch"] == b)]["test_accuracy"].to_numpy() for s, b in cells]
        noise, small, plain, sam = (v.mean() for v in values)
        drawn = [rng.choice(v, (20000, len(v))).mean(1) for v in values]
        low, high = np.percentile((drawn[0] - drawn[2]) / (drawn[1] - drawn[2]), [2.5, 97.5])
        share = f"{100 * (noise - plain) / (small - plain):.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
        assert f"{share} of the {small - plain:.2f} points {where}" in text
        shares.append(f"{100 * (noise - plain) / (small - plain):.0f}%")
        if scale == "quick":
            low, high = np.percentile((drawn[3] - drawn[2]) / (drawn[1] - drawn[2]), [2.5, 97.5])
            share = f"{100 * (sam - plain) / (small - plain):.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
            assert f"SAM at the same lambda_max gives back {share}" in text
    short = f"{shares[0]} of the difference between them on Fashion-MNIST and {shares[1]} on CIFAR-10 (JPEG copy)"
    assert short in words("README.md")
    assert f"{1 / claims_of('dose', 'laptop')['noise-flattens']['ratio']:.2f} times larger with the noise" in text


def test_sentences_of_laptop_are_the_verdicts() -> None:
    """Numbers of the CIFAR-10 studies that are not the published ones."""
    text = words("docs/findings.md")
    keskar, shallue, wu = (claims_of(name, "laptop") for name in ("keskar2017", "shallue2019", "wu2018"))
    behind = keskar["c1-train_loss-tests-worse"]["effect"]
    assert f"500 tests {behind:.1f} points worse" in text
    quick = claims_of("keskar2017", "quick")["f1-train_loss-tests-worse"]["effect"]
    short = f"500 is {quick:.2f} points behind 32 on Fashion-MNIST and {behind:.1f} points on CIFAR-10 (JPEG copy)"
    assert short in words("README.md")
    sharper = keskar["c1-train_loss-sharper-phi-full"]
    assert f"{sharper['ratio']:.1f} times larger (the paper's C1: {math.exp(sharper['paper_value']):.1f} times)" in text
    assert shallue["perfect-scaling"]["verdict"] == shallue["maximal-parallelism"]["verdict"] == "reproduced"
    noise = [math.exp(shallue["noise-scale-predicts"][name]) for name in ("effect", "ci_low", "ci_high")]
    assert f"is {noise[0]:.2f} times the gradient's noise scale [{noise[1]:.2f}, {noise[2]:.2f}]" in text
    assert f"batch norm loses {wu['batch-norm-worse']['effect']:.2f} points from batch size 32 to 2" in text
    assert f"tests {-wu['group-norm-better']['effect']:.2f} points above group norm even there" in text
    assert wu["group-norm-flat"]["effect"] < 0
