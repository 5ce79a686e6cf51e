"""Any values of finished runs against batch size or another number of their configuration: every seed a dot, one line per arm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.shared import (
    CHOICE,
    a_panel_each,
    axis_of,
    choose,
    colours,
    label_of,
    logarithmic,
    named,
    nothing,
    ordered,
    with_field,
    with_value,
)
from analysis.load import Tables
from analysis.stats import mean_interval


def settings() -> dict[str, Any]:
    """`values`: names or (name, label) pairs, a panel each; `x`: a config field or a quotient of two such as lr/batch_size;
    `even`: x evenly spaced, not in octaves; `logarithmic`: True, False or the names of the values on a logarithmic axis; and
    CHOICE."""
    return {"values": ("test_accuracy",), "x": "batch_size", "x_label": None, "even": False, "logarithmic": (), **CHOICE}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per value (role `seed`) and a cell's mean (role `mean`; geometric where logarithmic) with its 95% interval, where
    three values or more give one.

    Values that are not positive have no place on a logarithmic axis: `left_out` counts them. Raises `NoDataError`.
    """
    runs = with_field(choose(tables, options), tables, options["x"])
    parts = []
    for name, label in named(options["values"]):
        log = options["logarithmic"] is True or (options["logarithmic"] is not False and name in options["logarithmic"])
        values = with_value(runs, tables, name)
        known = values[values["value"] > 0] if log else values
        if known.empty:
            raise nothing(tables, f"a {'positive ' if log else ''}{name}")
        facts = {"quantity": name, "label": label, "logarithmic": log, "left_out": len(values) - len(known)}
        parts.append(pd.concat([known.assign(role="seed", low=math.nan, high=math.nan), _means(known, log)]).assign(**facts))
    head = ["quantity", "label", "logarithmic", "left_out", "x_label", "even", "arm", "rank", "graded", "x", "role", "seed",
            "run_id", "value", "low", "high"]
    data = pd.concat(parts, ignore_index=True)
    data = data.assign(x_label=options["x_label"] or label_of(options["x"]), even=options["even"])
    return data.astype({"seed": "Int64"})[head]


def _means(values: pd.DataFrame, log: bool) -> pd.DataFrame:
    rows = []
    for (arm, rank, graded, x), part in values.groupby(["arm", "rank", "graded", "x"]):
        array = part["value"].to_numpy(np.float64)
        found = mean_interval(np.log(array) if log else array)
        mean, low, high = (math.exp(v) for v in found) if log else found
        rows.append({"arm": arm, "rank": rank, "graded": graded, "x": x, "role": "mean", "seed": pd.NA, "run_id": None,
                     "value": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def make_figure(data: pd.DataFrame) -> Figure:
    return a_panel_each(data, _draw)


def _draw(axes: Axes, part: pd.DataFrame, data: pd.DataFrame) -> None:
    place = axis_of(axes, list(part["x"]), str(part["x_label"].iloc[0]), bool(part["even"].iloc[0]))
    of_arm, arms = colours(data), ordered(data)
    step = np.diff(np.unique(place(part["x"]))).min(initial=1.0)
    for k, arm in enumerate(arms):
        own = part[part["arm"] == arm]
        seeds, means = own[own["role"] == "seed"], own[own["role"] == "mean"].sort_values("x")
        shift = step * 0.35 * (k - (len(arms) - 1) / 2) / max(4, len(arms))
        spread = step * 0.03 * (seeds["seed"].to_numpy(np.float64) % 5 - 2)
        axes.scatter(place(seeds["x"]) + shift + spread, seeds["value"], s=14, color=of_arm[arm], alpha=0.6, linewidths=0.4,
                     edgecolors="white", zorder=4)
        known = means.dropna(subset=["low", "high"])
        errors = np.array([known["value"] - known["low"], known["high"] - known["value"]])
        axes.errorbar(place(known["x"]) + shift, known["value"], yerr=errors, fmt="none", ecolor=of_arm[arm], capsize=3)
        axes.plot(place(means["x"]) + shift, means["value"], "-o", ms=3.5, color=of_arm[arm], label=arm)
    first = part.iloc[0]
    if first["logarithmic"]:
        logarithmic(axes.yaxis)
    axes.set_ylabel(str(first["label"]))
    if first["left_out"]:
        axes.set_title(f"{first['left_out']} values ≤ 0 not shown")
