"""Measurements of finished runs: the `sharpness` package on stored weights.

Every measurement is made in float32 with TF32 off (float64 for float64 runs), dropout and augmentation off, in
evaluation mode with recalibrated batch-norm statistics, on the first `examples` training examples: random ones, always the
same, except in the data sets of published results (`RunConfig.train_draw`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.study import Measure, measure
from experiments.lab.measures import during_training as along
from experiments.lab.measures import random_slices as widths
from experiments.lab.measures import rescaling
from experiments.lab.measures.landscape import plane
from experiments.lab.measures.noise import own_batch_sharpness
from experiments.lab.measures.replay_run import Past, past_of
from experiments.lab.measures.spectrum import spectrum
from experiments.lab.store.data_places import located
from experiments.lab.store.files import REPAIR, StoreError
from experiments.lab.store.records import Store

if TYPE_CHECKING:
    from torch import nn

    from experiments.lab.training.data import Data
    from experiments.lab.training.state import Tensors
    from sharpness import Eigenvalues

BATCH = 2500
"""examples per forward pass; changes rounding only"""


@dataclass(frozen=True)
class Subject:
    """A finished run, ready to be measured."""

    config: RunConfig
    model: nn.Module
    weights: Tensors
    data: Data
    eigenpairs: dict[tuple[int, float, int], Eigenvalues] = field(default_factory=dict, repr=False, compare=False)
    """what `top_eigenpair` found, by its arguments, so that measurements of one run share it"""
    past: Callable[[], Past] = field(default=lambda: Past(0, Machine(), None, False), repr=False, compare=False)
    """how the run came here, for measurements along training; a function, because only they need its parent"""


def load_subject(store: Store, run_id: str, machine: Machine) -> Subject:
    """Model, weights and data of a stored run; raises `StoreError` where its weights are missing or altered."""
    from experiments.lab import models
    from experiments.lab.store.checkpoints import final_weights
    from experiments.lab.training.data import dtype_of, prepare, read

    if (store.summary(run_id) or {}).get("status") == "diverged":
        raise StoreError(f"run {run_id} diverged, so there is no minimum to measure; choose another run")
    weights, config = final_weights(store, run_id), store.config(run_id)
    if config is None:
        raise StoreError(f"{store.folder(run_id)}/config.json is missing; {REPAIR}")
    data = prepare(config, machine, read(located(config, machine.data_path, store.root), machine.data_path))
    model = models.build(config, data.shape, data.classes).to(machine.device, dtype_of(config))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise StoreError(f"the weights of run {run_id} are of another network than its configuration; {REPAIR}") from error
    return Subject(config, model.eval(), weights, data, past=lambda: past_of(store, config, machine))


def top_eigenpair(subject: Subject, examples: int, tol: float = 1e-3, seed: int = 0) -> Eigenvalues:
    """The Hessian's leading eigenvalue and eigenvector; the same whichever measurement asks first."""
    from torch.nn.functional import cross_entropy

    from sharpness import hessian, top_eigenvalues

    key = (examples, tol, seed)
    if key not in subject.eigenpairs:
        operator = hessian(subject.model, cross_entropy, _subset(subject, examples), batch_size=BATCH)
        subject.eigenpairs[key] = top_eigenvalues(operator, tol=tol, seed=seed)
    return subject.eigenpairs[key]


def lambda_max(subject: Subject, *, examples: int, tol: float = 1e-3, seed: int = 0) -> dict[str, Any]:
    """Largest eigenvalue of the Hessian of the mean cross-entropy."""
    result = top_eigenpair(subject, examples, tol, seed)
    return {
        **head(subject, examples, seed),
        "value": float(result.values[0]),
        "residual": float(result.residuals[0]),
        "products": result.matvecs,
        "status": result.status,
    }


def norm_scaled_lambda(subject: Subject, *, examples: int, tol: float = 1e-3, seed: int = 0) -> dict[str, Any]:
    """||w||^2 times the largest eigenvalue: curvature per relative change of all weights together."""
    from sharpness import norm_scaled

    result = top_eigenpair(subject, examples, tol, seed)
    scaled = norm_scaled(result, subject.model)
    assert scaled.residuals is not None  # made of an `Eigenvalues`
    return {
        **head(subject, examples, seed),
        "value": float(scaled.values[0]),
        "residual": float(scaled.residuals[0]),
        "products": result.matvecs,
        "status": result.status,
        "details": {"norm_squared": scaled.norm_squared},
    }


def hessian_trace(subject: Subject, *, examples: int, products: int = 12, seed: int = 0) -> dict[str, Any]:
    """Trace of the Hessian of the mean cross-entropy, by hutch++."""
    from torch.nn.functional import cross_entropy

    from sharpness import hessian, trace

    operator = hessian(subject.model, cross_entropy, _subset(subject, examples), batch_size=BATCH)
    return _result(subject, examples, trace(operator, matvecs=products, seed=seed))


def relative_trace(subject: Subject, *, examples: int, products: int = 12, seed: int = 0) -> dict[str, Any]:
    """sum_i w_i^2 H_ii, which a rescaling of ReLU layers does not change (Dinh et al. 2017)."""
    from torch.nn.functional import cross_entropy

    from sharpness import relative_trace

    data = _subset(subject, examples)
    found = relative_trace(subject.model, cross_entropy, data, probes=products, batch_size=BATCH, seed=seed)
    return _result(subject, examples, found)


def adaptive_l2_step(subject: Subject, *, examples: int, rho: float = 0.5, m: int = 128,
                     seed: int = 0) -> dict[str, Any]:
    """Rise of the loss (nats) by one step of length rho relative to each weight: the mean over batches of m examples."""
    from torch.nn.functional import cross_entropy

    from sharpness import worst_case_sharpness

    data = _subset(subject, examples)
    found = worst_case_sharpness(
        subject.model, cross_entropy, data, rho=rho, adaptive=True, steps=1, m=min(m, len(data[1])),
        batch_size=BATCH, seed=seed,
    )
    return _result(subject, examples, found)


def phi(subject: Subject, *, examples: int, epsilon: float = 1e-3, subspace: int | None = None,
        seed: int = 0) -> dict[str, Any]:
    """Keskar et al. 2017, Metric 2.1, in percent: in the full space, or in `subspace` random directions."""
    from torch.nn.functional import cross_entropy

    from sharpness import epsilon_sharpness

    vectors = top_eigenpair(subject, examples, seed=seed).vectors
    result = epsilon_sharpness(
        subject.model, cross_entropy, _subset(subject, examples), epsilon=epsilon, subspace=subspace, seed=seed,
        batch_size=BATCH, eigenvector=None if vectors is None else vectors[0],
    )
    facts = result.to_dict()
    return {
        **head(subject, examples, seed),
        "value": result.value,
        "products": result.evaluations,
        "status": result.status,
        "details": {name: facts[name] for name in sorted(facts) if name not in ("value", "status", "seed")},
    }


def linear_slice(first: Subject, second: Subject, *, points: int = 25, examples: int) -> dict[str, Any]:
    """Losses (nats) and accuracies (percent) at (1 - a) first + a second, `points` values of a in [-1, 2] (Figure 3).

    `value` is the barrier: the largest training loss for a in [0, 1] above the larger end's. Raises `ConfigError`
    for a number of points that misses the ends, a = 0 and a = 1.
    """
    import numpy as np
    from torch.nn.functional import cross_entropy

    from experiments.lab.training.evaluate import calibrate_on
    from sharpness import slice_1d

    if points < 4 or points % 3 != 1:
        raise ConfigError(
            f"a slice of {points} points on [-1, 2] misses an end of the path, a = 0 or a = 1: choose one more than a "
            "multiple of 3, such as 25"
        )
    data, unit = first.data, (points - 1) // 3  # steps from 0 to 1; divided last, so that both are met exactly
    curves: dict[str, list[float]] = {"alphas": ((np.arange(points) - unit) / unit).tolist()}
    train, test = (
        slice_1d(
            first.model, cross_entropy, (part.inputs[:examples], part.targets[:examples]),
            start=first.weights, end=second.weights, alphas=curves["alphas"], batch_size=BATCH,
            recalibrate=lambda model: calibrate_on(model, data.train.inputs),
        )
        for part in (data.train, data.test)
    )
    for split, result in (("train", train), ("test", test)):
        curves[f"{split}_loss"] = [float(v) for v in result.losses]
        assert result.accuracies is not None  # targets are classes
        curves[f"{split}_accuracy"] = [100 * float(v) for v in result.accuracies]
    status = "ok" if np.isfinite(train.barrier) else "nonfinite"  # a loss that is not, outside [0, 1], is in details
    return {**head(first, examples, None), "value": train.barrier, "status": status, "details": curves}


METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "lambda_max": lambda_max,
    "phi_full": phi,
    "phi_full_5e-4": phi,
    "phi_subspace": phi,
    "norm_scaled_lambda": norm_scaled_lambda,
    "trace": hessian_trace,
    "relative_trace": relative_trace,
    "adaptive_l2_step": adaptive_l2_step,
    "own_batch_sharpness": own_batch_sharpness,
    "slice": linear_slice,
    "plane": plane,
    "rescaled": rescaling.rescaled,
    "disguised_lambda": rescaling.disguised_lambda,
    "slice_width": widths.slice_width,
    "filter_slice_width": widths.filter_slice_width,
    "spectrum": spectrum,
    **along.METRICS,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "lambda_max": {"examples": 2000},
    "phi_full": {"examples": 2000},
    "phi_full_5e-4": {"examples": 2000, "epsilon": 5e-4},
    "phi_subspace": {"examples": 2000, "subspace": 100},
    "norm_scaled_lambda": {"examples": 2000},
    "trace": {"examples": 1000},
    "relative_trace": {"examples": 1000},
    "adaptive_l2_step": {"examples": 1024},
}
"""what `measure RUN --metrics NAME` makes of a metric's name"""


def names_of_one_run() -> tuple[str, ...]:
    """Every metric of one run: this module's own, and those of `sharpness.panels` under other names."""
    from sharpness.metrics import TABLE

    return (*DEFAULTS, *(metric.name for metric in TABLE if metric.name not in METRICS))


def standard(metric: str) -> Measure:
    """The measurement that a metric's bare name stands for."""
    if metric in METRICS:
        return measure(metric, **DEFAULTS.get(metric, {}))
    from sharpness.metrics import TABLE

    return measure(metric, examples=next(entry.examples for entry in TABLE if entry.name == metric))


def perform(store: Store, machine: Machine, measures: Sequence[Measure], run_ids: Sequence[str]) -> None:
    """Make and record those of `measures` of the runs `run_ids` (one, or a pair) that the store lacks."""
    for _ in performing(store, machine, measures, run_ids):
        pass


def performing(
    store: Store, machine: Machine, measures: Sequence[Measure], run_ids: Sequence[str]
) -> Iterator[tuple[int, int, Measure]]:
    """The same, one after the other: what has just been recorded, as the how-manieth of how many."""
    if unknown := [m.metric for m in measures if m.metric not in METRICS and m.metric not in names_of_one_run()]:
        raise ConfigError(f"there is no metric {unknown[0]!r}; the metrics are {', '.join((*names_of_one_run(), 'slice'))}")
    due = [measure for measure in measures if store.measurement(measure, run_ids) is None]
    subjects = [load_subject(store, run_id, machine) for run_id in run_ids] if due else []
    own = [wanted for wanted in due if wanted.metric in METRICS]
    for number, wanted in enumerate(own, 1):
        store.write_measurement(wanted, run_ids, METRICS[wanted.metric](*subjects, **dict(wanted.options)))
        yield number, len(due), wanted
    number = len(own)
    for options, group in itertools.groupby(
        sorted((m for m in due if m not in own), key=lambda m: m.options), key=lambda m: m.options
    ):
        for wanted, result in _from_panel(subjects[0], list(group), **dict(options)):
            number += 1
            store.write_measurement(wanted, run_ids, result)
            yield number, len(due), wanted


def _from_panel(
    subject: Subject, wanted: Sequence[Measure], *, examples: int, seed: int = 0
) -> Iterator[tuple[Measure, dict[str, Any]]]:
    """Metrics of `sharpness.panels` on the same examples, which share the Hessian's operator."""
    from torch.nn.functional import cross_entropy

    from sharpness.panels import panel

    by_name = {m.metric: m for m in wanted}
    for entry in panel(
        subject.model, cross_entropy, _subset(subject, examples), metrics=list(by_name), examples=examples, seed=seed
    ):
        facts = {} if entry.result is None else entry.result.to_dict()
        residuals = facts.get("residuals") or [None]
        yield by_name[entry.metric], {
            **head(subject, examples, facts.get("seed")),
            "value": entry.value,
            "standard_error": entry.standard_error,
            "residual": residuals[0],
            "products": facts.get("matvecs", facts.get("evaluations")),
            "status": entry.status,
            "details": facts or {"sentence": entry.sentence},
        }


def _subset(subject: Subject, examples: int) -> tuple[Any, Any]:
    train = subject.data.train
    return train.inputs[:examples], train.targets[:examples]


def _result(subject: Subject, examples: int, found: Any) -> dict[str, Any]:
    """A result of `sharpness` with a value and a standard error as a measurement."""
    facts = found.to_dict()
    own = ("value", "standard_error", "status", "seed")
    return {
        **head(subject, examples, found.seed),
        "value": found.value,
        "standard_error": found.standard_error,
        "products": facts.get("matvecs", facts.get("evaluations")),
        "status": found.status,
        "details": {name: facts[name] for name in sorted(facts) if name not in own},
    }


def head(subject: Subject, examples: int, seed: int | None) -> dict[str, Any]:
    """The certificate every measurement carries; what does not apply is null."""
    return {
        "standard_error": None,
        "residual": None,
        "products": None,
        "examples": min(examples, len(subject.data.train)),
        "bn_mode": "eval",
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
        "seed": seed,
        "details": {},
    }
