"""Batch size against learning rate: the mean over seeds of a value as a colour, with its spread; diverged runs are counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure

from analysis.figures.shared import CHOICE, choose, grid, label_of, nothing, ordered, with_value
from analysis.load import Tables
from analysis.style import INK, style

SCORES = ("test_accuracy", "test_loss")
LOST = "#d9d9d9"
"""a cell whose runs have no value"""
CELL = (0.78, 0.52)
"""inches"""


def settings() -> dict[str, Any]:
    """`score`: a value of the runs (default: test accuracy, or test loss where no run has one), `label` how it is named; CHOICE,
    whose arms are the panels."""
    return {"score": None, "label": None, **CHOICE}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per arm, batch size and learning rate: `value`, the mean over the runs that are not diverged, their standard
    deviation `sd`, how many `runs` there are and how many `diverged`. Raises `NoDataError`."""
    runs = choose(tables, options, "lr", "status")
    scores = SCORES if options["score"] is None else (options["score"],)
    known = {name: with_value(runs, tables, name) for name in scores}
    score = next((name for name, values in known.items() if len(values)), None)
    if score is None:
        raise nothing(tables, f"a {' or '.join(scores)}")
    keys = ["arm", "rank", "batch_size", "lr"]
    cells = runs.groupby(keys).agg(runs=("run_id", "size"), diverged=("status", lambda status: int((status == "diverged").sum())))
    values = known[score].groupby(keys)["value"].agg(value="mean", sd="std")
    nats = bool((tables.runs["loss"] == "cross_entropy").all())
    label = options["label"] or (label_of(score) if nats else label_of(score).removesuffix(" (nats)"))
    return cells.join(values).reset_index().assign(label=label)


def runs_of(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """None lacks a place: cells count their diverged runs."""
    return tables.runs.iloc[:0]


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        arms = ordered(data)
        sizes, rates = sorted(data["batch_size"].unique()), sorted(data["lr"].unique())
        width, height = max(3.3, 1.3 + CELL[0] * len(sizes)), max(2.4, 0.8 + CELL[1] * len(rates))
        figure, flat, _ = grid(len(arms), width=width, height=height)
        known = data["value"].dropna()
        low, high = float(known.min()), float(known.max())
        norm = Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)
        for axes, arm in zip(flat, arms, strict=True):
            _draw(axes, data[data["arm"] == arm], sizes, rates, norm)
            if len(arms) > 1:
                axes.set_title(arm)
        bar = figure.colorbar(ScalarMappable(norm, "cividis"), ax=flat, label=f"{data['label'].iloc[0]}, mean ± sd")
        bar.ax.grid(False)
        return figure


def _draw(axes: Axes, part: pd.DataFrame, sizes: list[int], rates: list[float], norm: Normalize) -> None:
    colours, image = matplotlib.colormaps["cividis"], np.full((len(rates), len(sizes), 4), 1.0)
    for row in part.to_dict("records"):
        x, y, value = sizes.index(row["batch_size"]), rates.index(row["lr"]), row["value"]
        colour = to_rgba(LOST) if math.isnan(value) else colours(norm(value))
        image[y, x] = colour
        dark = not math.isnan(value) and float(np.dot(colour[:3], (0.3, 0.59, 0.11))) < 0.5
        axes.text(x, y, "\n".join(_words(row)), ha="center", va="center", fontsize=6.5, color="white" if dark else INK)
    edges = [np.arange(count + 1) - 0.5 for count in (len(sizes), len(rates))]
    axes.pcolormesh(*edges, image, edgecolors="white", linewidth=1)
    axes.grid(False)
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_xlabel("batch size")
    axes.set_ylabel("learning rate")


def _words(row: Mapping[Any, Any]) -> list[str]:
    """What stands in a cell: the mean, the spread where there are two runs or more, and the diverged."""
    mean, sd = row["value"], row["sd"]
    digits = min(4, max(0, 1 - math.floor(math.log10(sd)))) if sd > 0 else None
    words = [] if math.isnan(mean) else [f"{mean:.3g}" if digits is None else f"{mean:.{digits}f} ± {sd:.{digits}f}"]
    return words + ([f"{row['diverged']} of {row['runs']}", "diverged"] if row["diverged"] else [])
