"""Contours of a plane: drawn whole, legible, and from the documented details only."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis.arms import FIELDS
from analysis.figures import NoDataError, contour
from analysis.load import config_column
from analysis.style import save, style

ALPHAS, BETAS = np.linspace(-0.5, 1.5, 21), np.linspace(-0.6, 1.2, 17)
POINTS = [{"label": "B 32", "x": 0.0, "y": 0.0}, {"label": "B 1000", "x": 1.0, "y": 0.0}, {"label": "start", "x": 0.4, "y": 1.0}]


def details(seed: int, points=POINTS, hole: bool = False) -> dict:
    """Two valleys, the second one narrower and shifted by the seed."""
    x, y = np.meshgrid(ALPHAS, BETAS, indexing="ij")
    wide, narrow = 4 * x**2 + 2 * y**2, 60 * (x - 1) ** 2 + 30 * y**2
    loss = 0.004 * (1 + seed) + np.minimum(wide, narrow) * (1 + 0.2 * seed)
    rows = loss.tolist()
    if hole:
        rows[-1][-1] = None
    return {"alphas": ALPHAS.tolist(), "betas": BETAS.tolist(), "train_loss": rows, "points": points}


def tables(*planes: dict) -> SimpleNamespace:
    """As much of `Tables` as the figure looks at; later seeds first."""
    runs = pd.DataFrame({"run_id": [f"r{i}" for i in range(len(planes))], "seed": range(len(planes)), "batch_size": 32,
                         **dict.fromkeys(map(config_column, FIELDS)), "budget": "train_loss"})
    measurements = pd.DataFrame({"metric": "plane", "run_id": runs["run_id"], "details": [json.dumps(p) for p in planes]})[::-1]
    return SimpleNamespace(runs=runs, measurements=measurements, study=SimpleNamespace(name="toy"), scale="quick")


def data(*planes: dict) -> pd.DataFrame:
    return contour.load_data(tables(*planes), contour.settings())


def boxes(figure):
    """Of every text that is shown, in pixels, by panel."""
    return [[t.get_window_extent() for t in axes.texts] for axes in figure.axes]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_panels_are_full_and_labels_are_inside_and_apart(count):
    """A panel without contours, a label off its panel, or two on top of each other."""
    frame = data(*[details(seed, hole=seed == 1) for seed in range(count)])
    figure = contour.make_figure(frame)
    with style():
        figure.draw_without_rendering()
    *planes, bar = figure.axes
    assert len(planes) == min(count, 4) and "training loss" in bar.get_ylabel()
    assert ("4 of 6 planes" in bar.get_ylabel()) == (count == 6)
    assert ("grey" in bar.get_ylabel()) == (count > 1)
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert [axes.get_title() for axes in planes] == [f"seed {i}" for i in range(min(count, 4))]
    for axes, found in zip(planes, boxes(figure), strict=False):
        assert sum(len(paths) for c in axes.collections for paths in [c.get_paths()]) > 5
        assert [t.get_text() for t in axes.texts] == [p["label"] for p in POINTS]
        panel = axes.get_window_extent()
        for i, box in enumerate(found):
            assert panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
            assert not any(box.overlaps(other) for other in found[:i])
    box, page = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page[0] + 1e-6 and box.y1 <= page[1] + 1e-6


def test_the_point_of_lowest_loss_is_where_it_was_measured():
    """Axes exchanged: alphas are the horizontal ones."""
    frame = data(details(0))
    grid = frame[frame["role"] == "grid"]
    assert len(grid) == 21 * 17 and len(frame) == len(grid) + 3
    at = grid[np.isclose(grid["x"], 1.0) & np.isclose(grid["y"], BETAS[0])]["loss"].item()
    assert at == details(0)["train_loss"][15][0]
    axes = contour.make_figure(frame).axes[0]
    assert axes.get_xlim() == (-0.5, 1.5) and axes.get_ylim() == (-0.6, 1.2)


def test_points_off_the_grid_and_at_its_corners_are_shown():
    corners = [
        {"label": "a long label", "x": -0.9, "y": -0.6},
        {"label": "another label", "x": 1.5, "y": 1.2},
        {"label": "third label", "x": -0.5, "y": 1.2},
        {"label": "fourth label", "x": 1.5, "y": -0.6},
    ]
    figure = contour.make_figure(data(details(0, corners)))
    with style():
        figure.draw_without_rendering()
    panel = figure.axes[0].get_window_extent()
    for box in boxes(figure)[0]:
        assert panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1


def test_same_data_same_bytes_and_fonts_that_print():
    frame = data(details(0), details(1))
    pdf, png = (save(contour.make_figure(frame), form) for form in ("pdf", "png"))
    assert pdf == save(contour.make_figure(frame), "pdf") and png == save(contour.make_figure(frame), "png")
    assert re.search(rb"/Subtype\s*/CIDFontType2", pdf) and not re.search(rb"/Subtype\s*/Type3", pdf)


def test_zero_constant_or_missing_losses():
    """A logarithm of zero, levels that do not increase, or a picture of nothing."""
    zero = details(0)
    zero["train_loss"][5][5] = 0.0
    flat = details(0) | {"train_loss": np.full((21, 17), 0.5).tolist()}
    for plane in (zero, flat):
        with style():
            contour.make_figure(data(plane)).draw_without_rendering()
    with pytest.raises(NoDataError, match="no run of toy"):
        data(details(0) | {"train_loss": []})
    nothing = details(0) | {"train_loss": [[None] * 17] * 21}
    with pytest.raises(NoDataError, match="finite"):
        contour.make_figure(data(nothing))
    with pytest.raises(ValueError, match="shape"):
        data(details(0) | {"betas": [0.0]})
