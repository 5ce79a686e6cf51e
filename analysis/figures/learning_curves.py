"""Curves of training over epochs and over updates, all arms in one panel: thin lines are runs, thick ones their means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.shared import CHOICE, choose, colours, curve_points, legend, logarithmic, nothing, ordered
from analysis.load import Tables
from analysis.style import panels, style

LABELS = {"train_loss": "train loss (nats)", "train_accuracy": "train accuracy (%)", "test_loss": "test loss (nats)",
          "test_accuracy": "test accuracy (%)"}
NOTE = "measured on the first 2,000 images of a split at most; the last point may lie before the end"
AXES = {"epoch": "epoch", "step": "update"}


def settings() -> dict[str, Any]:
    """`values`: of LABELS, a column of panels each; `x`: of AXES, a row each; `logarithmic`: names among both; and CHOICE."""
    return {"values": ("train_loss", "test_accuracy"), "x": ("epoch", "step"), "logarithmic": ("train_loss",), **CHOICE}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per curve point, value and x axis, see `curve_points`: role `seed`, or `mean` where all runs of an arm have it.

    Raises `NoDataError`.
    """
    runs = choose(tables, options, "status")
    points = curve_points(tables).merge(runs[runs["status"] != "diverged"].drop(columns="status"), on="run_id")
    if points.empty:
        raise nothing(tables, "curve points")
    runs = points.groupby("arm")["run_id"].nunique()
    parts = []
    for x in options["x"]:
        for name in options["values"]:
            facts = {"quantity": name, "x_name": x, "log_x": x in options["logarithmic"], "log_y": name in options["logarithmic"]}
            seeds = points.assign(x=points[x].astype(float), value=points[name], role="seed", **facts)
            grouped = seeds.groupby(["arm", "rank", "graded", "x"])
            means = grouped[["value"]].mean().assign(reached=grouped["run_id"].nunique()).reset_index()
            whole = means[means["reached"] == means["arm"].map(runs)].assign(role="mean", **facts)
            parts += [seeds.astype({"seed": "Int64"}), whole]
    head = ["quantity", "x_name", "log_x", "log_y", "arm", "rank", "graded", "role", "seed", "run_id", "x", "value"]
    return pd.concat(parts, ignore_index=True)[head]


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        quantities, places = list(dict.fromkeys(data["quantity"])), list(dict.fromkeys(data["x_name"]))
        figure, rows = panels(len(places), len(quantities), width=4.0, height=2.8)
        for row, place in zip(rows, places, strict=True):
            for axes, quantity in zip(row, quantities, strict=True):
                _draw(axes, data[(data["quantity"] == quantity) & (data["x_name"] == place)], data)
                axes.set_xlabel(AXES[place])
                axes.set_ylabel(LABELS[quantity])
        rows[-1][0].annotate(NOTE, (0, 0), (0, -34), "axes fraction", "offset points", fontsize=6.5, va="top")
        legend(figure, rows[0][0], data, len(quantities))
        return figure


def _draw(axes: Axes, part: pd.DataFrame, data: pd.DataFrame) -> None:
    of_arm = colours(data)
    for arm in ordered(data):
        own = part[part["arm"] == arm]
        for _, run in own[own["role"] == "seed"].groupby("run_id"):
            axes.plot(run["x"], run["value"], color=of_arm[arm], lw=0.5, alpha=0.35)
        mean = own[own["role"] == "mean"].sort_values("x")
        axes.plot(mean["x"], mean["value"], "-o", ms=3, color=of_arm[arm], lw=2, label=arm)
    if part["log_x"].iloc[0]:
        logarithmic(axes.xaxis)
    if part["log_y"].iloc[0]:
        logarithmic(axes.yaxis)
