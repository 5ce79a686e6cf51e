"""Keskar's Figures 1 and 2: accuracy on training and test examples along training, small against large batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.arms import chosen, runs_by_arm
from analysis.figures import NoDataError
from analysis.figures.shared import curve_points
from analysis.load import Tables
from analysis.style import by_batch_size, panels, style

LABELS = {"train_accuracy": "train accuracy (%)", "test_accuracy": "test accuracy (%)"}
NOTE = "measured on the first 2,000 images of a split at most; the last point may lie before the end"


def settings() -> dict[str, Any]:
    """`batch_sizes`: those to draw (default: those that the study compares at this scale); `where` chooses runs."""
    return {"batch_sizes": None, "where": ()}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """Every curve point of the chosen runs, see `curve_points`, and with role `median` the median where every seed has one.

    Raises `NoDataError`.
    """
    runs = runs_by_arm(chosen(tables, options["where"]), "status")
    shown = runs[runs["batch_size"].isin(_sizes(tables, options)) & (runs["status"] != "diverged")]
    points = curve_points(tables).merge(shown, on="run_id")
    if points.empty:
        raise NoDataError(f"no finished run of {tables.study.name} at scale {tables.scale} has curve points to draw")
    keys = ["arm", "batch_size", "step", "epoch"]
    seeds = points[[*keys, "seed", "run_id", *LABELS]].assign(role="seed")
    per_cell = seeds.groupby(["arm", "batch_size"])["run_id"].nunique().rename("seeds")
    grouped = seeds.groupby(keys)
    medians = grouped[list(LABELS)].median().assign(reached=grouped["run_id"].nunique()).reset_index()
    medians = medians.merge(per_cell.reset_index(), on=["arm", "batch_size"])
    medians = medians[medians["reached"] == medians["seeds"]].assign(role="median")
    wide = pd.concat([seeds.astype({"seed": "Int64"}), medians.drop(columns=["reached", "seeds"])], ignore_index=True)
    return wide.melt([*keys, "role", "seed", "run_id"], list(LABELS), var_name="quantity")


def runs_of(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """Of the batch sizes drawn; diverged runs have no curve."""
    runs = chosen(tables, options["where"]).runs
    return runs[runs["batch_size"].isin(_sizes(tables, options))]


def _sizes(tables: Tables, options: Mapping[str, Any]) -> list[int]:
    every = chosen(tables, options["where"]).runs["batch_size"]
    return options["batch_sizes"] or sorted(_compared(tables)) or [every.min(), every.max()]


def _compared(tables: Tables) -> set[int]:
    """Batch sizes of the groups that the study sets beside the paper's."""
    groups = [g for c in tables.study.comparisons if c.scale == tables.scale for g in (c.first, c.second)]
    return {value for group in groups for name, value in group.where if name == "batch_size"}


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        arms = sorted(data["arm"].unique())
        figure, rows = panels(len(arms), 2, width=4.6, height=2.6, sharex=True)
        colours = by_batch_size(list(data["batch_size"]))
        for row, arm in zip(rows, arms, strict=True):
            for axes, quantity in zip(row, LABELS, strict=True):
                _draw(axes, data[(data["arm"] == arm) & (data["quantity"] == quantity)], colours)
                axes.set_ylabel(LABELS[quantity])
            row[0].set_title(arm, loc="left", fontsize=9)
            row[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        for axes in rows[-1]:
            axes.set_xlabel("epoch")
        rows[-1][0].annotate(NOTE, (0, 0), (0, -34), "axes fraction", "offset points", fontsize=6.5, va="top")
        return figure


def _draw(axes: Axes, part: pd.DataFrame, colours: dict[int, Any]) -> None:
    for size, cell in part.groupby("batch_size"):
        colour = colours[int(str(size))]
        for _, run in cell[cell["role"] == "seed"].groupby("run_id"):
            axes.plot(run["epoch"], run["value"], color=colour, lw=0.6, alpha=0.4)
        median = cell[cell["role"] == "median"].sort_values("epoch")
        n = cell["run_id"].nunique()
        axes.plot(median["epoch"], median["value"], color=colour, lw=2.2, label=f"B {size},\nmedian of {n} seeds")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, position: f"{x:g}")
