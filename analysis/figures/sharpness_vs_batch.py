"""Sharpness of the final weights against the batch size: lambda_max, and Keskar's phi in full space and in a subspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.arms import chosen, measured_by_arm
from analysis.figures import NoDataError
from analysis.figures.per_batch_size import draw, points_and_means
from analysis.figures.shared import logarithmic
from analysis.load import Tables
from analysis.style import panels, style

LABELS = {
    "lambda_max": ("largest Hessian eigenvalue", r"$\lambda_{\max}$"),
    "phi_full": (r"Keskar's $\varphi$, full space", r"$\varphi$ (%)"),
    "phi_subspace": (r"Keskar's $\varphi$, random subspace", r"$\varphi$ (%)"),
}


def settings() -> dict[str, Any]:
    return {"metrics": tuple(LABELS), "where": ()}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """Every positive measurement, and each cell's geometric mean and 95% interval. Raises `NoDataError`.

    A logarithmic axis has no place for values that are not positive: the figure's titles count them.
    """
    parts = []
    for metric in options["metrics"]:
        values = measured_by_arm(chosen(tables, options["where"]), metric)
        positive = values[values["value"] > 0]
        if not positive.empty:
            part = points_and_means(positive, metric, logarithmic=True)
            parts.append(part.assign(not_positive=len(values) - len(positive)))
    if not parts:
        raise NoDataError(
            f"no run of {tables.study.name} at scale {tables.scale} has a positive {' or '.join(options['metrics'])} to draw"
        )
    return pd.concat(parts, ignore_index=True)


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        metrics = list(dict.fromkeys(data["quantity"]))
        figure, rows = panels(1, len(metrics))
        for axes, metric in zip(rows[0], metrics, strict=True):
            part = data[data["quantity"] == metric]
            draw(axes, part)
            logarithmic(axes.yaxis)
            title, label = LABELS.get(metric, (metric, metric))
            left_out = int(part["not_positive"].iloc[0])
            axes.set_title(f"{title}\n{left_out} values ≤ 0 not shown" if left_out else title)
            axes.set_ylabel(label)
        if data["arm"].nunique() > 1:
            handles, names = rows[0][0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=2)
        return figure
