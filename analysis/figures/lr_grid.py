"""Tuning: the score of every learning rate tried, a line per batch size, the best marked; where a run diverged, a cross."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.shared import CHOICE, axis_of, choose, grid, label_of, logarithmic, nothing, ordered, with_value
from analysis.load import Tables
from analysis.style import INK, by_batch_size, style

STRIP = 0.12
"""of the axis, its lowest part, has the crosses: a row per batch size"""
MARKS = "os^DvPXhp<"


def settings() -> dict[str, Any]:
    """`score`: a value of the runs, `label` how it is named; `larger_is_better`; `logarithmic` for the score; `worst`: the worst
    that has a place on the axis (default: all have); CHOICE, whose arms are the panels (where=(("stage", "tune"),) leaves out
    everything but tuning)."""
    return {"score": "validation_accuracy", "label": None, "larger_is_better": True, "worst": None, "logarithmic": False,
            **CHOICE}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """Rows per run (role `seed`, or its status where it has no place on the axis) and per learning rate with the mean of its
    runs; `best` marks the best of those whose runs are all done, of a batch size's rates those tried with the most seeds. Raises
    `NoDataError`."""
    runs, worst = choose(tables, options, "lr", "status"), options["worst"]
    done = with_value(runs[runs["status"] == "done"], tables, options["score"])
    sign = 1 if options["larger_is_better"] else -1
    done = done if worst is None else done[sign * done["value"] >= sign * worst]
    if done.empty:
        raise nothing(tables, f"a {options['score']}")
    rest = runs[~runs["run_id"].isin(done["run_id"])]
    lost = rest.assign(role=rest["status"].replace("done", "off the scale"), value=math.nan)
    seeds = pd.concat([done.assign(role="seed"), lost], ignore_index=True)
    keys, cell = ["arm", "rank", "graded", "batch_size", "lr"], ["arm", "batch_size"]
    tried = seeds.groupby(keys)["value"]
    means = tried.agg(lambda values: values.mean(skipna=False)).to_frame().assign(tried=tried.size()).reset_index()
    means = means.dropna(subset="value")
    most = means[means["tried"] == means.groupby(cell)["tried"].transform("max")]
    best = (sign * most["value"]).groupby([most["arm"], most["batch_size"]]).idxmax()
    means = means.drop(columns="tried").assign(role="mean", best=means.index.isin(best))
    data = pd.concat([seeds.assign(best=False), means], ignore_index=True).astype({"seed": "Int64"})
    return data.assign(label=options["label"] or label_of(options["score"]), logarithmic=options["logarithmic"])


def runs_of(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """None lacks a point: diverged runs are crosses."""
    return tables.runs.iloc[:0]


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        arms = ordered(data)
        figure, flat, columns = grid(len(arms), width=4.0)
        colours = by_batch_size(list(data["batch_size"]))
        marks = marks_of(list(colours))
        for axes, arm in zip(flat, arms, strict=True):
            _draw(axes, data[data["arm"] == arm], colours, marks)
            if len(arms) > 1:
                axes.set_title(arm)
        handles = [Line2D([], [], color=colour, marker=marks[size], ms=4, label=f"B {size}") for size, colour in colours.items()]
        handles.append(Line2D([], [], color=INK, marker="*", ms=10, ls="", label="best"))
        if not set(data["role"]) <= {"seed", "mean"}:
            far = ", or off the scale" if "off the scale" in set(data["role"]) else ""
            handles.append(Line2D([], [], color=INK, marker="x", ls="", label=f"did not finish{far}"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4 * columns))
        return figure


def marks_of(sizes: Sequence[int]) -> dict[int, str]:
    """A marker per batch size, for lines of many lie close together."""
    return dict(zip(sizes, cycle(MARKS), strict=False))


def _draw(axes: Axes, part: pd.DataFrame, colours: Mapping[int, Any], marks: Mapping[int, str]) -> None:
    place = axis_of(axes, list(part["lr"]), "learning rate")
    for size, own in part.groupby("batch_size"):
        colour, mark = colours[int(str(size))], marks[int(str(size))]
        seeds, means = own[own["role"] == "seed"], own[own["role"] == "mean"].sort_values("lr")
        axes.scatter(place(seeds["lr"]), seeds["value"], s=10, color=colour, alpha=0.5, linewidths=0)
        axes.plot(place(means["lr"]), means["value"], "-", marker=mark, ms=4, color=colour)
        best = means[means["best"]]
        axes.plot(place(best["lr"]), best["value"], "*", ms=11, color=colour, markeredgecolor="white", zorder=5)
    lost = part[~part["role"].isin(["seed", "mean"])]
    row = STRIP / max(1, lost["batch_size"].nunique())
    for k, (size, own) in enumerate(lost.groupby("batch_size")):
        axes.scatter(place(own["lr"]), [row * (k + 0.5)] * len(own), marker="x", s=22, color=colours[int(str(size))],
                     transform=axes.get_xaxis_transform())
    if bool(part["logarithmic"].iloc[0]):
        logarithmic(axes.yaxis)
    if len(lost):
        low, high = axes.get_ylim()
        room = STRIP * 1.25 / (1 - STRIP * 1.25)  # so that no point lies in the strip
        log = axes.get_yscale() == "log"
        axes.set_ylim(low / (high / low) ** room if log else low - room * (high - low), high)
    axes.set_ylabel(str(part["label"].iloc[0]))
