"""masters2018, smith2018 and jastrzebski2018: what their stages compare, and the curves of training by arm."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import synthetic

from analysis.figures import learning_curves
from analysis.load import from_store
from experiments import jastrzebski2018, masters2018, smith2018
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import Record, Request
from experiments.lab.training.batch_schedule import batch_schedule, total_steps

SCALES = ("quick", "laptop", "paper")


def tuning(scale: str, best_size: int) -> list[Record]:
    """Tuning runs, best at `best_size` and one octave below the middle of every grid."""

    def score(c: RunConfig) -> float:
        rates = masters2018.STUDY.scale(scale).settings.rates(c.batch_size)
        return 80 - abs(rates.index(c.lr) - 3) - abs(math.log2(c.batch_size / best_size))

    runs = masters2018.STUDY.stages[0].runs_of(Request(scale), ())
    return [Record(c, "done", {"validation_accuracy": score(c)}) for c in runs]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("best_size", [4, 16, 256])
def test_masters_small_batch_is_small_and_tuned(scale: str, best_size: int) -> None:
    """The side that the paper calls small holds batches of 64, or two batch sizes at once, or a size is on both sides."""
    settings, records = masters2018.STUDY.scale(scale).settings, tuning(scale, best_size)
    best, final = (stage.runs_of(Request(scale), records) for stage in masters2018.STUDY.stages[1:])
    expected = min(best_size, max(size for size in settings.batch_sizes if size <= masters2018.SMALL))
    assert {c.batch_size for c in best} == {expected} and len(best) == settings.seeds
    assert {c.batch_size for c in final} == set(settings.batch_sizes) - {expected}
    assert all(c.lr == settings.rates(c.batch_size)[3] for c in (*best, *final))
    assert {c.seed for c in (*best, *final)}.isdisjoint(r.config.seed for r in records)
    assert {*settings.narrow, settings.other, settings.large} <= set(settings.batch_sizes)


@pytest.mark.parametrize("scale", SCALES)
def test_masters_windows_are_equally_wide(scale: str) -> None:
    """A batch size with a wider grid would have the wider range of learning rates."""
    settings = masters2018.STUDY.scale(scale).settings
    for size in settings.batch_sizes:
        base = np.log2([lr / size for lr in settings.rates(size)])
        assert np.allclose(np.diff(base), 1) and len(base) == 2 * settings.octaves + 1


@pytest.mark.parametrize("scale", SCALES)
def test_smith_arms_see_the_same_examples(scale: str) -> None:
    """The arm that grows would train for more or fewer epochs, or change elsewhere than the schedule does."""
    decay, grown, constant = smith2018.STUDY.stages[0].runs_of(Request(scale), ())[:3]
    n = constant.n_train or 0
    steps = [total_steps(c, n) or 0 for c in (decay, grown, constant)]
    seen = [batch_schedule(c, n).seen(s) for c, s in zip((decay, grown, constant), steps, strict=True)]
    assert seen[0] == seen[2] and abs(seen[1] - seen[0]) <= grown.batch_size * 100 / 2
    assert steps[1] < 0.6 * steps[0] == 0.6 * steps[2]
    assert [p.size for p in batch_schedule(grown, n).phases] == [grown.batch_size * 10**k for k in range(3)]
    assert len({c.lr for c in (decay, grown, constant)}) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_jastrzebski_ratios(scale: str) -> None:
    """Cells called equal would have another lr / B."""
    cells = jastrzebski2018.cells(jastrzebski2018.STUDY.scale(scale).settings)
    ratios = [c.lr / c.batch_size / (cells[0].lr / cells[0].batch_size) for c in cells]
    assert ratios == pytest.approx([1, 1, 1, 4, 1]) and cells[1].batch_size == cells[3].batch_size
    assert all(c.batch_size <= (c.n_train or 0) for c in cells)


def test_curves_are_the_rows_of_history(tmp_path: Path) -> None:
    """Means over runs that have not all come so far, or curves against the wrong axis."""
    study = synthetic.study()
    tables = from_store(study, "quick", synthetic.write(tmp_path, study))
    rows = tables.history[tables.history["kind"] == "eval"]
    data = learning_curves.load_data(tables, {**learning_curves.settings(), "arm": ("batch_size",)})
    for x in ("epoch", "step"):
        one = data[(data["quantity"] == "test_accuracy") & (data["x_name"] == x) & (data["role"] == "seed")]
        assert sorted(zip(one["x"], one["value"], strict=True)) == sorted(zip(rows[x], rows["test_accuracy"], strict=True))
    means = data[(data["quantity"] == "test_accuracy") & (data["x_name"] == "epoch") & (data["role"] == "mean")]
    assert len(means) and means["value"].between(rows["test_accuracy"].min(), rows["test_accuracy"].max()).all()
