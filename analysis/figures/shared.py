"""What the generic figures share: a value of every run beside its arm and its place on an axis, and how they are labelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from analysis.arms import chosen, runs_by_arm
from analysis.cells import values_of
from analysis.figures import NoDataError
from analysis.load import RUNS, Tables, config_column
from analysis.style import INK, panels, style

COLUMNS = 3
"""panels in a row"""
LETTERS = 32
"""that fit below an axis"""

LABELS = {
    "test_accuracy": "test accuracy (%)", "train_accuracy": "train accuracy (%)",
    "validation_accuracy": "validation accuracy (%)",
    "gap_accuracy": "train − test accuracy (points)", "gap_loss": "test − train loss (nats)", "test_loss": "test loss (nats)",
    "train_loss": "train loss (nats)", "validation_loss": "validation loss (nats)", "steps": "updates", "epochs": "epochs",
    "examples": "examples seen", "distance_from_start": "distance from the start", "lambda_max": r"$\lambda_{\max}$",
    "phi_full": r"$\varphi$, full space (%)", "phi_subspace": r"$\varphi$, subspace (%)", "trace": "tr H",
    "relative_trace": r"tr(H diag(w²))", "norm_scaled_lambda": r"‖w‖² $\lambda_{\max}$",
    "adaptive_l2_step": "adaptive sharpness (nats)", "batch_size": "batch size", "lr": "learning rate",
    "weight_decay": "weight decay", "noise_batch": "batch size of the noise", "sam_rho": "SAM ρ", "gradient_penalty": "penalty",
    "noise_scale_along": "simple noise scale", "distance_along": "R² of log t minus R² of a power",
    "slice_width": "rise of the loss, raw",
    "filter_slice_width": "rise of the loss, per filter", "edge_of_stability": r"$\lambda_{\max}$ / threshold",
    "edge_of_stability.rise": r"$\lambda_{\max}$ / $\lambda_{\max}$ at the start",
    "rescaled": r"$\lambda_{\max}$ rescaled / as trained", "rescaled.lambda_max": r"$\lambda_{\max}$ as trained",
    "rescaled.phi_ratio": r"$\varphi$ rescaled / as trained", "disguised_lambda": r"$\lambda_{\max}$, B 16 rescaled",
    "rescaled.relative_trace_ratio": "tr(H diag(w²)) rescaled / as trained",
    "rescaled.test_accuracy_change": "change of test accuracy (points)",
}

Named = Sequence[str | tuple[str, str]]
"""values, each by its name or as (name, label)"""


def label_of(name: str) -> str:
    return " / ".join(LABELS.get(part, part.replace("_", " ")) for part in name.split("/"))


def named(values: Named) -> list[tuple[str, str]]:
    return [(v, label_of(v)) if isinstance(v, str) else (str(v[0]), str(v[1])) for v in values]


CHOICE: dict[str, Any] = {"where": (), "arm": None, "arms": ()}
"""options that choose runs: `where` filters them, `arm` lists the fields that tell arms apart (default: those that vary), `arms`
names each by a filter"""


def choose(tables: Tables, options: Mapping[str, Any], *columns: str) -> pd.DataFrame:
    """The runs that the options of CHOICE ask for, by arm."""
    picked = chosen(tables, options["where"])
    return runs_by_arm(picked, "rank", "graded", *columns, fields=options["arm"], arms=options["arms"])


def with_value(runs: pd.DataFrame, tables: Tables, name: str, column: str = "value") -> pd.DataFrame:
    """`runs` with one value each; those without one are left out."""
    known = values_of(name, tables)
    numbers = np.array([known.get(run_id) for run_id in runs["run_id"]], np.float64)
    return runs.assign(**{column: numbers}).dropna(subset=column)


def with_field(runs: pd.DataFrame, tables: Tables, name: str, column: str = "x") -> pd.DataFrame:
    """`runs` with a number of their configuration, or with a quotient of two (`lr/batch_size`)."""
    parts = [config_column(part) for part in name.split("/")]
    if unknown := [part for part in parts if RUNS.get(part, "str") == "str"]:
        raise ValueError(f"an axis needs a number of the configuration, and {unknown[0]!r} is none")
    indexed = tables.runs.drop_duplicates("run_id").set_index("run_id")
    numbers = [indexed.loc[runs["run_id"], part].to_numpy(np.float64, na_value=np.nan) for part in parts]
    return runs.assign(**{column: numbers[0] / numbers[1] if len(numbers) > 1 else numbers[0]}).dropna(subset=column)


def curve_points(tables: Tables) -> pd.DataFrame:
    """What runs reached along training, a row per look: of the first 2,000 examples of each split at most. The last look may be
    before the end. Final values are of all examples, and as a last point of a curve would look like a sudden change."""
    return tables.history[tables.history["kind"] == "eval"]


def nothing(tables: Tables, what: str) -> NoDataError:
    return NoDataError(f"no finished run of {tables.study.name} at scale {tables.scale} has {what} to draw")


def grid(count: int, width: float = 3.3, height: float = 3.0) -> tuple[Figure, list[Axes], int]:
    """A figure of `count` panels, their axes, and how many stand in a row."""
    columns = min(COLUMNS, count)
    figure, rows = panels(-(-count // columns), columns, width=width, height=height)
    flat = [axes for row in rows for axes in row]
    for axes in flat[count:]:
        axes.remove()
    return figure, flat[:count], columns


Draw = Callable[[Axes, pd.DataFrame, pd.DataFrame], None]
"""draws one quantity's rows, given all of them too"""


def a_panel_each(data: pd.DataFrame, draw: Draw, width: float = 3.3) -> Figure:
    """A figure with a panel for every `quantity` of the data and one legend."""
    with style():
        quantities = list(dict.fromkeys(data["quantity"]))
        figure, flat, columns = grid(len(quantities), width=width)
        for axes, quantity in zip(flat, quantities, strict=True):
            draw(axes, data[data["quantity"] == quantity], data)
        legend(figure, flat[0], data, columns)
        return figure


def ordered(data: pd.DataFrame) -> list[str]:
    """Arms in the order of their ranks."""
    return list(dict.fromkeys(data.sort_values("rank", kind="stable")["arm"]))


def colours(data: pd.DataFrame) -> dict[str, Any]:
    """A colour per arm: dark to light where arms differ in one number, else the colour-blind palette; one alone in ink."""
    arms = ordered(data)
    if len(arms) == 1:
        return {arms[0]: INK}
    if bool(data["graded"].iloc[0]) or len(arms) > 10:
        shades = matplotlib.colormaps["viridis"]([0.05 + 0.8 * i / (len(arms) - 1) for i in range(len(arms))])
        return {arm: tuple(float(x) for x in shade) for arm, shade in zip(arms, shades, strict=True)}
    return dict(zip(arms, seaborn.color_palette("colorblind", len(arms)), strict=True))


def axis_of(axes: Axes, numbers: Sequence[float], label: str, even: bool = False) -> Callable[[Any], np.ndarray]:
    """Ticks at the numbers that occur, in octaves (evenly spaced on request or where one is 0 or below), and where a number
    stands."""
    occurring = np.unique(_rounded(numbers))
    even = even or bool((occurring <= 0).any())

    def place(values: Any) -> np.ndarray:
        array = _rounded(values)
        return np.searchsorted(occurring, array).astype(float) if even else np.log2(array)

    places = place(occurring)
    step = float(np.diff(places).min(initial=1.0))
    room = places[-1] - places[0] + step
    shown: list[int] = []
    for i, at in enumerate(places):
        letters = 0 if not shown else (len(tick(occurring[shown[-1]])) + len(tick(occurring[i]))) / 2 + 1
        if not shown or at - places[shown[-1]] >= letters * room / LETTERS:
            shown.append(i)
    axes.set_xticks([places[i] for i in shown], [tick(occurring[i]) for i in shown])
    margin = max(0.5 * step, 0.04 * room)  # marks on the last places are drawn whole where two places all but meet
    axes.set_xlim(places[0] - margin, places[-1] + margin)
    axes.set_xlabel(label)
    return place


def _rounded(numbers: Any) -> np.ndarray:
    """To nine digits, so that one learning rate computed in two ways is one place."""
    return np.array([float(f"{number:.9g}") for number in np.atleast_1d(np.asarray(numbers, float))])


def logarithmic(axis: Axis) -> None:
    """A logarithmic axis with its numbers written out: 1, 2, 5 below two decades, more within a factor of 8, evenly within 3;
    where all numbers are all but one, the axis stays as it is."""
    low, high = axis.get_data_interval()
    if low > 0 and high / low < 1.01:
        return
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
    few = low > 0 and math.log10(high / low) < 2
    narrow = few and high / low < 3
    subs = (1.0,) if not few else (1.0, 2.0, 5.0) if high / low > 8 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=subs))
    if few:
        axis.set_major_formatter(lambda x, position: tick(x))
    axis.set_minor_formatter(NullFormatter())


def tick(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def legend(figure: Figure, axes: Axes, data: pd.DataFrame, columns: int) -> None:
    """One legend below all panels, where there is more than one arm."""
    if data["arm"].nunique() > 1:
        handles, names = axes.get_legend_handles_labels()
        longest = max(map(len, names), default=1)
        fitting = round(45 * columns / (longest + 6))
        figure.legend(handles, names, loc="outside lower center", ncols=max(1, min(len(names), fitting)))
