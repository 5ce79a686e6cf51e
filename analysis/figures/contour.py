"""Contours of the training loss on a plane through weight space, with named points such as two minimisers and the start.

Drawn from measurements whose `details` are {alphas [A], betas [B], train_loss [A][B], points [{label, x, y}]}: train_loss[i][j]
is the loss at (alphas[i], betas[j]), null where it was not finite, and points are in the same coordinates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from analysis.arms import runs_by_arm
from analysis.figures import NoDataError
from analysis.load import Tables
from analysis.style import INK, panels, style

PANELS = 4
LEVELS = 11
FLOOR = 1e-6
"""a loss of 0, or below this, has no place on a logarithmic scale: it is drawn as this"""


def settings() -> dict[str, Any]:
    return {"metric": "plane", "panels": PANELS}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per grid point (role `grid`, with `loss`) and a named point (role `point`, with `label`), for the first seeds.

    `shown` and `measured` count planes. Raises `NoDataError`.
    """
    rows = tables.measurements[tables.measurements["metric"] == options["metric"]]
    order = runs_by_arm(tables).merge(rows[["run_id", "details"]], on="run_id").sort_values(["seed", "run_id"])
    parts = []
    for run, seed, arm, text in order[["run_id", "seed", "arm", "details"]].itertuples(index=False):
        details = json.loads(text)
        if details.get("train_loss") and len(parts) < options["panels"]:
            parts.append(tidy(details).assign(panel=len(parts), run_id=run, seed=seed, arm=arm))
    if not parts:
        raise NoDataError(f"no run of {tables.study.name} at scale {tables.scale} has a plane to draw")
    return pd.concat(parts, ignore_index=True).assign(measured=len(order))


def tidy(details: Mapping[str, Any]) -> pd.DataFrame:
    """One plane's grid and points as rows with role, x, y, loss and label. Raises ValueError for a grid of another shape."""
    alphas, betas = np.asarray(details["alphas"], float), np.asarray(details["betas"], float)
    losses = np.array([[np.nan if v is None else v for v in row] for row in details["train_loss"]], float)
    if losses.shape != (len(alphas), len(betas)):
        raise ValueError(f"a plane has losses of shape {losses.shape}, and {len(alphas)} alphas and {len(betas)} betas")
    x, y = np.meshgrid(alphas, betas, indexing="ij")
    grid = pd.DataFrame({"role": "grid", "x": x.ravel(), "y": y.ravel(), "loss": losses.ravel(), "label": ""})
    points = pd.DataFrame([
        {"role": "point", "x": float(p["x"]), "y": float(p["y"]), "loss": np.nan, "label": str(p["label"])}
        for p in details.get("points", ())
    ])
    return pd.concat([grid, points], ignore_index=True) if len(points) else grid


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        numbers = sorted(data["panel"].unique())
        columns = len(numbers) if len(numbers) < 4 else 2
        figure, rows = panels(-(-len(numbers) // columns), columns, width=3.6, height=3.2)
        axes = [ax for row in rows for ax in row]
        levels = _levels(data["loss"])
        drawn = [_draw(ax, data[data["panel"] == number], levels) for ax, number in zip(axes, numbers, strict=True)]
        for ax in axes:
            ax.set_ylabel("β")
        for ax in rows[-1]:
            ax.set_xlabel("α")
        bar = figure.colorbar(drawn[0], ax=axes, label=_bar_label(data), format=_number)
        bar.set_ticks(list(levels[::2]))
        bar.ax.minorticks_off()
        bar.ax.grid(False)
        return figure


def _levels(losses: pd.Series) -> np.ndarray:
    """Equally spaced logarithms, over the losses of all panels, so that a colour means the same in each."""
    finite = losses[np.isfinite(losses)].clip(lower=FLOOR)
    if finite.empty:
        raise NoDataError("no loss of the planes is finite: there is nothing to draw")
    low, high = float(finite.min()), float(finite.max())
    if high <= low * 1.01:
        low, high = low / 1.1, high * 1.1
    return np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), LEVELS)


def _draw(axes: Axes, part: pd.DataFrame, levels: np.ndarray) -> Any:
    grid = part[part["role"] == "grid"].pivot(index="y", columns="x", values="loss")
    losses = np.ma.masked_invalid(grid.to_numpy(float).clip(min=FLOOR))
    x, y = grid.columns.to_numpy(float), grid.index.to_numpy(float)
    axes.grid(False)
    axes.set_facecolor("#d9d9d9")  # where the loss is not finite
    norm = LogNorm(levels[0], levels[-1])
    filled = axes.contourf(x, y, losses, levels=levels, norm=norm, cmap=matplotlib.colormaps["cividis"])
    axes.contour(x, y, losses, levels=levels[1:-1:2], colors="white", linewidths=0.6, alpha=0.8)
    points = part[part["role"] == "point"]
    axes.set_xlim(_limits(x, points["x"]))
    axes.set_ylim(_limits(y, points["y"]))
    axes.set_title(f"seed {part['seed'].iloc[0]}")
    for row in points.itertuples():
        _mark(axes, float(row.x), float(row.y), str(row.label))  # pyright: ignore[reportArgumentType]
    return filled


def _limits(grid: np.ndarray, points: pd.Series) -> tuple[float, float]:
    """The grid, and points beside it with some room for their marks."""
    low, high = min([grid.min(), *points]), max([grid.max(), *points])
    room = 0.04 * (high - low)
    return (low - room * (low < grid.min()), high + room * (high > grid.max()))


def _mark(axes: Axes, x: float, y: float, label: str) -> None:
    """A point, and its name on the side where the panel has more room."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    to_left, below = x > (left + right) / 2, y > (bottom + top) / 2
    outline = [withStroke(linewidth=2.2, foreground="white")]
    axes.plot([x], [y], "o", color="#d55e00", markeredgecolor="white", markersize=6, zorder=4)
    axes.annotate(
        label, (x, y), xytext=(-5 if to_left else 5, -5 if below else 5), textcoords="offset points",
        ha="right" if to_left else "left", va="top" if below else "bottom", color=INK, path_effects=outline, zorder=5,
    )


def _number(value: float, position: int | None = None) -> str:
    return f"{value:.2g}"


def _bar_label(data: pd.DataFrame) -> str:
    shown, measured = data["panel"].nunique(), int(data["measured"].iloc[0])
    left = f"; {shown} of {measured} planes" if measured > shown else ""
    holes = "; grey: not finite" if data[data["role"] == "grid"]["loss"].isna().any() else ""
    return f"training loss (nats){holes}{left}"
