"""Statistics that make one number of several runs (`experiments.lab.declare.claims.Family`): pure functions of a table of runs.

Each takes `frame`, one row per run, and the name of the contrast's value, a column of it. The other columns are those of the runs
table (`analysis.load.RUNS`: every config field, every summary value) and the values that options whose names end in `_value`
ask for. A run that diverged, or was measured without a result, has NaN (or the claim's `diverged_as`) as its value. A
statistic that is not defined is NaN, and its family then counts as unusable.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize

from experiments.lab.declare.claims import Family
from experiments.lab.declare.config import RunConfig

Statistic = Callable[..., float]
Floats = NDArray[np.float64]

BEYOND = math.log(1000)
"""how far outside the batch sizes tried, in natural logarithms, a critical batch size is looked for"""


def slope(frame: pd.DataFrame, value: str, *, field: str = "batch_size", logarithmic: bool = True) -> float:
    """b of the least squares line log2 y = a + b log2 x, x the column `field`, y the value (`logarithmic` false: y itself, per
    doubling of x). NaN where a value is missing or has no logarithm, or where x does not vary."""
    x, y = _logarithm(_floats(frame, field)), _floats(frame, value)
    y = _logarithm(y) if logarithmic else y
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0:
        return math.nan
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


def kendall(frame: pd.DataFrame, value: str, *, against_value: str, least: float = 1.0) -> float:
    """Kendall's tau-b of the value against another (a measurement, a summary value or a config field) over the runs.

    Runs that lack one of the two are left out; NaN where less than the fraction `least` is left, or one is constant.
    """
    x, y = _floats(frame, against_value), _floats(frame, value)
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < max(2.0, least * len(frame)) or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return math.nan
    # of at most a few hundred runs; a bootstrap asks thousands of times, and scipy's would cost ten times as much
    first, second = (np.sign(v[:, None] - v[None, :]).ravel() for v in (x[known], y[known]))
    return float(first @ second / math.sqrt((first @ first) * (second @ second)))


def worst_axis(frame: pd.DataFrame, value: str, *, against_value: str, axes: tuple[str, ...]) -> float:
    """The smallest of `axis_taus`, as Dziugaite et al. 2020 ask; NaN where one is.

    A minimum of noisy numbers lies below the smallest true one on average.
    """
    return float(np.min(axis_taus(frame, value, against_value=against_value, axes=axes)))


def axis_taus(frame: pd.DataFrame, value: str, *, against_value: str, axes: tuple[str, ...]) -> Floats:
    """tau_i [axes], the mean of sign(x_j - x_k) sign(y_j - y_k) over the pairs of runs (j, k) that differ in the field i and
    agree in all other axes: the parts of the granulated coefficient, which is their mean (Jiang et al. 2020, section 3). Pairs
    with a value missing are left out; NaN where an axis has no pair.
    """
    x, y = _floats(frame, against_value), _floats(frame, value)
    ordered = np.sign(x[:, None] - x[None, :]) * np.sign(y[:, None] - y[None, :])
    known = np.isfinite(ordered)
    codes = [pd.factorize(frame[name], use_na_sentinel=False)[0] for name in axes]
    equal = np.array([code[:, None] == code[None, :] for code in codes])
    found = []
    for i in range(len(axes)):
        pairs = known & ~equal[i] & np.delete(equal, i, axis=0).all(axis=0)
        found.append(float(ordered[pairs].mean()) if pairs.any() else math.nan)
    return np.array(found)


def stable_range(
    frame: pd.DataFrame, value: str, *, tolerance: float, field: str = "lr", larger_is_better: bool = True
) -> float:
    """Octaves log2(x_high / x_low) of the unbroken range of tried x around the best whose values lie within `tolerance` of it.

    Runs of equal x count by their mean; an x at which one of them has no value is outside. NaN where none has a value.
    """
    x, y = _curve(frame, value, field, larger_is_better)
    if not np.isfinite(y).any():
        return math.nan
    best = int(np.nanargmax(y))
    good = y >= y[best] - tolerance
    low = high = best
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(x) and good[high + 1]:
        high += 1
    return math.log2(x[high] / x[low])


def best_at(frame: pd.DataFrame, value: str, *, field: str = "lr", larger_is_better: bool = True) -> float:
    """log2 of the x = `field` whose runs have the best mean; of equals the smallest x. An x without a value is never the best."""
    x, y = _curve(frame, value, field, larger_is_better)
    return math.log2(x[int(np.nanargmax(y))]) if np.isfinite(y).any() else math.nan


def critical_batch(frame: pd.DataFrame, value: str = "steps", *, field: str = "batch_size") -> float:
    """ln B_crit of steps S against batch size B: (S / S_min - 1)(E / E_min - 1) = 1 with E = B S and B_crit = E_min / S_min
    (McCandlish et al. 2018, arXiv 1812.06162, equation 2.11), which is S = S_min (1 + B_crit / B).

    Least squares in ln S, S_min free. NaN with fewer than three batch sizes, with a value missing, or where the best fit lies a
    factor 1,000 outside the batch sizes tried: the trade-off was then not seen.
    """
    size, steps = _floats(frame, field), _logarithm(_floats(frame, value)) * math.log(2)
    if len(np.unique(size)) < 3 or not np.isfinite(steps).all():
        return math.nan

    def misfit(critical: float) -> float:
        return float(np.var(steps - np.log1p(np.exp(critical) / size)))

    low, high = math.log(size.min()) - BEYOND, math.log(size.max()) + BEYOND
    grid = np.linspace(low, high, 200)
    start = int(np.argmin([misfit(x) for x in grid]))
    if start in (0, len(grid) - 1):
        return math.nan
    found: Any = optimize.minimize_scalar(misfit, bounds=(grid[start - 1], grid[start + 1]), method="bounded",
                                          options={"xatol": 1e-10})
    return float(found.x)


def critical_batch_over(frame: pd.DataFrame, value: str = "steps", *, over_value: str, field: str = "batch_size") -> float:
    """ln(B_crit / the geometric mean of another value over the runs), such as a noise scale that is to predict it; NaN where
    B_crit is not defined, or the other value is missing or not positive somewhere."""
    others = _logarithm(_floats(frame, over_value)) * math.log(2)
    return critical_batch(frame, value, field=field) - float(others.mean()) if np.isfinite(others).all() else math.nan


def log_ratio_to(frame: pd.DataFrame, value: str, *, to_value: str) -> float:
    """ln(mean of the value / mean of another over the same runs); NaN where a mean is missing or not positive."""
    first, second = _floats(frame, value).mean(), _floats(frame, to_value).mean()
    return math.log(first / second) if first > 0 and second > 0 else math.nan


def distance_between(frame: pd.DataFrame, value: str, *, first: float, second: float, field: str = "batch_size") -> float:
    """|ln(v(second) / v(first))|, v(x) the mean of the value over the runs with x = `field`; NaN where one is missing or not
    positive."""
    x, y = _floats(frame, field), _floats(frame, value)
    if not ((x == first).any() and (x == second).any()):
        return math.nan
    before, after = y[x == first].mean(), y[x == second].mean()
    return abs(math.log(after / before)) if before > 0 and after > 0 else math.nan


STATISTICS: Mapping[str, Statistic] = {
    "slope": slope,
    "kendall": kendall,
    "worst_axis": worst_axis,
    "stable_range": stable_range,
    "best_at": best_at,
    "critical_batch": critical_batch,
    "critical_batch_over": critical_batch_over,
    "log_ratio_to": log_ratio_to,
    "distance_between": distance_between,
}


def check(family: Family) -> None:
    """Raise ValueError (one sentence) for an unknown statistic, options that it does not take, or fields that no run has."""
    if family.statistic not in STATISTICS:
        raise ValueError(f"there is no statistic {family.statistic!r} of a family of runs; there are {', '.join(STATISTICS)}")
    try:
        inspect.signature(STATISTICS[family.statistic]).bind(None, "", **dict(family.options))
    except TypeError as error:
        raise ValueError(f"the statistic {family.statistic} does not take these options: {error}") from error
    if unknown := {*family.by, *family.clusters} - {"stage", *(field.name for field in dataclasses.fields(RunConfig))}:
        raise ValueError(f"families are made by config fields or the stage, and {min(unknown)!r} is neither")


def statistic(family: Family, frame: pd.DataFrame, value: str) -> float:
    return STATISTICS[family.statistic](frame, value, **dict(family.options))


def columns(family: Family, value: str) -> set[str]:
    """The columns that the statistic may look at: those which its arguments name, given or default."""
    call = inspect.signature(STATISTICS[family.statistic]).bind(None, value, **dict(family.options))
    call.apply_defaults()
    return {name for given in call.arguments.values() for name in (given if isinstance(given, tuple) else (given,))
            if isinstance(name, str)}


def other_values(family: Family) -> list[str]:
    """Values that the statistic needs besides the contrast's."""
    return [str(value) for name, value in family.options if name.endswith("_value")]


def _floats(frame: pd.DataFrame, column: str) -> Floats:
    return frame[column].to_numpy(np.float64, na_value=np.nan)


def _logarithm(values: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(values)


def _curve(frame: pd.DataFrame, value: str, field: str, larger_is_better: bool) -> tuple[Floats, Floats]:
    """Each x once, ascending, and the mean of its values (NaN where one is), turned so that larger is better."""
    x, y = _floats(frame, field), _floats(frame, value)
    tried = np.unique(x)
    means = np.array([y[x == at].mean() for at in tried])
    return tried, means if larger_is_better else -means
