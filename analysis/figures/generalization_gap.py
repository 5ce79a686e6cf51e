"""The picture of the dispute: the generalization gap in accuracy against the batch size, and in cross-entropy beside it.

The two need not agree: a network can be right more often and yet surer of its mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.arms import chosen, runs_by_arm
from analysis.figures import NoDataError
from analysis.figures.per_batch_size import draw, points_and_means
from analysis.load import Tables
from analysis.style import panels, style

LABELS = {
    "gap_accuracy": ("generalization gap in accuracy", "train − test accuracy (points)"),
    "test_accuracy": ("test accuracy", "test accuracy (%)"),
    "gap_loss": ("generalization gap in cross-entropy", "test − train loss (nats)"),
}


def settings() -> dict[str, Any]:
    """`quantities`: those of LABELS to draw, of which tasks without an accuracy have the last; `where` chooses runs, `arm` lists
    the fields that tell arms apart (default: those that vary, except for learning rates)."""
    return {"quantities": tuple(LABELS), "where": (), "arm": None}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """Every finished run's final accuracies, and each cell's mean and 95% interval. Raises `NoDataError`."""
    frame = runs_by_arm(chosen(tables, options["where"]), *options["quantities"], fields=options["arm"])
    parts = []
    for quantity in options["quantities"]:
        values = frame[["arm", "batch_size", "seed", "run_id"]].assign(value=frame[quantity]).dropna(subset="value")
        if len(values):
            parts.append(points_and_means(values, quantity, logarithmic=False))
    if not parts:
        asked = " or ".join(options["quantities"])
        raise NoDataError(f"no finished run of {tables.study.name} at scale {tables.scale} has a {asked} to draw")
    data = pd.concat(parts, ignore_index=True)
    others = set(tables.runs["loss"]) - {"cross_entropy"}
    return data.assign(loss=", ".join(sorted(others))) if others else data


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        quantities = list(dict.fromkeys(data["quantity"]))
        figure, rows = panels(1, len(quantities))
        for axes, quantity in zip(rows[0], quantities, strict=True):
            draw(axes, data[data["quantity"] == quantity])
            title, label = LABELS[quantity]
            if "loss" in data and quantity == "gap_loss":  # another than cross-entropy, of units that nobody knows
                title, label = f"generalization gap in {data['loss'].iloc[0]}", label.removesuffix(" (nats)")
            axes.set_title(title)
            axes.set_ylabel(label)
        if data["arm"].nunique() > 1:
            handles, names = rows[0][0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=2)
        return figure
