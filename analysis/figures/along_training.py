"""Curves that a measurement found along training: thin lines are runs, thick ones means over the runs of an arm.

A mean is taken wherever one of the arm's runs has a point, from where all have begun to where the first ends; between its points
a run is the straight line drawn.

Drawn from measurements whose `details` hold a list of places (`x`) and one list for each of `y`, null where there is no value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.arms import FIELDS, chosen, varying
from analysis.figures.shared import CHOICE, a_panel_each, choose, colours, logarithmic, named, nothing, ordered
from analysis.load import Tables
from analysis.style import INK


def settings() -> dict[str, Any]:
    """`metric` with the details `x` and `y` (names or (name, label) pairs, a panel each); `threshold`: a detail, one number or a
    list beside x, dashed in the first panel; `logarithmic`: names of y; `log_x`; `rise`: y minus its value at x = 0; and CHOICE
    (arms differ in batch size too)."""
    return {"metric": None, "x": "steps", "x_label": "update", "y": (), "threshold": None, "threshold_label": "threshold",
            "logarithmic": (), "log_x": False, "rise": False, **CHOICE}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per point of a curve: role `seed`, `threshold`, or `mean` over an arm's runs.

    Raises `NoDataError`.
    """
    rows = tables.measurements[(tables.measurements["metric"] == options["metric"]) & tables.measurements["run_id_b"].isna()]
    measured = chosen(replace(tables, runs=tables.runs[tables.runs["run_id"].isin(rows["run_id"])]), options["where"])
    fields = options["arm"] or (varying(measured.runs, ("batch_size", *FIELDS)) or varying(measured.runs, ("lr",)) or None)
    merged = choose(measured, {**options, "arm": fields}).merge(rows[["run_id", "details"]], on="run_id")
    parts = []
    for run in merged.to_dict("records"):
        details = json.loads(run.pop("details"))
        curves = [(name, label, "seed", details.get(name)) for name, label in named(options["y"])]
        if options["threshold"] is not None and curves:
            name, label, _, _ = curves[0]
            curves.append((name, label, "threshold", details.get(options["threshold"])))
        for name, label, role, values in curves:
            if values is not None and details.get(options["x"]):
                listed = values if isinstance(values, list) else [values] * len(details[options["x"]])
                numbers = np.array([np.nan if v is None else v for v in listed], float)
                if options["rise"]:
                    numbers = numbers - numbers[np.argmin(np.abs(details[options["x"]]))]
                parts.append(pd.DataFrame({**run, "quantity": name, "label": label, "role": role, "x": details[options["x"]],
                                           "value": numbers, "logarithmic": name in options["logarithmic"]}))
    if not parts:
        raise nothing(tables, f"a {options['metric']} with {' and '.join(name for name, _ in named(options['y'])) or 'curves'}")
    points = pd.concat(parts, ignore_index=True).dropna(subset="value")
    keys = ["arm", "rank", "graded", "quantity", "label", "logarithmic"]
    seeds = points[points["role"] == "seed"]
    means = [_mean(part, options).assign(**dict(zip(keys, key, strict=True)), role="mean") for key, part in seeds.groupby(keys)]
    facts = {"x_label": options["x_label"], "log_x": options["log_x"], "threshold_label": options["threshold_label"]}
    return pd.concat([points, *means], ignore_index=True).assign(**facts).astype({"seed": "Int64", "batch_size": "Int64"})


def _mean(seeds: pd.DataFrame, options: Mapping[str, Any]) -> pd.DataFrame:
    """x and mean value over the runs, on the axes as drawn: what a logarithmic one cannot show takes no part."""
    log_x, log = bool(options["log_x"]), bool(seeds["logarithmic"].iloc[0])
    if log_x:
        seeds = seeds[seeds["x"] > 0]
    if log:
        seeds = seeds[seeds["value"] > 0]
    curves = [run.sort_values("x") for _, run in seeds.groupby("run_id")]
    if not curves:
        return pd.DataFrame({"x": [], "value": []})
    first, last = max(run["x"].min() for run in curves), min(run["x"].max() for run in curves)
    x = np.unique(seeds["x"][seeds["x"].between(first, last)])
    at = np.log if log_x else np.asarray
    mean = np.mean([np.interp(at(x), at(run["x"]), np.log(run["value"]) if log else run["value"]) for run in curves], axis=0)
    return pd.DataFrame({"x": x, "value": np.exp(mean) if log else mean})


def make_figure(data: pd.DataFrame) -> Figure:
    return a_panel_each(data, _draw, width=4.2)


def _draw(axes: Axes, part: pd.DataFrame, data: pd.DataFrame) -> None:
    of_arm = colours(data)
    for arm in ordered(data):
        own = part[part["arm"] == arm]
        for _, run in own[own["role"] == "seed"].groupby("run_id"):
            axes.plot(run["x"], run["value"], color=of_arm[arm], lw=0.7, alpha=0.45)
        mean = own[own["role"] == "mean"].sort_values("x")
        axes.plot(mean["x"], mean["value"], color=of_arm[arm], lw=2, label=arm)
        limits = own[own["role"] == "threshold"]
        for _, run in limits[limits["run_id"] == limits["run_id"].min()].groupby("run_id"):
            axes.plot(run["x"], run["value"], "--", color=of_arm[arm], lw=1)
    if (part["role"] == "threshold").any():
        axes.set_title(f"dashed: {part['threshold_label'].iloc[0]}", color=INK)
    first = part.iloc[0]
    if first["logarithmic"]:
        logarithmic(axes.yaxis)
    if first["log_x"]:
        logarithmic(axes.xaxis)
    axes.set_xlabel(str(first["x_label"]))
    axes.set_ylabel(str(first["label"]))
