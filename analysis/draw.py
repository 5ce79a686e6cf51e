"""Figures as files: <figure>.pdf and .png, .csv.gz with every plotted value, .json with what they come from.

Redrawing what did not change is skipped, and drawing it anyway gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Drawing
from matplotlib.layout_engine import ConstrainedLayoutEngine

from analysis.arms import chosen
from analysis.figures import Drawn, NoDataError
from analysis.load import Tables
from analysis.style import save
from experiments.lab.declare.study import Figure, Study
from experiments.lab.store.files import to_json, write_atomic

SHARED = ("figures/per_batch_size.py", "figures/shared.py", "style.py", "arms.py", "cells.py", "families.py")
"""code of more than one figure"""
NOTE = 0.14
"""inches above the panels for a line of text"""
FORMS = ("pdf", "png", "csv.gz", "json")


def figures_of(study: Study, scale: str) -> tuple[Figure, ...]:
    """The effects of its claims, if it has any, and the figures that it declares for this scale."""
    effects = (Figure("effects", "forest"),) if study.claims_at(scale) else ()
    return *effects, *study.figures_at(scale)


def draw_all(tables: Tables, folder: Path) -> list[Drawn]:
    """Every figure of the study."""
    found = []
    for figure in figures_of(tables.study, tables.scale):
        try:
            found.append(draw(figure, tables, folder))
        except NoDataError as error:
            found.append(Drawn(figure.name, "no data", reason=str(error)))
    return found


def draw(figure: Figure, tables: Tables, folder: Path) -> Drawn:
    """Write one figure into `folder`; raises `NoDataError` where there is nothing to draw."""
    module, options = _kind(figure)
    data: pd.DataFrame = module.load_data(tables, options)
    table = data.to_csv(index=False, lineterminator="\n").encode()
    document = origin(figure, tables, options, table, module)
    paths = {form: folder / f"{figure.name}.{form}" for form in FORMS}
    files = tuple(str(path) for path in paths.values())
    if all(path.is_file() for path in paths.values()) and paths["json"].read_bytes() == to_json(document):
        return Drawn(figure.name, "unchanged", files)
    folder.mkdir(parents=True, exist_ok=True)
    drawing = module.make_figure(data)
    if (note := document.get("diverged")) is not None:
        drawing.text(0.005, 0.998, note, fontsize=6.5, ha="left", va="top")
        above = NOTE / drawing.get_size_inches()[1]
        if isinstance(layout := drawing.get_layout_engine(), ConstrainedLayoutEngine):
            layout.set(rect=(0, 0, 1, 1 - above))
    for form in ("pdf", "png"):
        write_atomic(paths[form], save(drawing, form))
    write_atomic(paths["csv.gz"], gzip.compress(table, mtime=0))
    write_atomic(paths["json"], to_json(document))
    return Drawn(figure.name, "drawn", files)


def _kind(figure: Figure) -> tuple[ModuleType, dict[str, Any]]:
    """The module of a figure's kind, and every option that it takes."""
    module = importlib.import_module(f"analysis.figures.{figure.kind}")
    options = {**module.settings(), **dict(figure.options)}
    if unknown := sorted(set(options) - set(module.settings())):
        raise ValueError(f"figure {figure.kind} has no option {unknown[0]!r}; it has {', '.join(module.settings())}")
    return module, options


@dataclass(frozen=True)
class Shown:
    """A figure to look at: Jupyter draws it where it is the last line of a cell."""

    figure: Drawing

    def _repr_png_(self) -> bytes:
        return save(self.figure, "png")


def show(tables: Tables, name: str, **options: Any) -> Shown:
    """The study's figure `name`, or one of that kind, with its options changed by `options`.

    Raises `NoDataError` where there is nothing to draw.
    """
    declared = {figure.name: figure for figure in tables.study.figures_at(tables.scale)}
    figure = declared.get(name, Figure(name, name))
    module, every = _kind(replace(figure, options=tuple({**dict(figure.options), **options}.items())))
    return Shown(module.make_figure(module.load_data(tables, every)))


def diverged(runs: pd.DataFrame) -> str | None:
    """What a figure of these runs cannot show: how many of each batch size ended without values. A run of two stages is one."""
    runs = runs.drop_duplicates("run_id")
    lost = runs[runs["status"] == "diverged"]
    if lost.empty:
        return None
    counts = lost.groupby("batch_size").size()
    each = ", ".join(f"{count} at B {size}" for size, count in counts.items())
    return f"{len(lost)} of {len(runs)} runs diverged and have no point: {each}"


def drawn_from(tables: Tables, options: dict[str, Any], module: ModuleType) -> pd.DataFrame:
    """The runs that a figure wants a point of: those its options choose, or those that its module's `runs_of` names."""
    if hasattr(module, "runs_of"):
        return module.runs_of(tables, options)
    runs = chosen(tables, options.get("where", ())).runs
    of_arms = [chosen(tables, where).runs["run_id"] for _, where in options.get("arms", ())]
    return runs[runs["run_id"].isin(pd.concat(of_arms))] if of_arms else runs


def origin(figure: Figure, tables: Tables, options: dict[str, Any], table: bytes, module: ModuleType) -> dict[str, Any]:
    """What a figure comes from: runs, their commits, claims, and hashes of tables, plotted values and code."""
    note = diverged(drawn_from(tables, options, module))
    return {
        **({} if note is None else {"diverged": note}),
        "figure": figure.name,
        "kind": figure.kind,
        "options": json.loads(json.dumps(options)),
        "study": tables.study.name,
        "scale": tables.scale,
        "runs": sorted(tables.runs["run_id"]),
        "commits": sorted(tables.runs["commit"].dropna().unique()),
        "claims": {claim.id: claim.hash for claim in tables.study.claims_at(tables.scale)},
        "tables_sha256": tables.digest,
        "values_sha256": hashlib.sha256(table).hexdigest(),
        "code_sha256": code_of(module),
    }


def code_of(module: ModuleType) -> str:
    """SHA-256 of the code that draws a figure of this kind, and of the version of matplotlib."""
    code = hashlib.sha256(matplotlib.__version__.encode())
    here = Path(__file__).parent
    for path in (Path(str(module.__file__)), *(here / name for name in SHARED)):
        code.update(path.read_bytes())
    return code.hexdigest()
