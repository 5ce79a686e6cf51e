"""Figures: complete, legible to every printer, and the same bytes for the same records."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from analysis.draw import draw, draw_all
from analysis.figures import NoDataError
from analysis.load import Tables, from_store
from analysis.style import PNG, PNG_BYTES, save, style
from experiments.keskar2017 import STUDY

FIGURES = {figure.name: figure for figure in STUDY.figures}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return from_store(STUDY, "quick", synthetic.write(tmp_path_factory.mktemp("store"), STUDY))


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"analysis.figures.{FIGURES[name].kind}")


def data_of(name: str, tables: Tables) -> pd.DataFrame:
    module = module_of(name)
    return module.load_data(tables, module.settings() | dict(FIGURES[name].options))


@pytest.mark.parametrize("name", FIGURES)
def test_same_records_same_bytes(name: str, tables: Tables, tmp_path: Path) -> None:
    """A diff in figures/ that means nothing; a figure redrawn though nothing changed."""
    first, again = draw(FIGURES[name], tables, tmp_path / "a"), draw(FIGURES[name], tables, tmp_path / "a")
    other = draw(FIGURES[name], tables, tmp_path / "b")
    assert (first.state, again.state, other.state) == ("drawn", "unchanged", "drawn")
    assert first.files == again.files and len(first.files) == 4
    for x, y in zip(first.files, other.files, strict=True):
        assert Path(x).read_bytes() == Path(y).read_bytes(), x


@pytest.mark.parametrize("name", FIGURES)
def test_pdf_fonts_and_dates(name: str, tables: Tables) -> None:
    """Type 3 fonts, which publishers refuse, or a date that changes the bytes."""
    figure = module_of(name).make_figure(data_of(name, tables))
    pdf = save(figure, "pdf")
    assert re.search(rb"/Subtype\s*/CIDFontType2", pdf) and not re.search(rb"/Subtype\s*/Type3", pdf)
    assert b"CreationDate" not in pdf and b"Matplotlib v" not in pdf
    png = save(figure, "png")
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and b"Software" not in png


@pytest.mark.parametrize("name", FIGURES)
def test_no_empty_axes(name: str, tables: Tables) -> None:
    """A panel without data, an axis without a name, text off the page."""
    figure = module_of(name).make_figure(data_of(name, tables))
    with style():
        figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None]  # not the colour bar
    assert panels
    for axes in panels:
        assert axes.has_data() and axes.get_ylabel()
        assert all(np.isfinite(line.get_xydata().astype(float)).all() for line in axes.lines)
    assert all(axes.get_xlabel() for axes in panels if axes.get_subplotspec().is_last_row())
    box, page = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page[0] + 1e-6 and box.y1 <= page[1] + 1e-6


def test_csv_holds_what_is_plotted(tables: Tables, tmp_path: Path) -> None:
    """A point in the picture that the published data do not contain, or the other way round."""
    drawn = draw(FIGURES["generalization_gap"], tables, tmp_path)
    csv = pd.read_csv(drawn.files[2])
    figure = module_of("generalization_gap").make_figure(data_of("generalization_gap", tables))
    for axes, (_, part) in zip(figure.axes, csv.groupby("quantity", sort=False), strict=True):
        (points,) = [c for c in axes.collections if hasattr(c, "get_sizes") and len(c.get_offsets()) > 6]
        seeds = part[part["role"] == "seed"]
        plotted = np.asarray(points.get_offsets())[:, 1]
        assert sorted(plotted) == pytest.approx(sorted(seeds["value"]))
        assert len(seeds) == (tables.runs["stage"] == "train").sum() == 40
        means = part[part["role"] == "mean"].sort_values("batch_size")
        (line,) = [line for line in axes.lines if line.get_label() != "_nolegend_" and line.get_linestyle() == "-"]
        assert line.get_ydata() == pytest.approx(means["value"].to_numpy())
        for size, cell in seeds.groupby("batch_size"):
            assert means.set_index("batch_size").loc[size, "value"] == pytest.approx(cell["value"].mean())


def test_csv_of_sharpness_has_geometric_means(tables: Tables) -> None:
    """Arithmetic means on a logarithmic axis."""
    data = data_of("sharpness_vs_batch", tables)
    part = data[(data["quantity"] == "lambda_max") & (data["batch_size"] == 32)]
    logs = np.log(part[part["role"] == "seed"]["value"].to_numpy(float))
    (mean,) = part[part["role"] == "mean"].itertuples()
    assert len(logs) == 12 and mean.value == pytest.approx(np.exp(logs.mean()))
    half = 2.200985 * logs.std(ddof=1) / np.sqrt(12)  # t at 97.5% and 11 degrees of freedom
    assert (mean.low, mean.high) == pytest.approx((mean.value * np.exp(-half), mean.value * np.exp(half)), rel=1e-5)


def test_values_that_are_not_positive_are_said(tables: Tables) -> None:
    """Runs that vanish from a logarithmic axis without a word."""
    rows = tables.measurements.copy()
    rows.loc[rows.index[rows["metric"] == "phi_full"][:2], "value"] = 0.0
    figure = module_of("sharpness_vs_batch").make_figure(data_of("sharpness_vs_batch", replace(tables, measurements=rows)))
    assert [("2 values" in axes.get_title()) for axes in figure.axes] == [False, True, False]


def test_origin_names_runs_commits_and_claims(tables: Tables, tmp_path: Path) -> None:
    """A published figure that cannot be traced back, or is kept though its runs changed."""
    document = json.loads(Path(draw(FIGURES["parametric_slice"], tables, tmp_path).files[3]).read_text())
    assert document["runs"] == sorted(tables.runs["run_id"]) and document["commits"] == ["c0ffee"]
    assert document["claims"] == {claim.id: claim.hash for claim in STUDY.claims_at("quick")}
    other = replace(tables, runs=tables.runs.assign(commit="another"))
    assert draw(FIGURES["parametric_slice"], other, tmp_path).state == "drawn"


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_to_draw_is_one_sentence(name: str, tables: Tables, tmp_path: Path) -> None:
    """A traceback, or an empty picture, where runs are still missing."""
    empty = replace(tables, **{name: getattr(tables, name).iloc[:0] for name in ("runs", "history", "measurements")})
    with pytest.raises(NoDataError, match=r"^no [^.\n]*keskar2017[^.\n]*$"):
        data_of(name, empty)
    states = {drawn.name: (drawn.state, bool(drawn.reason)) for drawn in draw_all(empty, tmp_path)}
    assert states[name] == ("no data", True) and list(tmp_path.iterdir()) == []


def test_unknown_option_is_refused(tables: Tables, tmp_path: Path) -> None:
    """A misspelt option that changes nothing."""
    with pytest.raises(ValueError, match="no option 'quantites'"):
        draw(replace(FIGURES["generalization_gap"], options=(("quantites", ("gap_accuracy",)),)), tables, tmp_path)


def test_png_is_light_and_keeps_its_colours() -> None:
    """A page that loads slowly, or lines in other colours than their legend."""
    figure, rng, colours = Figure(figsize=(6, 6)), np.random.default_rng(0), ("#c81e3c", "#1e78c8", "#333333")
    axes = figure.subplots()
    for colour in 40 * colours[:2]:
        axes.plot(rng.standard_normal(12), color=colour, lw=0.5, alpha=0.4)
    for height, colour in enumerate(colours):
        axes.axhline(height, color=colour, lw=3)
    png = save(figure, "png")
    found = {colour for _, colour in Image.open(BytesIO(png)).convert("RGB").getcolors() or ()}
    assert len(png) <= PNG_BYTES and len(found) <= PNG[0][1]
    assert {ImageColor.getrgb(colour) for colour in ("#ffffff", *colours)} <= found
