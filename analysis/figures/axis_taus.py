"""Kendall's tau of several measures with one value: over all runs, and within each hyper-parameter (Jiang et al. 2020, Table 1).

Intervals are those of claims on whole populations: clusters of runs of equal hyper-parameters are resampled, see
`analysis.cluster`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.arms import varying
from analysis.cluster import clustered, replicates
from analysis.families import axis_taus, kendall
from analysis.figures.shared import CHOICE, choose, grid, label_of, named, nothing, with_value
from analysis.load import Tables, config_column
from analysis.stats import Estimate
from analysis.style import INK, style

WHOLE, MEAN = "all runs", "mean over hyper-parameters"


def settings() -> dict[str, Any]:
    """`measures`: names or (name, label) pairs, a row each; `against`: the value; `axes`: hyper-parameters, of which those that
    vary are a panel each; `where` of CHOICE."""
    return {"measures": ("lambda_max",), "against": "gap_accuracy", "axes": (), "where": CHOICE["where"]}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per measure and panel: tau with its 95% interval, and how many `clusters` of runs there are.

    A measure is compared over the runs that have it. Raises `NoDataError`.
    """
    axes = tuple(varying(tables.runs, [config_column(name) for name in options["axes"]]))
    runs = with_value(choose(tables, {**CHOICE, "where": options["where"]}, *axes), tables, options["against"], "against")
    # in the order of claims, so that the same clusters are drawn and the intervals are theirs
    order = {planned.config.run_id: i for i, planned in enumerate(tables.planned)}
    runs = runs.sort_values("run_id", key=lambda ids: ids.map(order))
    panels = [WHOLE, *(f"within {label_of(name)}" for name in axes), MEAN]

    def taus(frame: pd.DataFrame) -> np.ndarray:
        within = axis_taus(frame, "value", against_value="against", axes=axes)
        return np.array([kendall(frame, "value", against_value="against"), *within, within.mean()])

    rows = []
    for name, label in named(options["measures"]):
        frame = with_value(runs, tables, name)
        if frame.empty or not axes:
            raise nothing(tables, f"both {name} and {options['against']}")
        population = clustered(frame, axes)
        found, drawn = taus(frame), replicates(population, taus)
        for panel, tau, se in zip(panels, found, np.nanstd(drawn, axis=0, ddof=1), strict=True):
            low, high = Estimate(float(tau), float(se), population.clusters - 1).interval()
            rows.append({"panel": panel, "measure": label, "tau": tau, "low": low, "high": high, "runs": len(frame),
                         "clusters": population.clusters})
    return pd.DataFrame(rows)


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        panels, measures = list(dict.fromkeys(data["panel"])), list(dict.fromkeys(data["measure"]))
        figure, flat, columns = grid(len(panels), height=0.9 + 0.26 * len(measures))
        for i, (axes, panel) in enumerate(zip(flat, panels, strict=True)):
            _draw(axes, data[data["panel"] == panel], measures)
            axes.set_title(panel)
            if i % columns:
                axes.set_yticklabels([])
            axes.set_xlabel("Kendall's τ, 95% interval")
        return figure


def _draw(axes: Axes, part: pd.DataFrame, measures: list[str]) -> None:
    axes.axvline(0, color=INK, lw=0.8)
    rows = part.set_index("measure").loc[measures]
    error = [rows["tau"] - rows["low"], rows["high"] - rows["tau"]]
    axes.errorbar(rows["tau"], range(len(measures)), xerr=error, fmt="o", ms=4, color=INK, capsize=2.5)
    axes.set_yticks(range(len(measures)), measures)
    axes.set_ylim(len(measures) - 0.5, -0.5)
    axes.set_xlim(-1.02, 1.02)
