"""Plots show the result's own numbers, with labels, on the axes given or on new ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from toy_nets import CROSS_ENTROPY, own_labels, relu_net

from sharpness import hessian, random_direction, slice_1d, slice_2d, spectral_density, top_eigenvalues
from sharpness.plots import plot_density, plot_plane, plot_slice, plot_spectrum

torch.set_num_threads(1)
GRID = np.linspace(-1, 1, 5)


def line():
    model = relu_net()
    end = {k: 1.5 * t for k, t in model.state_dict().items()}
    return slice_1d(model, CROSS_ENTROPY, own_labels(), start=model.state_dict(), end=end, alphas=[1.0, 0.0, 0.5])


def plane(**options):
    model = relu_net()
    d = [random_direction(model, seed) for seed in (0, 1)]
    return slice_2d(model, CROSS_ENTROPY, own_labels(), directions=d, alphas=GRID, betas=GRID, **options)


def operator():
    return hessian(relu_net(), CROSS_ENTROPY, own_labels())


CASES = {
    "slice": (plot_slice, line),
    "plane": (plot_plane, plane),
    "density": (plot_density, lambda: spectral_density(operator(), probes=2, steps=8)),
    "spectrum": (plot_spectrum, lambda: top_eigenvalues(operator(), 3, tol=0.05)),
}


@pytest.mark.parametrize("name", CASES)
def test_labels_and_axes(name, tmp_path):
    plot, make = CASES[name]
    result, figure = make(), Figure(layout="constrained")
    given = figure.add_subplot()
    assert plot(result, given) is given
    ax = plot(result)
    assert ax.figure is not figure and ax.get_xlabel() and ax.get_ylabel()
    ax.figure.savefig(tmp_path / "p.png")
    box, inner = ax.get_tightbbox(), ax.figure.bbox  # nothing is cut off
    assert box.x0 >= inner.x0 and box.x1 <= inner.x1 and box.y0 >= inner.y0 and box.y1 <= inner.y1
    for wrong in ("a path", None, np.ones(3)):
        with pytest.raises(ValueError, match="result is"):
            plot(wrong)
    with pytest.raises(ValueError, match="ax is"):
        plot(result, "axes")


def test_slice_is_drawn_in_order():
    result = line()
    ax = plot_slice(result)
    x, y = ax.lines[0].get_data()
    assert list(x) == [0.0, 0.5, 1.0] and y[0] == result.losses[1] and y[2] == result.losses[0]
    assert ax.figure.axes[1].get_ylabel() == "accuracy (%)"
    np.testing.assert_allclose(ax.figure.axes[1].lines[0].get_ydata()[0], 100 * result.accuracies[1])


def test_spectrum_and_density_hold_the_numbers():
    values = top_eigenvalues(operator(), 3, tol=0.05)
    np.testing.assert_array_equal(plot_spectrum(values).lines[0].get_ydata(), values.values)
    density = spectral_density(operator(), probes=2, steps=8)
    drawn = plot_density(density).lines[0].get_ydata()
    high = density.values > density.values.max() / 10
    np.testing.assert_array_equal(drawn[high], density.values[high])


def test_plane_is_in_distances_and_skips_what_is_not_finite():
    result = plane()
    ax = plot_plane(result)
    assert ax.get_xlim()[1] == pytest.approx(result.norms[0])
    holes = result.losses.copy()
    holes[0, 0] = np.inf
    assert plot_plane(replace(result, losses=holes, cosine=0.0)).get_title() == "loss"
    assert "60°" in plot_plane(replace(result, cosine=0.5)).get_title()
    plot_plane(replace(result, losses=np.ones((5, 5))))  # flat: no levels, no warning
    with pytest.raises(ValueError, match="two points"):
        plot_plane(replace(result, losses=holes[:, :1], betas=result.betas[:1]))


def test_matplotlib_is_imported_when_asked_for():
    code = "import sys; sys.modules['matplotlib'] = None; import sharpness, sharpness.plots; print('fine')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "fine\n"
