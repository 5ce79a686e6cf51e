"""The groups that claims compare, side by side: every value is a dot, the mean of each group with its 95% interval."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from seaborn import color_palette

from analysis.cells import cells, members
from analysis.figures.shared import grid, label_of, logarithmic, nothing
from analysis.load import Tables
from analysis.stats import mean_interval
from analysis.style import INK, style
from experiments.lab.declare.claims import Claim, ValueScale

STATISTICS = {"kendall": "Kendall's τ", "slope": "slope", "stable_range": "stable range", "critical_batch_over": "ln critical B",
              "distance_between": "|ln ratio|", "worst_axis": "least τ", "best_at": "best LR"}
"""statistics of families of runs, as an axis names them"""
LINE = 14
"""letters of a group's name in a line"""


def settings() -> dict[str, Any]:
    """`claims`: their ids, a panel each, or (id, title) pairs; none: all of this scale, titled by their sentences."""
    return {"claims": ()}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """A row per value of a group (of a run, or of a family of runs; role `seed`) and a group's mean (role `mean`; geometric where
    the claim takes logarithms, which leaves out values that are not positive). Raises `NoDataError`, ValueError for no claim."""
    declared = {claim.id: claim for claim in tables.study.claims_at(tables.scale)}
    asked = [(c, "") if isinstance(c, str) else tuple(c) for c in options["claims"] or declared]
    if unknown := [id for id, _ in asked if id not in declared]:
        if any(claim.id == unknown[0] for claim in tables.study.claims):
            raise nothing(tables, f"values of the claim {unknown[0]}, which is of another scale,")
        raise ValueError(f"{tables.study.name} has no claim {unknown[0]!r}; its claims are {', '.join(declared)}")
    parts = [_of_claim(declared[id], title, tables) for id, title in asked]
    if not (filled := [part for part in parts if not part.empty]):  # populations of runs have a number each, nothing to draw
        raise nothing(tables, "a value of these claims")
    return pd.concat(filled, ignore_index=True)


def _of_claim(claim: Claim, title: str, tables: Tables) -> pd.DataFrame:
    log = claim.contrast.scale is ValueScale.LOG
    family = claim.contrast.family
    what = label_of(claim.contrast.value)
    rows = []
    for place, cell in enumerate(cells(claim, tables)):
        values = np.array([v for v in cell.values if v > 0 or not log], float)
        label = what if family is None else f"{STATISTICS.get(family.statistic, family.statistic)} of {what}"
        head = {"claim": claim.id, "title": title or claim.sentence, "logarithmic": log, "place": place, "group": cell.name,
                "label": label}
        rows += [{**head, "role": "seed", "number": i, "value": v} for i, v in enumerate(values)]
        if len(values):
            found = mean_interval(np.log(values) if log else values)
            mean, low, high = (math.exp(v) for v in found) if log else found
            rows.append({**head, "role": "mean", "number": len(values), "value": mean, "low": low, "high": high})
    names = ["claim", "title", "logarithmic", "place", "group", "label", "role", "number", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def runs_of(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """Of the claims that have no value for a diverged run."""
    asked = [c if isinstance(c, str) else c[0] for c in options["claims"]]
    claims = [c for c in tables.study.claims_at(tables.scale) if (c.id in asked or not asked) and c.contrast.family is None]
    groups = [group for claim in claims if claim.diverged_as is None for group in claim.contrast.groups]
    ids = {run.config.run_id for group in groups for run in members(group, tables.planned)}
    return tables.runs[tables.runs["run_id"].isin(ids)]


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        claims = list(dict.fromkeys(data["claim"]))
        figure, flat, _ = grid(len(claims), height=3.2)
        names = list(dict.fromkeys(data["group"]))
        colours = dict(zip(names, color_palette("colorblind", len(names)), strict=True))
        for axes, claim in zip(flat, claims, strict=True):
            _draw(axes, data[data["claim"] == claim], colours)
        return figure


def _draw(axes: Axes, part: pd.DataFrame, colours: Mapping[str, Any]) -> None:
    names = part.drop_duplicates("place").sort_values("place")
    for place, group in zip(names["place"], names["group"], strict=True):
        own = part[part["place"] == place]
        seeds, mean = own[own["role"] == "seed"], own[own["role"] == "mean"].iloc[0]
        spread = 0.05 * (seeds["number"].to_numpy(float) % 5 - 2)
        axes.scatter(place + spread, seeds["value"], s=16, color=colours[group], alpha=0.7, linewidths=0.4, edgecolors="white")
        if math.isfinite(mean["low"]):
            error = [[mean["value"] - mean["low"]], [mean["high"] - mean["value"]]]
            axes.errorbar([place + 0.28], [mean["value"]], yerr=error, fmt="o", ms=4, color=INK, capsize=3)
        else:
            axes.plot([place + 0.28], [mean["value"]], "o", ms=4, color=INK)
    crowd = max(1.0, len(names) / 3)
    wrapped = [textwrap.fill(str(group), max(7, int(LINE / crowd))) for group in names["group"]]
    axes.set_xticks(list(names["place"]), wrapped, fontsize=8 if crowd == 1 else 7)
    axes.set_xlim(names["place"].min() - 0.5, names["place"].max() + 0.7)
    axes.set_xlabel("mean and 95% interval beside the values", fontsize=7.5)
    if part["value"].min() < 0 < part["value"].max():
        axes.axhline(0, color=INK, lw=0.7)
    first = part.iloc[0]
    if first["logarithmic"]:
        logarithmic(axes.yaxis)
    axes.set_ylabel(str(first["label"]))
    axes.set_title(textwrap.fill(str(first["title"]), 42), fontsize=8.5)
