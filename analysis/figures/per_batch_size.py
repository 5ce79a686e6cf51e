"""What figures over batch size share: every seed as a point, and the mean with its 95% interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.stats import mean_interval
from analysis.style import batch_axis, by_arm, by_batch_size

COLUMNS = ["quantity", "arm", "batch_size", "role", "seed", "run_id", "value", "low", "high"]


def points_and_means(values: pd.DataFrame, quantity: str, *, logarithmic: bool) -> pd.DataFrame:
    """Rows of `values` (arm, batch_size, seed, run_id, value) with role `seed`, then a row per cell with role `mean`:
    mean and t interval, both of logarithms and transformed back where `logarithmic`."""
    seeds = values.assign(quantity=quantity, role="seed", low=math.nan, high=math.nan)
    means = []
    for (arm, size), part in values.groupby(["arm", "batch_size"]):
        array = part["value"].to_numpy(np.float64)
        mean, low, high = mean_interval(np.log(array) if logarithmic else array)
        if logarithmic:
            mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
        means.append({"quantity": quantity, "arm": arm, "batch_size": size, "role": "mean", "seed": pd.NA, "run_id": None,
                      "value": mean, "low": low, "high": high})
    joined = pd.concat([seeds.astype({"seed": "Int64"}), pd.DataFrame(means, columns=COLUMNS).astype({"seed": "Int64"})])
    return joined[COLUMNS].reset_index(drop=True)


def draw(axes: Axes, data: pd.DataFrame) -> None:
    """One quantity: points spread a little sideways so that none hides another, and the mean's interval."""
    arms = sorted(data["arm"].unique())
    sizes = sorted(data["batch_size"].unique())
    colours: dict[Any, Any] = by_arm(arms)
    of_size = by_batch_size(sizes)
    for k, arm in enumerate(arms):
        shift = 1.07 ** (k - (len(arms) - 1) / 2)
        part = data[data["arm"] == arm]
        seeds, means = part[part["role"] == "seed"], part[part["role"] == "mean"].sort_values("batch_size")
        spread = 1 + 0.04 * (seeds["seed"].to_numpy(np.float64) % 5 - 2)
        colour = [of_size[size] for size in seeds["batch_size"]] if len(arms) == 1 else [colours[arm]] * len(seeds)
        # above the mean and its bar, which would hide the seeds at their own height
        dots = {"s": 16, "alpha": 0.8, "linewidths": 0.4, "edgecolors": "white", "zorder": 4}
        axes.scatter(seeds["batch_size"] * shift * spread, seeds["value"], c=colour, **dots)
        known = means.dropna(subset=["low", "high"])
        errors = np.array([known["value"] - known["low"], known["high"] - known["value"]])
        axes.errorbar(known["batch_size"] * shift, known["value"], yerr=errors, fmt="none", ecolor=colours[arm], capsize=3)
        axes.plot(means["batch_size"] * shift, means["value"], "-o", ms=3.5, color=colours[arm], label=arm)
    batch_axis(axes, sizes)
