"""How figures look, in one place, and how they are saved: the same bytes for the same data.

Nothing here touches matplotlib's global state: settings live in `style()`'s context, figures are `Figure` objects of the
Agg canvas, never pyplot's.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INK = "#333333"
PNG = ((110, 64), (90, 64), (80, 48), (72, 32))
"""dots per inch and colours of a PNG: the first with which it has at most PNG_BYTES"""
PNG_BYTES = 60_000
BYTES = np.array([1 << 16, 1 << 8, 1])
"""a colour as one number"""

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "lines.linewidth": 1.5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "batchlab",
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Inside, figures are made and saved in the project's style."""
    settings: Any = {**seaborn.axes_style("ticks"), **SETTINGS}
    with matplotlib.rc_context(settings):
        yield


def panels(rows: int, columns: int, width: float = 3.3, height: float = 3.0, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows x columns axes, `width` x `height` inches each."""
    figure = Figure(figsize=(columns * width, rows * height))
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def by_batch_size(sizes: Sequence[int]) -> dict[int, Any]:
    """A colour per batch size, dark to light in their order; readable by colour-blind eyes and in grey."""
    ordered = sorted(set(sizes))
    colours = matplotlib.colormaps["viridis"]([0.05 + 0.75 * i / max(1, len(ordered) - 1) for i in range(len(ordered))])
    return {size: tuple(float(x) for x in colour) for size, colour in zip(ordered, colours, strict=True)}


def by_arm(arms: Sequence[str]) -> dict[str, Any]:
    """A colour per arm, from seaborn's colour-blind palette; one arm alone is drawn in ink."""
    ordered = sorted(set(arms))
    if len(ordered) == 1:
        return {ordered[0]: INK}
    return dict(zip(ordered, seaborn.color_palette("colorblind", len(ordered)), strict=True))


def batch_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """A base-2 logarithmic axis of batch sizes with a tick at each that occurs; labels that would touch are left out."""
    ordered = sorted(set(sizes))
    shown = [size for i, size in enumerate(ordered) if i == 0 or size / ordered[i - 1] > 1.4]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(size) for size in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ordered[0] / 1.5, ordered[-1] * 1.5)
    axes.set_xlabel("batch size")


def save(figure: Figure, form: str) -> bytes:
    """The figure as png or pdf, without dates or versions that would change the bytes."""
    if form == "png":
        image = b""
        for dpi, colours in PNG:
            if len(image := _png(figure, dpi, colours)) <= PNG_BYTES:
                break
        return image
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=form, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return content.getvalue()


def _png(figure: Figure, dpi: int, colours: int) -> bytes:
    """In a few colours, each pixel in the nearest: the most frequent of those that differ by more than a shade. Areas and thick
    lines keep theirs exactly."""
    drawn, content = io.BytesIO(), io.BytesIO()
    with style():
        figure.savefig(drawn, format="png", dpi=dpi)
    pixels = np.asarray(Image.open(drawn).convert("RGB"), np.int32)
    _, first, which, counts = np.unique(pixels @ BYTES, return_index=True, return_inverse=True, return_counts=True)
    found = pixels.reshape(-1, 3)[first]
    frequent = found[np.argsort(-counts, kind="stable")]
    _, first = np.unique(frequent // 16 @ BYTES, return_index=True)
    palette = frequent[np.sort(first)[:colours]]
    nearest = ((found[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)
    image = Image.fromarray(nearest.astype(np.uint8)[which].reshape(pixels.shape[:2]))
    image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(content, "png", optimize=True, dpi=(dpi, dpi))
    return content.getvalue()
