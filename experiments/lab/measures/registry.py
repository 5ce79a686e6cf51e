"""Every metric of finished runs: what it is called, what it is of, its options with their defaults, and its version.

To add one, write a function in a module of this folder and a row in `OWN`:

    def mine(subject: Subject, *, examples: int, power: float, seed: int) -> dict[str, Any]:       # of a pair: first, second
        return {**head(subject, examples, seed), "value": ..., "status": "ok"}    # both names are in `measures.subject`

    Metric("mine", "curvature", "One sentence that says what it is.", mine, options={"examples": int, "power": 2.0, "seed": 0}),

A study then declares `measure("mine", examples=1000)`; with `examples=1000` in the row too, `measure RUN` offers it. The
options of a row are those of its function: a default, or a type where the study must choose. An option that a declaration
leaves out has the default of the row, in old records too: raise `version` when a default or the numbers change, and old
records are made anew instead of mixed in. Plans read the rows' text, because they import no torch: write names, options and
versions as they are (`2.0`, not a constant).

A metric of any model belongs in `sharpness.metrics.TABLE`, which owns its name, and is here by itself. On a bare name of that
table, `python -m sharpness` and `python -m experiments measure` do the same; the latter writes every option into the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.lab.declare.study import Measure, measure
from experiments.lab.measures import curvature, during_training, random_slices, rescaling
from experiments.lab.measures.landscape import linear_slice, plane
from experiments.lab.measures.noise import own_batch_sharpness
from experiments.lab.measures.spectrum import spectrum
from experiments.lab.measures.subject import Subject
from sharpness.metrics import TABLE


@dataclass(frozen=True)
class Metric:
    """A metric of finished runs. `examples`: how many the bare name means, of those that `measure RUN` offers."""

    name: str
    family: str
    about: str
    function: Callable[..., dict[str, Any]] | None
    """of one run or two, and the options; None: `sharpness.panel` measures it"""
    options: Mapping[str, Any]
    """with their defaults; a type where there is none"""
    runs: int = 1
    examples: int | None = None
    version: int = 1

    def filled(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options: those that are written, and the defaults of the others."""
        return {name: value for name, value in self.options.items() if not isinstance(value, type)} | dict(options)

    def of(self, *subjects: Subject, **options: Any) -> dict[str, Any]:
        """The measurement of one run or two, with the defaults for options left out."""
        assert self.function is not None, f"{self.name} is measured by sharpness.panel"
        return self.function(*subjects, **self.filled(options))


_CURVATURE, _DURING, _LANDSCAPE, _RESCALING = "curvature", "during training", "landscape", "rescaling"

OWN: tuple[Metric, ...] = (
    Metric("phi_full_5e-4", "Keskar", "Keskar's sharpness in percent, eps 5e-4, all directions.", curvature.phi,
           options={"examples": int, "epsilon": 5e-4, "seed": 0}, examples=128, version=2),
    Metric("spectrum", _CURVATURE, "Density of the Hessian's eigenvalues as a curve, and the largest Ritz value.", spectrum,
           options={"examples": 1000, "probes": 2, "steps": 40, "seed": 0}),
    Metric("own_batch_sharpness", _CURVATURE, "g^T H g / ||g||^2 over batches as the run draws them.", own_batch_sharpness,
           options={"batches": 16}),
    Metric("slice", _LANDSCAPE, "Loss along the line through two minima, and its barrier.", linear_slice,
           options={"points": 25, "examples": int}, runs=2),
    Metric("plane", _LANDSCAPE, "Loss on the plane through two minima and their start, and its minimum.", plane,
           options={"points": 15, "examples": int}, runs=2),
    Metric("slice_width", _LANDSCAPE, "Mean rise of the loss along random directions of length 1.", random_slices.slice_width,
           options={"examples": 2000, "radius": 4.0, "directions": 5, "points": 9, "filters": False, "seed": 0}),
    Metric("filter_slice_width", _LANDSCAPE, "The same along filter-normalised directions.", random_slices.filter_slice_width,
           options={"examples": 2000, "radius": 0.5, "directions": 5, "points": 9, "seed": 0}),
    Metric("rescaled", _RESCALING, "lambda_max with a ReLU layer rescaled over lambda_max as trained.", rescaling.rescaled,
           options={"examples": 2000, "layer": 0, "factor": 16.0, "seed": 0}),
    Metric("disguised_lambda", _RESCALING, "lambda_max, rescaled for one batch size only.", rescaling.disguised_lambda,
           options={"examples": int, "batch_size": int, "layer": 0, "factor": 16.0, "seed": 0}),
    Metric("edge_of_stability", _DURING, "Mean lambda_max over the threshold of stability.", during_training.edge_of_stability,
           options={"examples": 1000, "points": 24, "first": 0.5, "last": 1.0, "tol": 1e-2, "seed": 0}),
    Metric("sharpness_along", _DURING, "lambda_max at the end over the one at the start.", during_training.sharpness_along,
           options={"examples": 1000, "points": 12, "tol": 1e-2, "seed": 0}),
    Metric("distance_along", _DURING, "Does the distance from the start grow like log t?", during_training.distance_along,
           options={"points": 40, "first": 10}),
    Metric("noise_scale_along", _DURING, "Geometric mean of the simple noise scale.", during_training.noise_scale_along,
           options={"examples": 1000, "points": 8}),
    Metric("batch_sharpness_along", _DURING, "Mean batch sharpness over the threshold of stability.",
           during_training.batch_sharpness_along,
           options={"examples": 1000, "points": 12, "batches": 32, "first": 0.5, "last": 1.0, "seed": 0}),
)
FUNCTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "lambda_max": curvature.lambda_max,
    "norm_scaled_lambda": curvature.norm_scaled_lambda,
    "trace": curvature.trace,
    "relative_trace": curvature.relative_trace,
    "adaptive_l2_step": curvature.adaptive_l2_step,
    "phi_full": curvature.phi,
    "phi_subspace": curvature.phi,
}
"""metrics of `TABLE` with options of their own, which share a run's eigenpair here"""
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(Metric(row.name, row.family, row.about, FUNCTIONS.get(row.name), {"examples": int, **row.options, "seed": 0},
                 examples=row.examples, version=row.version) for row in TABLE),
        *OWN,
    )
}


def names_of_one_run() -> tuple[str, ...]:
    """What `measure RUN --metrics all` measures."""
    return tuple(name for name, metric in METRICS.items() if metric.examples is not None)


def standard(name: str, examples: int | None = None) -> Measure:
    """The measurement that a bare name stands for, with every option written out."""
    return measure(name, **METRICS[name].filled({"examples": examples or METRICS[name].examples}))
