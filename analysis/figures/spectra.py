"""Spectral densities of the Hessian, a panel per arm: thin lines are runs, coloured by batch size, one seed of each thick."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.arms import runs_by_arm
from analysis.figures import NoDataError
from analysis.load import Tables
from analysis.style import by_batch_size, panels, style


def settings() -> dict[str, Any]:
    """`metric` whose details hold `eigenvalue` and `density`; `floor`: the smallest density drawn, per unit of eigenvalue."""
    return {"metric": "spectrum", "floor": 1e-6}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per point of a run's density, without a value where it is below the floor. Raises `NoDataError`."""
    rows = tables.measurements[tables.measurements["metric"] == options["metric"]]
    runs = runs_by_arm(tables).merge(rows[["run_id", "details"]], on="run_id")
    if runs.empty:
        raise NoDataError(f"no finished run of {tables.study.name} at scale {tables.scale} has a {options['metric']} to draw")
    parts = []
    for run in runs.to_dict("records"):
        details = json.loads(run["details"])
        head = {name: run[name] for name in ("arm", "batch_size", "seed", "run_id")}
        parts.append(pd.DataFrame({**head, "eigenvalue": details["eigenvalue"], "density": details["density"]}))
    data = pd.concat(parts, ignore_index=True)
    return data.assign(density=data["density"].where(data["density"] >= options["floor"]))


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        arms = sorted(data["arm"].unique())
        figure, rows = panels(1, len(arms), width=4.2, height=3.2, sharey=True)
        colours = by_batch_size(list(data["batch_size"]))
        for axes, arm in zip(rows[0], arms, strict=True):
            _draw(axes, data[data["arm"] == arm], colours)
            axes.set_title(arm, loc="left")
            axes.set_xlabel("Hessian eigenvalue")
        rows[0][0].set_ylabel("density per unit of eigenvalue")
        rows[0][-1].legend(loc="upper right")
        return figure


def _draw(axes: Axes, part: pd.DataFrame, colours: dict[int, Any]) -> None:
    for size, cell in part.groupby("batch_size"):
        for number, (_, run) in enumerate(cell.sort_values("seed", kind="stable").groupby("run_id", sort=False)):
            first = number == 0
            axes.plot(run["eigenvalue"], run["density"], color=colours[int(str(size))], lw=1.8 if first else 0.6,
                      alpha=1.0 if first else 0.4, label=f"B {size}" if first else None)
    axes.set_yscale("log")
