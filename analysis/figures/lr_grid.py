"""Tuning: the score of every learning rate tried, a line a batch size, the best marked; where a run diverged, a cross."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.shared import CHOICE, axis_of, choose, grid, label_of, logarithmic, nothing, ordered, with_value
from analysis.load import Tables
from analysis.style import INK, by_batch_size, style

FLOOR = 0.03
"""height of the crosses, as a fraction of the axis"""


def settings() -> dict[str, Any]:
    """`score`: a value of the runs, `label` how it is named; `larger_is_better`; `logarithmic` for the score; CHOICE, whose arms
    are the panels (where=(("stage", "tune"),) leaves out everything but tuning)."""
    return {"score": "validation_accuracy", "label": None, "larger_is_better": True, "logarithmic": False, **CHOICE}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row a run (role `seed`, or its status where it has no place on the axis) and a row a learning rate with the mean of its
    runs; `best` marks the best of those whose runs are all done. Raises `NoDataError`."""
    runs = choose(tables, options, "lr", "status")
    done = with_value(runs[runs["status"] == "done"], tables, options["score"])
    if done.empty:
        raise nothing(tables, f"a {options['score']}")
    rest = runs[~runs["run_id"].isin(done["run_id"])]
    seeds = pd.concat([done.assign(role="seed"), rest.assign(role=rest["status"], value=math.nan)], ignore_index=True)
    keys = ["arm", "rank", "graded", "batch_size", "lr"]
    means = seeds.groupby(keys)["value"].agg(lambda values: values.mean(skipna=False)).reset_index().dropna(subset="value")
    turned = means["value"] if options["larger_is_better"] else -means["value"]
    best = turned.groupby([means["arm"], means["batch_size"]]).idxmax()
    means = means.assign(role="mean", best=means.index.isin(best))
    data = pd.concat([seeds.assign(best=False), means], ignore_index=True).astype({"seed": "Int64"})
    return data.assign(label=options["label"] or label_of(options["score"]), logarithmic=options["logarithmic"])


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        arms = ordered(data)
        figure, flat, columns = grid(len(arms), width=4.0)
        colours = by_batch_size(list(data["batch_size"]))
        for axes, arm in zip(flat, arms, strict=True):
            _draw(axes, data[data["arm"] == arm], colours)
            if len(arms) > 1:
                axes.set_title(arm)
        handles = [Line2D([], [], color=colour, label=f"B {size}") for size, colour in colours.items()]
        handles.append(Line2D([], [], color=INK, marker="*", ms=10, ls="", label="best"))
        if not set(data["role"]) <= {"seed", "mean"}:
            handles.append(Line2D([], [], color=INK, marker="x", ls="", label="diverged or capped"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4 * columns))
        return figure


def _draw(axes: Axes, part: pd.DataFrame, colours: Mapping[int, Any]) -> None:
    place = axis_of(axes, list(part["lr"]), "learning rate")
    for size, own in part.groupby("batch_size"):
        colour = colours[int(str(size))]
        seeds, means = own[own["role"] == "seed"], own[own["role"] == "mean"].sort_values("lr")
        axes.scatter(place(seeds["lr"]), seeds["value"], s=10, color=colour, alpha=0.5, linewidths=0)
        axes.plot(place(means["lr"]), means["value"], "-o", ms=3, color=colour)
        best = means[means["best"]]
        axes.plot(place(best["lr"]), best["value"], "*", ms=11, color=colour, markeredgecolor="white", zorder=5)
    lost = part[~part["role"].isin(["seed", "mean"])]
    for k, (size, own) in enumerate(lost.groupby("batch_size")):
        axes.scatter(place(own["lr"]), [FLOOR * (1 + k)] * len(own), marker="x", s=22, color=colours[int(str(size))],
                     transform=axes.get_xaxis_transform())  # fmt: skip
    if bool(part["logarithmic"].iloc[0]):
        logarithmic(axes.yaxis)
    if len(lost):
        axes.margins(y=0.15)
    axes.set_ylabel(str(part["label"].iloc[0]))
