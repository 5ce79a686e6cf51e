"""Measurements of finished runs: the `sharpness` package on stored weights.

Every measurement is made in float32 with TF32 off (float64 for float64 runs), dropout and augmentation off, in
evaluation mode with recalibrated batch-norm statistics, on the first `examples` training examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.lab.config import ConfigError, Machine, RunConfig
from experiments.lab.store import Store, StoreError
from experiments.lab.study import Measure, measure

if TYPE_CHECKING:
    from torch import nn

    from experiments.lab.training.data import Data
    from experiments.lab.training.state import Tensors

BATCH = 2500
"""examples a forward pass; changes rounding only"""


@dataclass(frozen=True)
class Subject:
    """A finished run, ready to be measured."""

    config: RunConfig
    model: nn.Module
    weights: Tensors
    data: Data


def load_subject(store: Store, run_id: str, machine: Machine) -> Subject:
    """Model, weights and data of a stored run; raises `StoreError` where its weights are missing or altered."""
    from experiments.lab import models
    from experiments.lab.training.checkpoint import digest, load_tensors
    from experiments.lab.training.data import dtype_of, prepare, read

    config, path = store.config(run_id), store.folder(run_id) / "final.safetensors"
    if (store.summary(run_id) or {}).get("status") == "diverged":
        raise StoreError(f"run {run_id} diverged, so there is no minimum to measure; choose another run")
    summary, loaded = store.summary(run_id), load_tensors(path)
    if summary is None:
        raise StoreError(f"run {run_id} is not finished; run its study first")
    if config is None or loaded is None or digest(loaded[0]) != summary["files"][path.name]:
        raise StoreError(f"{path} is missing or altered; delete {path.parent} and run its study again")
    data = prepare(config, machine, read(config.dataset, machine.data_path))
    model = models.build(config, data.shape, data.classes).to(machine.device, dtype_of(config))
    model.load_state_dict(loaded[0])
    return Subject(config, model.eval(), loaded[0], data)


def lambda_max(subject: Subject, *, examples: int, tol: float = 1e-3, seed: int = 0) -> dict[str, Any]:
    """Largest eigenvalue of the Hessian of the mean cross-entropy."""
    from torch.nn.functional import cross_entropy

    from sharpness import hessian, top_eigenvalues

    operator = hessian(subject.model, cross_entropy, _subset(subject, examples), batch_size=BATCH)
    result = top_eigenvalues(operator, tol=tol, seed=seed)
    return {
        **_head(subject, examples, seed),
        "value": float(result.values[0]),
        "residual": float(result.residuals[0]),
        "products": result.matvecs,
        "status": result.status,
    }


def phi(subject: Subject, *, examples: int, epsilon: float = 1e-3, subspace: int | None = None,
        seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """Keskar et al. 2017, Metric 2.1, in percent: in the full space, or in `subspace` random directions."""
    from torch.nn.functional import cross_entropy

    from sharpness import epsilon_sharpness

    result = epsilon_sharpness(
        subject.model, cross_entropy, _subset(subject, examples), epsilon=epsilon, subspace=subspace, seed=seed,
        batch_size=BATCH,
    )  # fmt: skip
    facts = result.to_dict()
    return {
        **_head(subject, examples, seed),
        "value": result.value,
        "products": result.evaluations,
        "status": result.status,
        "details": {name: facts[name] for name in sorted(facts) if name not in ("value", "status", "seed")},
    }


def linear_slice(first: Subject, second: Subject, *, points: int = 25, examples: int) -> dict[str, Any]:
    """Losses (nats) and accuracies (percent) at (1 - a) first + a second, `points` values of a in [-1, 2] (Figure 3).

    `value` is the barrier: the largest training loss for a in [0, 1] above the larger end's.
    """
    import numpy as np
    from torch.nn.functional import cross_entropy

    from experiments.lab.training.evaluate import calibrate_on
    from sharpness import slice_1d

    data, alphas = first.data, np.linspace(-1, 2, points)
    curves: dict[str, list[float]] = {"alphas": [float(a) for a in alphas]}
    for split, part in (("train", data.train), ("test", data.test)):
        result = slice_1d(
            first.model, cross_entropy, (part.inputs[:examples], part.targets[:examples]),
            start=first.weights, end=second.weights, alphas=alphas, batch_size=BATCH,
            recalibrate=lambda model: calibrate_on(model, data.train.inputs),
        )  # fmt: skip
        curves[f"{split}_loss"] = [float(v) for v in result.losses]
        assert result.accuracies is not None  # targets are classes
        curves[f"{split}_accuracy"] = [100 * float(v) for v in result.accuracies]
    inside = [loss for a, loss in zip(alphas, curves["train_loss"], strict=True) if 0 <= a <= 1]
    return {
        **_head(first, examples, None),
        "value": max(inside) - max(inside[0], inside[-1]),
        "status": "ok",
        "details": curves,
    }


METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "lambda_max": lambda_max,
    "phi_full": phi,
    "phi_full_5e-4": phi,
    "phi_subspace": phi,
    "slice": linear_slice,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "lambda_max": {"examples": 2000},
    "phi_full": {"examples": 2000},
    "phi_full_5e-4": {"examples": 2000, "epsilon": 5e-4},
    "phi_subspace": {"examples": 2000, "subspace": 100},
}
"""what `measure RUN --metrics NAME` makes of a metric's name"""


def standard(metric: str) -> Measure:
    """The measurement that a metric's bare name stands for."""
    return measure(metric, **DEFAULTS.get(metric, {}))


def perform(store: Store, machine: Machine, measures: Sequence[Measure], run_ids: Sequence[str]) -> None:
    """Make and record those of `measures` of the runs `run_ids` (one, or a pair) that the store lacks."""
    if unknown := [measure.metric for measure in measures if measure.metric not in METRICS]:
        raise ConfigError(f"there is no metric {unknown[0]!r}; the metrics are {', '.join(METRICS)}")
    due = [measure for measure in measures if store.measurement(measure, run_ids) is None]
    subjects = [load_subject(store, run_id, machine) for run_id in run_ids] if due else []
    for wanted in due:
        store.write_measurement(wanted, run_ids, METRICS[wanted.metric](*subjects, **dict(wanted.options)))


def _subset(subject: Subject, examples: int) -> tuple[Any, Any]:
    train = subject.data.train
    return train.inputs[:examples], train.targets[:examples]


def _head(subject: Subject, examples: int, seed: int | None) -> dict[str, Any]:
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
