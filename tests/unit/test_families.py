"""One number from several runs: statistics against closed forms, and from a store of runs to a verdict."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from synthetic import SIZES, Truth

from analysis import families
from analysis.cells import cells
from analysis.load import DEFAULTS, Tables, check_families, from_published, from_store
from analysis.verdicts import INCONCLUSIVE, REPRODUCED, Verdict, verdicts
from experiments.lab.declare.claims import Claim, Contrast, Family, Gate, Group, Kind
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.finding import search
from experiments.lab.store import published_settings as settings

NAN = math.nan


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


SIZE = [16, 64, 256, 500]


def test_slope() -> None:
    """Another base of the logarithm, or an intercept forced through 0; a gap that vanishes without a word."""
    y = [3.0 * size**0.7 for size in SIZE]
    assert families.slope(frame(batch_size=SIZE, y=y), "y") == pytest.approx(0.7)
    assert families.slope(frame(batch_size=SIZE, y=np.log2(y)), "y", logarithmic=False) == pytest.approx(0.7)
    noisy = [1.0, 5.0, 3.0, 9.0]
    assert families.slope(frame(lr=SIZE, y=noisy), "y", field="lr") == pytest.approx(
        np.polyfit(np.log2(SIZE), np.log2(noisy), 1)[0]
    )
    for bad in ([1.0, NAN, 3.0, 9.0], [1.0, -1.0, 3.0, 9.0]):
        assert math.isnan(families.slope(frame(batch_size=SIZE, y=bad), "y"))
    assert math.isnan(families.slope(frame(batch_size=[8, 8], y=[1.0, 2.0]), "y"))


def test_kendall() -> None:
    """tau-a in place of tau-b where values are tied; runs without a value that are not counted against `least`."""
    x, y = [1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]
    assert families.kendall(frame(x=x, y=y), "y", against_value="x") == pytest.approx(5 / math.sqrt(5 * 6))
    assert families.kendall(frame(x=x, y=y[::-1]), "y", against_value="x") == pytest.approx(-5 / math.sqrt(5 * 6))
    lost = frame(x=x, y=[1.0, NAN, 3.0, 4.0])
    assert math.isnan(families.kendall(lost, "y", against_value="x"))
    assert families.kendall(lost, "y", against_value="x", least=0.75) == pytest.approx(1.0)
    assert math.isnan(families.kendall(frame(x=[1.0, 1.0], y=[1.0, 2.0]), "y", against_value="x"))


def test_learning_rates() -> None:
    """A range that jumps over a divergence, an optimum among runs without a value, seeds that are not averaged."""
    lr = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]
    y = [80.0, 84.5, 85.0, 84.6, NAN, 84.9]
    curve = frame(lr=lr + lr, y=y + [x + 0.1 for x in y])
    assert families.stable_range(curve, "y", tolerance=0.6) == pytest.approx(2.0)
    assert families.stable_range(curve, "y", tolerance=0.1) == 0.0
    assert families.best_at(curve, "y") == pytest.approx(math.log2(0.04))
    upside_down = curve.assign(y=-curve["y"])
    assert families.stable_range(upside_down, "y", tolerance=0.6, larger_is_better=False) == pytest.approx(2.0)
    assert families.best_at(upside_down, "y", larger_is_better=False) == pytest.approx(math.log2(0.04))
    one_lost = frame(lr=[1.0, 1.0, 2.0, 2.0], y=[9.0, NAN, 5.0, 5.0])
    assert families.best_at(one_lost, "y") == 1.0  # log2 2: at 1.0 one of two runs diverged
    nothing = frame(lr=[1.0, 2.0], y=[NAN, NAN])
    assert math.isnan(families.best_at(nothing, "y")) and math.isnan(families.stable_range(nothing, "y", tolerance=1))


def test_distance_between() -> None:
    """Nearer and farther would be mistaken for below and above."""
    frame = pd.DataFrame({"batch_size": [8, 64, 32], "train_loss": [0.4, 0.1, 9.0]})
    for first, second in ((8, 64), (64, 8)):
        found = families.distance_between(frame, "train_loss", first=first, second=second)
        assert found == pytest.approx(math.log(4))
    assert math.isnan(families.distance_between(frame, "train_loss", first=8, second=16))
    assert math.isnan(families.distance_between(frame.assign(train_loss=math.nan), "train_loss", first=8, second=64))


@pytest.mark.parametrize("critical", [20.0, 300.0])
def test_critical_batch(critical: float) -> None:
    """E_min / S_min not recovered from points on the curve; an answer where no trade-off was seen."""
    size = np.array([8, 32, 128, 512, 2048])
    steps = 50 * (1 + critical / size)
    assert families.critical_batch(frame(batch_size=size, steps=steps), "steps") == pytest.approx(math.log(critical))
    s, e = steps / steps.min(), size * steps / (size * steps).min()
    assert (s > 1).any() and (e > 1).any()  # both ends of the trade-off are in the data
    assert math.isnan(families.critical_batch(frame(batch_size=size, steps=5000.0 / size), "steps"))
    assert math.isnan(families.critical_batch(frame(batch_size=[8, 8, 16], steps=[3.0, 3.0, 2.0]), "steps"))


def test_critical_batch_over() -> None:
    """A prediction that is judged by its arithmetic mean, or where a run has none."""
    size = np.array([8, 32, 128, 512])
    runs = frame(batch_size=size, steps=50 * (1 + 100 / size), noise=[25.0, 50.0, 50.0, 100.0])
    assert families.critical_batch_over(runs, over_value="noise") == pytest.approx(math.log(2))
    assert math.isnan(families.critical_batch_over(runs.assign(noise=[math.nan, 50, 50, 100]), over_value="noise"))


def test_log_ratio_to() -> None:
    """The mean of logarithms, or the ratio turned around."""
    assert families.log_ratio_to(frame(x=[1.0, 3.0], y=[3.0, 5.0]), "y", to_value="x") == pytest.approx(math.log(2))
    assert math.isnan(families.log_ratio_to(frame(x=[1.0, -3.0], y=[3.0, 5.0]), "y", to_value="x"))


ALL = Group("every batch size", 1.0, ())


def claim(family: Family, value: str = "lambda_max", **options: Any) -> Claim:
    gates = (Gate("min_seeds", 8), Gate("status", 0.1))
    contrast = Contrast(value, (ALL,), 1, "octaves per octave", family=family)
    return Claim("it", "it holds", Kind.DIRECTIONAL, contrast, 0.1, primary=True, gates=gates, **options)


def answer(root: Path, asked: Claim, truth: Truth | None = None) -> tuple[Verdict, Tables]:
    study = synthetic.study((asked,))
    tables = from_store(study, "quick", synthetic.write(root, study, truth or Truth()))
    return verdicts(tables)[0], tables


def test_a_slope_a_seed_is_reproduced(tmp_path: Path) -> None:
    """The runs in place of the families are counted, or a slope is not that of its seed's runs."""
    found, tables = answer(tmp_path, claim(Family("slope")))
    assert (found.verdict, found.n_seeds, len(found.runs)) == (REPRODUCED, synthetic.SEEDS, synthetic.SEEDS * len(SIZES))
    assert found.effect == pytest.approx(0.9, abs=0.05) and found.both_low is None and found.p_permutation is None
    one = tables.runs[tables.runs["seed"] == 3].merge(tables.measurements.query("metric == 'lambda_max'"), on="run_id")
    by_hand = np.polyfit(np.log2(one["batch_size"].astype(float)), np.log2(one["value"]), 1)[0]
    assert cells(tables.study.claims[0], tables)[0].values[3] == pytest.approx(by_hand)


def test_missing_diverged_and_unmeasured_runs(tmp_path: Path) -> None:
    """A family with a hole that counts; a diverged run that costs nothing, or everything."""
    slope = claim(Family("slope"))
    hole = Truth(status=lambda c: None if c.seed == 2 and c.batch_size == 64 else "done")
    found, tables = answer(tmp_path / "hole", slope, hole)
    assert (found.verdict, found.missing, found.n_seeds) == (None, 1, synthetic.SEEDS - 1)
    lost = Truth(status=lambda c: "diverged" if c.seed == 2 and c.batch_size == 64 else "done")
    found, tables = answer(tmp_path / "lost", slope, lost)
    (cell,) = cells(slope, tables)
    assert (cell.unusable, cell.diverged, cell.expected, cell.missing) == (1, 1, synthetic.SEEDS, 0)
    assert found.verdict == INCONCLUSIVE and "1 of 8 families have no slope of lambda_max" in found.decided_by
    counted = replace(slope, diverged_as=1.0)
    assert verdicts(replace(tables, study=synthetic.study((counted,))))[0].n_seeds == synthetic.SEEDS
    tau = claim(Family("kendall", (), (("against_value", "gap_accuracy"), ("least", 0.9))))
    (cell,) = cells(tau, tables)
    assert cell.expected == 1 and len(cell.values) == 1 and -1 <= cell.values[0] <= 1
    (cell,) = cells(claim(Family("slope", ("batch_size",), (("field", "seed"),)), "phi_full.value_origin"), tables)
    assert cell.expected == len(SIZES)


def test_values_of_details_and_config_fields(tmp_path: Path) -> None:
    """A family over a learning rate, or against a detail of a measurement, that is never found."""
    family = Family("kendall", (), (("against_value", "phi_full.value_origin"),))
    _, tables = answer(tmp_path, claim(family, "batch_size"))
    (cell,) = cells(tables.study.claims[0], tables)
    assert cell.values[0] > 0.5


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (Family("slop"), "no statistic 'slop'"),
        (Family("kendall"), "against_value"),
        (Family("slope", options=(("fields", "lr"),)), "fields"),
        (Family("slope", ("batch",)), "'batch' is neither"),
    ],
)
def test_a_wrong_family_is_one_sentence(family: Family, words: str) -> None:
    """A traceback after an hour of training."""
    with pytest.raises(UsageError, match=f"claim it of toy: .*{words}"):
        check_families(synthetic.study((claim(family),)))


def test_every_study_names_known_statistics() -> None:
    """A study whose verdict could never be given."""
    for study in search().studies.values():
        check_families(study)


def test_tables_made_before_a_field_existed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent column read as True or NaN, or a digest that changes although no run did."""
    _, tables = answer(tmp_path / "store", claim(Family("slope")))
    digest = tables.digest
    monkeypatch.setattr("analysis.load.find", lambda study, scale: tables.study)
    for name in ("runs", "history", "measurements", "correct"):
        getattr(tables, name).to_parquet(tmp_path / f"{name}.parquet")
    newer = ["sam_rho", "sam_adaptive", "ema", "noise_batch", "clip_norm", "batch_growth", "nesterov"]
    tables.runs.drop(columns=newer).to_parquet(tmp_path / "runs.parquet")
    document = json.loads(settings.content([(run.stage, run.config) for run in tables.planned]))
    for name in newer:
        del document["shared"][name], document["defaults"][name]
    (tmp_path / settings.FILE).write_text(json.dumps(document))
    read = from_published(tmp_path)
    pd.testing.assert_frame_equal(read.runs, tables.runs)
    assert read.planned == tables.planned
    assert not read.runs["sam_adaptive"].any() and (read.runs["sam_rho"] == DEFAULTS["sam_rho"]).all()
    assert read.digest == digest
    assert replace(tables, runs=tables.runs.assign(sam_rho=0.1)).digest != digest
    assert verdicts(read)[0].effect == verdicts(tables)[0].effect
