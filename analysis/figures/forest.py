"""Every claim's effect with its intervals, in units of its margin: what is decided, how clearly, and at which margin it turns.

Positive is the paper's side. Thin lines are the intervals that say on which side of 0 an effect lies, thick ones the 90%
intervals that say whether it lies within the margin (the grey band). A difference (disc) is no effect where its thick line lies
within the band, else reproduced where its thin line lies right of 0; an equivalence (square) is reproduced where its thick line
lies within the band; a non-inferiority (triangle) where it lies right of -1. Hollow: decided by a gate, not by an interval.
Margins of ratios are logarithms, and so are the effects divided by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.shared import nothing
from analysis.load import Tables
from analysis.style import INK, style
from analysis.verdicts import verdicts
from experiments.lab.declare.claims import Kind

COLOURS = {"reproduced": "#0173b2", "contradicted": "#d55e00", "no effect": "#6b6b6b", "inconclusive": "#a66fb5"}
NONE = "#b0b0b0"
MARKS = {Kind.DIRECTIONAL: ("o", "a difference"), Kind.EQUIVALENCE: ("s", "equal within the margin"),
         Kind.NON_INFERIORITY: (">", "no worse than by the margin")}
ENDS = ("effect", "ci_low", "ci_high", "ci90_low", "ci90_high", "paper_value")
STRAIGHT = 2.0
"""margins around 0 that have a linear axis; beyond it is logarithmic"""
FAR = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TICKS = (*(-x for x in reversed(FAR)), 0, *FAR)
BESIDE = 0.2
"""rows by which the paper's effect stands lower, so that it hides none of ours"""
ROW, WIDTH = 0.23, 7.2
"""inches"""


def settings() -> dict[str, Any]:
    return {}


def load_data(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """See `frame`. Raises `NoDataError` where no claim has an effect."""
    data = frame([verdict.to_dict() for verdict in verdicts(tables)])
    if data["effect"].isna().all():
        raise nothing(tables, "an effect")
    return data


def runs_of(tables: Tables, options: Mapping[str, Any]) -> pd.DataFrame:
    """None lacks a point: a claim says what diverged runs count as."""
    return tables.runs.iloc[:0]


def frame(found: Sequence[Mapping[str, Any]], studies: bool = False) -> pd.DataFrame:
    """A row per claim: `row`, its name (`studies`: with study and scale), `verdict`, `kind`, `gate`, `primary`, and ENDS divided
    by its margin."""
    rows = []
    for verdict in found:
        name = str(verdict["claim"]).removeprefix(f"{verdict['scale']}-")
        name = f"{verdict['study']} {verdict['scale']}: {name}" if studies else name
        parts = {end: None if verdict[end] is None else verdict[end] / verdict["margin"] for end in ENDS}
        rows.append({"row": name, "verdict": verdict["verdict"] or "no verdict", "kind": verdict["kind"],
                     "gate": str(verdict["decided_by"]).startswith("gate"), "primary": verdict["primary"], **parts})
    return pd.DataFrame(rows).astype({end: float for end in ENDS})


def make_figure(data: pd.DataFrame) -> Figure:
    with style():
        figure = Figure(figsize=(WIDTH, 1.5 + ROW * len(data)))
        axes = figure.subplots()
        _draw(axes, data.reset_index(drop=True))
        seen = [name for name in COLOURS if name in set(data["verdict"])]
        handles = [Line2D([], [], color=COLOURS[name], lw=2.5, label=name) for name in seen]
        for mark, name in (MARKS[kind] for kind in Kind if kind in set(data["kind"])):
            handles.append(Line2D([], [], color=INK, marker=mark, ms=5, ls="", label=name))
        if data["gate"].any():
            handles.append(Line2D([], [], color=INK, marker="o", mfc="white", ms=5, ls="", label="decided by a gate"))
        if data["paper_value"].notna().any():
            handles.append(Line2D([], [], color=INK, marker="D", ms=4.5, mfc="white", ls="", label="the paper's effect"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
        return figure


def _draw(axes: Axes, data: pd.DataFrame) -> None:
    axes.axvspan(-1, 1, color="#e9e9e9", zorder=0)
    axes.axvline(0, color=INK, lw=0.8, zorder=1)
    numbers = {end: data[end].to_numpy(np.float64) for end in ENDS}
    claims = data[["verdict", "kind", "gate", "primary"]].itertuples(index=False, name=None)
    for i, (verdict, kind, gate, primary) in enumerate(claims):
        colour, at = COLOURS.get(verdict, NONE), {end: float(values[i]) for end, values in numbers.items()}
        axes.plot([at["ci_low"], at["ci_high"]], [i, i], color=colour, lw=1, zorder=3)
        axes.plot([at["ci90_low"], at["ci90_high"]], [i, i], color=colour, lw=3, alpha=0.55, zorder=3)
        axes.plot(at["effect"], i, MARKS[Kind(kind)][0], ms=6 if primary else 4, color=colour, zorder=4,
                  mfc="white" if gate else colour)
        axes.plot(at["paper_value"], i + BESIDE, "D", ms=4.5, mfc="white", mec=INK, mew=0.8, zorder=5)
    axes.set_yticks(range(len(data)), list(data["row"]), fontsize=7.5)
    for label, primary in zip(axes.get_yticklabels(), data["primary"], strict=True):
        label.set_fontweight("bold" if primary and not data["primary"].all() else "normal")
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xscale("symlog", linthresh=STRAIGHT, linscale=1.0)
    every = np.concatenate(list(numbers.values()))
    low, high = min(-STRAIGHT, 1.2 * float(np.nanmin(every))), max(STRAIGHT, 1.2 * float(np.nanmax(every)))
    ticks = [x for x in TICKS if low <= x <= high]
    axes.set_xticks(ticks, [f"{x:,}".replace("-", "−") for x in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    bold = "" if data["primary"].all() else "bold: primary claim; "
    axes.set_xlabel(f"effect / margin ({bold}beyond ±{STRAIGHT:g} logarithmic)\nthick: 90% interval; thin: the verdict's")
