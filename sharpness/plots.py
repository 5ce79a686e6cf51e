"""Plots of results, for those who have matplotlib: it is imported when a plot is asked for, and not before.

Each function takes a result and optional axes, draws, and returns the axes; without axes it makes a figure of its own,
`ax.figure`, which pyplot does not know. Raises ValueError for another kind of result, ImportError without matplotlib.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sharpness.landscape.grid import Slice2D
from sharpness.landscape.slices import Slice1D
from sharpness.linalg.density import SpectralDensity
from sharpness.linalg.eigen import Eigenvalues
from sharpness.problem.arguments import shown

_SIZE = (4.2, 3.0)  # inches
_LEVELS = 12  # of a contour plot


def plot_slice(result: Slice1D, ax: Any = None) -> Any:
    """Loss along the path, and accuracy on an axis at the right where there is one."""
    _require(result, Slice1D, "slice_1d")
    ax = _axes(ax)
    order = np.argsort(result.alphas)
    ax.plot(result.alphas[order], result.losses[order], color="C0", marker=".", label="loss")
    ax.set_xlabel("position along the path, α" if result.curve == "linear" else "position along the arc, α")
    ax.set_ylabel("loss", color="C0" if result.accuracies is not None else "black")
    for end in (0.0, 1.0):
        if result.alphas.min() <= end <= result.alphas.max():
            ax.axvline(end, color="0.8", linewidth=0.8, zorder=0)
    if result.accuracies is not None:
        other = ax.twinx()
        other.plot(result.alphas[order], 100 * result.accuracies[order], color="C1", marker=".", label="accuracy")
        other.set_ylabel("accuracy (%)", color="C1")
    return ax


def plot_plane(result: Slice2D, ax: Any = None) -> Any:
    """Contours of the loss at levels that grow by a factor, in distances between weights along both directions."""
    _require(result, Slice2D, "slice_2d")
    if min(result.losses.shape) < 2:
        raise ValueError(f"result has losses of shape {result.losses.shape}: contours need two points or more along each axis")
    ax = _axes(ax)
    losses = np.where(np.isfinite(result.losses), result.losses, np.nan)
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    base = max(low, 1e-3 * high) if low >= 0 else None
    levels = np.linspace(low, high, _LEVELS) if base is None or high < 3 * base else np.geomspace(base, high, _LEVELS)
    a, b = result.alphas * result.norms[0], result.betas * result.norms[1]
    i, j = np.argsort(a), np.argsort(b)
    if high > low:
        drawn = ax.contour(a[i], b[j], losses[np.ix_(i, j)].T, levels=levels, cmap="viridis", linewidths=1.0)
        ax.clabel(drawn, drawn.levels[::2], fontsize=7, fmt="%.2g")
    ax.plot(0, 0, color="black", marker="+")
    ax.set_xlabel("distance along the first direction")
    ax.set_ylabel("distance along the second")
    angle = np.degrees(np.arccos(np.clip(result.cosine, -1, 1)))
    ax.set_title("loss" if abs(angle - 90) < 5 else f"loss; axes are at {angle:.0f}°, not 90°", fontsize=9)
    return ax


def plot_density(result: SpectralDensity, ax: Any = None) -> Any:
    """Density of the eigenvalues on a logarithmic axis, with its standard error over probes."""
    _require(result, SpectralDensity, "spectral_density")
    ax = _axes(ax)
    order = np.argsort(result.grid)
    grid, values, error = result.grid[order], result.values[order], result.standard_error[order]
    floor = 0.1 / (result.n * result.sigma * np.sqrt(2 * np.pi))  # a tenth of one eigenvalue's peak
    ax.semilogy(grid, np.maximum(values, floor), color="C0")
    ax.fill_between(grid, np.maximum(values - error, floor), np.maximum(values + error, floor), color="C0", alpha=0.3, lw=0)
    ax.set_ylim(bottom=floor)
    ax.set_xlabel("eigenvalue λ")
    ax.set_ylabel("density (per unit of λ)")
    return ax


def plot_spectrum(result: Eigenvalues, ax: Any = None) -> Any:
    """The extreme eigenvalues by rank, with the residual as the error of each."""
    _require(result, Eigenvalues, "top_eigenvalues")
    ax = _axes(ax)
    rank = np.arange(1, len(result.values) + 1)
    ax.errorbar(rank, result.values, yerr=result.residuals, color="C0", marker="o", linestyle="none", capsize=3)
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.xaxis.get_major_locator().set_params(integer=True)
    what = {"LA": "largest first", "SA": "smallest first", "LM": "largest magnitude first"}[result.which]
    ax.set_xlabel(f"rank, {what}")
    ax.set_ylabel("eigenvalue λ")
    return ax


def _require(result: Any, kind: type, function: str) -> None:
    if not isinstance(result, kind):
        raise ValueError(f"result is {shown(result)}: pass what {function} returned")


def _axes(ax: Any) -> Any:
    if ax is not None:
        if not hasattr(ax, "set_xlabel"):
            raise ValueError(f"ax is {shown(ax)}: pass matplotlib axes, or None")
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plots need matplotlib ({error}): pip install 'batchlab[analysis]'", name="matplotlib") from error
    return Figure(figsize=_SIZE, layout="constrained").add_subplot()
