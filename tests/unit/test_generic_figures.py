"""Figures that any study may ask for: what they plot is what the records hold, and nothing is lost without a word."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from synthetic import LAMBDA, PHI, Truth, config

from analysis.arms import chosen, runs_by_arm
from analysis.draw import draw
from analysis.figures import NoDataError, along_training
from analysis.load import Tables, from_store
from analysis.style import style
from experiments.lab.declare.config import Optimizer, RunConfig
from experiments.lab.declare.study import Figure, Request, Stage

TRAIN, TUNE = (("where", (("stage", "train"),)),), (("where", (("stage", "tune"),)),)
KINDS = {
    "values_vs_batch": (*TRAIN, ("values", ("test_accuracy", ("lambda_max", "sharpness"))), ("logarithmic", ("lambda_max",))),
    "along_training": (("metric", "curve"), ("y", ("sharpness", "loss")), ("threshold", "limit")),
    "scatter": (*TRAIN, ("x", ("lambda_max", "phi_full")), ("logarithmic", ("phi_full",)), ("arm", ("batch_size",))),
    "lr_grid": (*TUNE, ("score", "test_accuracy")),
    "learning_curves": (*TRAIN, ("arm", ("batch_size", "weight_decay"))),
    "bars": (),
}
STEPS = [0, 10, 20]


def train(request: Request, records: object) -> list[RunConfig]:
    return [config(size, seed, weight_decay=decay, optimizer=Optimizer.SGD)
            for size in (16, 500) for decay in (0.0, 5e-4) for seed in range(3)]


def tune(request: Request, records: object) -> list[RunConfig]:
    return [config(size, 500, lr=lr) for size in (16, 500) for lr in (0.01, 0.02, 0.04)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    study = synthetic.study((synthetic.claim("worse", primary=True),),
                            (Stage("train", train, measures=lambda: (LAMBDA, *PHI.values())), Stage("tune", tune)))
    truth = Truth(status=lambda c: "diverged" if c.lr == 0.04 and c.batch_size == 16 else "done")
    found = from_store(study, "quick", synthetic.write(tmp_path_factory.mktemp("store"), study, truth))
    runs = found.runs[(found.runs["stage"] == "train") & (found.runs["weight_decay"] == 0)]
    rows = [{"run_id": run, "metric": "curve", "options": "{}", "value": 1.0, "status": "ok", "details": json.dumps(curve(size))}
            for run, size in runs[["run_id", "batch_size"]].itertuples(index=False)]
    return replace(found, measurements=pd.concat([found.measurements, pd.DataFrame(rows)], ignore_index=True))


def curve(size: int) -> dict[str, Any]:
    return {"steps": STEPS, "sharpness": [None, size, 2 * size], "loss": [2.0, 1.0, 0.5], "limit": 40.0}


def data_of(kind: str, tables: Tables, **options: Any) -> pd.DataFrame:
    module = importlib.import_module(f"analysis.figures.{kind}")
    return module.load_data(tables, {**module.settings(), **dict(KINDS[kind]), **options})


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_whole(kind: str, tables: Tables, tmp_path: Path) -> None:
    """Other bytes for the same records, a panel without data or names, text off the page."""
    figure = Figure(kind, kind, KINDS[kind])
    first, again = draw(figure, tables, tmp_path / "a"), draw(figure, tables, tmp_path / "a")
    assert (first.state, again.state) == ("drawn", "unchanged")
    drawn = importlib.import_module(f"analysis.figures.{kind}").make_figure(data_of(kind, tables))
    with style():
        drawn.draw_without_rendering()
    assert all(axes.has_data() and axes.get_xlabel() and axes.get_ylabel() for axes in drawn.axes)
    box, page = drawn.get_tightbbox(), drawn.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page[0] + 1e-6 and box.y1 <= page[1] + 1e-6


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bars"])
def test_nothing_to_draw_is_one_sentence(kind: str, tables: Tables) -> None:
    """A traceback, or an empty picture, where runs are still missing."""
    empty = replace(tables, **{name: getattr(tables, name).iloc[:0] for name in ("runs", "measurements")})
    with pytest.raises(NoDataError, match=r"^no [^.\n]*toy[^.\n]*$"):
        data_of(kind, empty)


def test_values(tables: Tables) -> None:
    """A value at another batch size or arm than its run's; an arithmetic mean on a logarithmic axis; tuning runs among them."""
    data = data_of("values_vs_batch", tables)
    part = data[(data["quantity"] == "lambda_max") & (data["role"] == "seed")]
    assert len(part) == 12 and set(part["arm"]) == {"no weight decay", "weight decay 0.0005"}
    run = tables.runs.set_index("run_id").loc[part["run_id"]]
    assert (run["batch_size"].to_numpy() == part["x"].to_numpy()).all()
    cell = part[(part["x"] == 16) & (part["arm"] == "no weight decay")]["value"]
    means = data[(data["quantity"] == "lambda_max") & (data["role"] == "mean") & (data["x"] == 16)]
    assert means.iloc[0]["value"] == pytest.approx(np.exp(np.log(cell.astype(float)).mean()))
    quotient = data_of("values_vs_batch", tables, x="lr/batch_size")
    assert set(quotient["x"]) == {1e-3 / 16, 1e-3 / 500} and set(quotient["x_label"]) == {"learning rate / batch size"}
    with pytest.raises(ValueError, match="'optimizer' is none"):
        data_of("values_vs_batch", tables, x="optimizer")
    with pytest.raises(ValueError, match="'batchsize'"):
        data_of("values_vs_batch", tables, where=(("batchsize", 16),))


def test_arms(tables: Tables) -> None:
    """Arms of keskar2017 renamed by a new field; runs that differ in a number and share an arm; explicit arms mixed up."""
    assert set(runs_by_arm(chosen(tables, (("weight_decay", 0.0), ("stage", "train"))))["arm"]) == {"matched train loss"}
    found = runs_by_arm(tables, "rank", "weight_decay", "optimizer")
    assert set(found["arm"]) == {"train, SGD, no weight decay", "train, SGD, weight decay 0.0005", "tune, Adam, no weight decay"}
    named = runs_by_arm(tables, "weight_decay", arms=(("all", ()), ("decay", (("weight_decay", 5e-4),))))
    assert named["arm"].value_counts().to_dict() == {"all": len(tables.runs), "decay": 6}


def test_curves(tables: Tables) -> None:
    """A null drawn as 0; a mean where not every run has a point; the threshold of another run."""
    data = data_of("along_training", tables)
    sharp = data[data["quantity"] == "sharpness"]
    assert set(sharp[sharp["role"] == "mean"]["x"]) == {10, 20} and set(data["arm"]) == {"B 16", "B 500"}
    mean = sharp[(sharp["role"] == "mean") & (sharp["arm"] == "B 500")].set_index("x")["value"]
    assert mean.to_dict() == {10: 500.0, 20: 1000.0}
    assert (sharp[sharp["role"] == "threshold"]["value"] == 40.0).all() and len(data[data["role"] == "seed"]) == 6 * 5


def test_mean_of_curves_of_unlike_steps() -> None:
    """Runs that stop at their own step, of which none had a mean; a mean on other axes than those drawn."""
    curves = pd.DataFrame({"run_id": list("aaabb"), "x": [0, 1, 100, 1, 10000], "value": [7.0, 1.0, 100.0, 1.0, 10000.0]})
    mean = along_training._mean(curves.assign(logarithmic=True), {"log_x": True})
    assert mean.round(6).to_dict("list") == {"x": [1, 100], "value": [1.0, 100.0]}  # both are value = x


def test_tau_of_a_scatter(tables: Tables) -> None:
    """A title over other runs than those drawn."""
    data = data_of("scatter", tables)
    part = data[data["quantity"] == "lambda_max"]
    assert len(part) == 12 and part["tau"].iloc[0] > 0.3 and part["left_out"].iloc[0] == 0


def test_best_of_a_grid(tables: Tables) -> None:
    """A learning rate with a divergence marked as the best, or not shown at all."""
    data = data_of("lr_grid", tables)
    assert data[data["role"] == "diverged"]["lr"].tolist() == [0.04]
    means = data[data["role"] == "mean"]
    assert len(means) == 5 and means["best"].sum() == 2
    turned = data_of("lr_grid", tables, larger_is_better=False)
    assert turned[turned["best"]]["value"].sum() <= means[means["best"]]["value"].sum()
    worst = float(means["value"].mean())
    shown = data_of("lr_grid", tables, worst=worst)
    assert shown["value"].min() >= worst and "off the scale" in set(shown["role"]), "a run is left out without a cross"


def test_groups_of_a_claim(tables: Tables) -> None:
    """A group under another's name; a claim that does not exist."""
    data = data_of("bars", tables)
    assert data[data["role"] == "seed"].groupby("group").size().to_dict() == {"B 16": 8, "B 500": 9}
    with pytest.raises(ValueError, match="no claim 'wors'"):
        data_of("bars", tables, claims=("wors",))
