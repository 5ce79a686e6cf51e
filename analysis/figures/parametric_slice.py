"""Keskar's Figure 3: loss and accuracy on the line from the small-batch minimiser (0) to the large-batch one (1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.arms import runs_by_arm
from analysis.figures import NoDataError
from analysis.load import Tables
from analysis.style import INK, panels, style

SPLITS = {"train": ("-", "#0173b2"), "test": ("--", "#d55e00")}
QUANTITIES = {"loss": "cross-entropy (nats), first 2,000", "accuracy": "accuracy (%), first 2,000"}
"""slices look at the first 2,000 examples of each split, final numbers at all"""


def settings() -> dict[str, Any]:
    return {"metric": "slice"}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """Every pair's curves and, with role `mean`, their mean over pairs at each alpha. Raises `NoDataError`."""
    rows = tables.measurements[(tables.measurements["metric"] == options["metric"])]
    ends = {*rows["run_id"], *rows["run_id_b"]}  # other runs of the study do not name these arms
    runs = runs_by_arm(replace(tables, runs=tables.runs[tables.runs["run_id"].isin(ends)])).set_index("run_id")
    parts = []
    for first, second, text in rows[["run_id", "run_id_b", "details"]].itertuples(index=False):
        curves = json.loads(text)
        for split in SPLITS:
            for quantity in QUANTITIES:
                values = curves.get(f"{split}_{quantity}") or []
                if values:
                    parts.append(pd.DataFrame({
                        "arm": runs.loc[first, "arm"], "small": runs.loc[first, "batch_size"],
                        "large": runs.loc[second, "batch_size"], "quantity": quantity, "split": split, "role": "pair",
                        "run_id": first, "run_id_b": second, "alpha": curves["alphas"], "value": values,
                    }))
    if not parts:
        raise NoDataError(f"no pair of runs of {tables.study.name} at scale {tables.scale} has a slice to draw")
    pairs = pd.concat(parts, ignore_index=True)
    keys = ["arm", "small", "large", "quantity", "split", "alpha"]
    means = pairs.groupby(keys, as_index=False)["value"].mean().assign(role="mean")
    return pd.concat([pairs, means], ignore_index=True)


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        arms = sorted(data["arm"].unique())
        quantities = [quantity for quantity in QUANTITIES if quantity in set(data["quantity"])]
        figure, rows = panels(len(quantities), len(arms), width=4.2, height=2.6, sharex=True)
        for k, arm in enumerate(arms):
            for row, quantity in zip(rows, quantities, strict=True):
                part = data[(data["arm"] == arm) & (data["quantity"] == quantity)]
                _draw(row[k], part, quantity)
            pairs = data[(data["arm"] == arm) & (data["role"] == "pair")]["run_id"].nunique()
            rows[0][k].set_title(f"{arm}, {pairs} pairs" if pairs != 1 else f"{arm}, 1 pair")
            small, large = data[data["arm"] == arm][["small", "large"]].iloc[0]
            rows[-1][k].set_xticks([-1, 0, 1, 2], ["−1", f"0\nB {small}", f"1\nB {large}", "2"])
            rows[-1][k].set_xlabel("α")
        rows[0][0].legend(loc="best")
        return figure


def _draw(axes: Axes, part: pd.DataFrame, quantity: str) -> None:
    for at in (0, 1):
        axes.axvline(at, color=INK, lw=0.7)
    for split, (line, colour) in SPLITS.items():
        curves = part[part["split"] == split]
        for _, pair in curves[curves["role"] == "pair"].groupby(["run_id", "run_id_b"]):
            axes.plot(pair["alpha"], pair["value"], line, color=colour, lw=0.7, alpha=0.4)
        mean = curves[curves["role"] == "mean"].sort_values("alpha")
        axes.plot(mean["alpha"], mean["value"], line, color=colour, lw=2, label=f"{split}, mean")
    axes.set_ylabel(QUANTITIES[quantity])
    if quantity == "loss":
        axes.set_yscale("log")
