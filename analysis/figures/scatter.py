"""One value of every run against others: does it order the runs as they are ordered by the first? Kendall's tau in the titles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.families import kendall
from analysis.figures.shared import CHOICE, a_panel_each, choose, colours, logarithmic, named, nothing, ordered, with_value
from analysis.load import Tables


def settings() -> dict[str, Any]:
    """`x`: names or (name, label) pairs, a panel each; `y`: one; `logarithmic`: names of values on logarithmic axes; and CHOICE,
    whose arms are the colours."""
    return {"x": ("lambda_max",), "y": "gap_accuracy", "logarithmic": (), **CHOICE}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per run and quantity x; tau is over the runs that have both values. Raises `NoDataError`."""
    ((y_name, y_label),) = named((options["y"],))
    runs = with_value(choose(tables, options), tables, y_name, "y")
    parts = []
    for name, label in named(options["x"]):
        both = with_value(runs, tables, name, "x")
        for column, quantity in (("x", name), ("y", y_name)):
            both = both[both[column] > 0] if quantity in options["logarithmic"] else both
        if both.empty:
            raise nothing(tables, f"both {name} and {y_name}")
        parts.append(both.assign(
            quantity=name, label=label, y_label=y_label, log_x=name in options["logarithmic"],
            log_y=y_name in options["logarithmic"], tau=kendall(both, "y", against_value="x"), left_out=len(runs) - len(both),
        ))
    return pd.concat(parts, ignore_index=True)


def make_figure(data: pd.DataFrame) -> Figure:
    return a_panel_each(data, _draw)


def _draw(axes: Axes, part: pd.DataFrame, data: pd.DataFrame) -> None:
    of_arm = colours(data)
    for arm in ordered(data):
        own = part[part["arm"] == arm]
        axes.scatter(own["x"], own["y"], s=18, color=of_arm[arm], alpha=0.8, linewidths=0.4, edgecolors="white", label=arm)
    first = part.iloc[0]
    if first["log_x"]:
        logarithmic(axes.xaxis)
    if first["log_y"]:
        logarithmic(axes.yaxis)
    axes.set_xlabel(str(first["label"]))
    axes.set_ylabel(str(first["y_label"]))
    lost = f", {first['left_out']} not shown" if first["left_out"] else ""
    axes.set_title(f"τ = {first['tau']:.2f} over {len(part)} runs{lost}")
