"""A small study whose answers are known, and a store of its runs written without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from experiments.lab.declare.claims import Claim, Contrast, Gate, Group, Kind, ValueScale
from experiments.lab.declare.config import SCIENCE_VERSION, Budget, Optimizer, RunConfig
from experiments.lab.declare.study import Comparison, Figure, Pair, PaperRow, Request, Scale, Stage, Study, measure
from experiments.lab.store.files import to_json
from experiments.lab.store.records import Store

TARGET = 0.01
SIZES = (16, 64, 256, 500)
SEEDS = 8
N_TRAIN, N_TEST = 5000, 200
PHI = {"phi_full": measure("phi_full", examples=100), "phi_subspace": measure("phi_subspace", examples=100, subspace=10)}
LAMBDA = measure("lambda_max", examples=100)
SLICE = measure("slice", examples=100, points=25)


LARGE = Group("B 500", 1.0, (("batch_size", 500),))
SMALL = Group("B 16", -1.0, (("batch_size", 16),))


def config(batch_size: int, seed: int, **fields: Any) -> RunConfig:
    base: dict[str, Any] = {"n_train": N_TRAIN, "optimizer": Optimizer.ADAM, "lr": 1e-3, "budget": Budget.TRAIN_LOSS,
                            "train_loss": TARGET, "max_epochs": 400}
    return RunConfig(batch_size=batch_size, seed=seed, **(base | fields))


def runs(request: Request, records: object) -> list[RunConfig]:
    return [config(size, seed) for size in SIZES for seed in range(SEEDS)]


def pairs(request: Request) -> list[Pair]:
    return [Pair(config(SIZES[0], seed), config(SIZES[-1], seed), SLICE) for seed in range(3)]


def difference(value: str, sign: int, unit: str = "percentage points", scale: ValueScale = ValueScale.LINEAR) -> Contrast:
    return Contrast(value, (LARGE, SMALL), sign, unit, scale)


def claim(id: str, value: str = "test_accuracy", sign: int = -1, margin: float = 0.1, **options: Any) -> Claim:
    kind = options.pop("kind", Kind.DIRECTIONAL)
    contrast = difference(value, sign, *options.pop("contrast", ()))
    return Claim(id, f"{id} holds", kind, contrast, margin, **options)


COMMON = (Gate("min_seeds", 8), Gate("status", 0.1), Gate("matched", 0.1, "train_loss"))
CLAIMS = (
    claim("tests-worse", primary=True, gates=COMMON, paper_value=0.5, paper_source="read: Table 2"),
    claim("sharper", "lambda_max", 1, log(1.25), contrast=("ratio", ValueScale.LOG),
          gates=(*COMMON, Gate("converged", 0.1, "lambda_max")), paper_value=log(24), paper_source="secondary"),
    claim("nearer", "distance_from_start", -1, log(1.25), contrast=("ratio", ValueScale.LOG)),
    claim("same-train-loss", "train_loss", 1, 0.005, kind=Kind.EQUIVALENCE),
)


def study(claims: tuple[Claim, ...] = CLAIMS, stages: tuple[Stage, ...] | None = None, name: str = "toy") -> Study:
    return Study(
        name=name,
        title="A toy",
        citation="Nobody, never",
        scales=(Scale("quick", "numpy", "nothing"),),
        stages=stages or (Stage("train", runs, measures=lambda: (LAMBDA, *PHI.values()), pairs=pairs),),
        claims=claims,
        figures=tuple(Figure(kind, kind) for kind in
                      ("generalization_gap", "sharpness_vs_batch", "parametric_slice", "training_curves")),
        paper=(
            PaperRow("Table 2", "F1", "test accuracy", "test_accuracy", 98.03, 97.81, 0.07, 0.07),
            PaperRow("Table 3", "F1", "phi, full space, 1e-3", "phi_full", 1.23, 205.14),
        ),
        comparisons=(Comparison("quick", "F1", "the toy", SMALL, LARGE),),
        deviations=("This study is not about anything.",),
        module=__name__,
    )


@dataclass(frozen=True)
class Truth:
    """Where the synthetic values lie: the mean of each at batch size B, and the seeds' spread."""

    test_accuracy: Callable[[int], float] = lambda B: 84.6 - 0.15 * np.log2(B / 16)
    accuracy_sd: float = 0.2
    lambda_max: Callable[[int], float] = lambda B: 8.0 * (B / 16) ** 0.9
    distance: Callable[[int], float] = lambda B: 20.0 * (B / 16) ** -0.12
    train_loss: Callable[[int], float] = lambda B: 0.0096
    status: Callable[[RunConfig], str | None] = lambda c: "done"
    """None: the run is missing"""
    measured: Callable[[str, RunConfig], str | None] = lambda metric, c: "converged" if metric == "lambda_max" else "ok"
    """status of a measurement, None: missing"""
    extra: dict[str, Any] = field(default_factory=dict)


def write(root: Path, declared: Study, truth: Truth = Truth(), scale: str = "quick") -> Store:
    """A store with every run and measurement of `declared`'s first stages that needs no records."""
    store = Store(root)
    request = Request(scale)
    for stage in declared.stages:
        configs = list(stage.runs_of(request, ()))
        done = {c for c in configs if _write_run(store, c, truth)}
        for c in configs:
            for m in stage.measures_of(request, c):
                if c in done and (status := truth.measured(m.metric, c)) is not None:
                    value = _sharpness(m.metric, c, truth)
                    details = _along(value) if m.metric.endswith("_along") else {}
                    details |= {"value_origin": value / 3} if m.metric.startswith("phi") else {}
                    store.write_measurement(m, [c.run_id], _certificate(value, status, details))
        for pair in stage.pairs_of(request, configs):
            if {pair.first, pair.second} <= done:
                ids = [pair.first.run_id, pair.second.run_id]
                store.write_measurement(pair.measure, ids, _certificate(0.5, "ok", _of_pair(pair)))
    return store


def _of_pair(pair: Pair) -> dict[str, Any]:
    if pair.measure.metric == "slice":
        return _slice(pair.first.seed)
    axis = np.linspace(-1.0, 2.0, 7)
    losses = 0.01 + (axis[:, None] - 0.5) ** 2 + 2 * axis[None, :] ** 2
    points = [{"label": label, "x": x, "y": y} for label, x, y in (("B 32", 0, 0), ("B 500", 1, 0), ("start", 0.3, 1.5))]
    return {"alphas": axis.tolist(), "betas": axis.tolist(), "train_loss": losses.tolist(), "points": points}


def _along(value: float) -> dict[str, Any]:
    return {"steps": [0, 10, 100], "lambda_max": [value / 2, 2 * value, value], "train_loss": [2.3, 1.0, TARGET]}


def _rng(c: RunConfig, salt: int = 0) -> np.random.Generator:
    return np.random.default_rng([c.batch_size, c.seed, salt])


def _write_run(store: Store, c: RunConfig, truth: Truth) -> bool:
    """Returns whether the run can be measured."""
    status = truth.status(c)
    if status is None:
        return False
    rng, folder = _rng(c), store.folder(c.run_id)
    folder.mkdir(exist_ok=True)
    (folder / "measurements").mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(to_json({"science_version": SCIENCE_VERSION, **c.to_dict()}))
    accuracy = truth.test_accuracy(c.batch_size) + truth.accuracy_sd * rng.standard_normal()
    train = 99.9 + 0.05 * rng.standard_normal()
    epochs = 40.0 + 0.2 * c.batch_size
    steps = int(epochs * N_TRAIN / c.batch_size)
    values: dict[str, Any] = dict.fromkeys(
        ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "validation_loss", "validation_accuracy",
         "gap_accuracy", "gap_loss", "distance_from_start", "reason", "commit"))
    if status != "diverged":
        values |= {
            "train_loss": truth.train_loss(c.batch_size) * float(np.exp(0.01 * rng.standard_normal())),
            "train_accuracy": train, "test_accuracy": accuracy, "test_loss": 1.2, "gap_accuracy": train - accuracy,
            "gap_loss": 1.19,
            "distance_from_start": truth.distance(c.batch_size) * float(np.exp(0.02 * rng.standard_normal())),
        }
        label = (np.arange(N_TEST) % 10).astype(np.uint8)
        wrong = _rng(c, 1).random(N_TEST) > accuracy / 100
        arrays = {"test_prediction": np.where(wrong, (label + 1) % 10, label).astype(np.uint8), "test_label": label,
                  "test_loss": np.full(N_TEST, 1.2, np.float32)}
        (folder / "predictions.safetensors").write_bytes(save(arrays))
    rows = [json.dumps(row) for row in _history(c, steps, accuracy)]
    (folder / "history.jsonl").write_text("\n".join(rows) + "\n")
    summary = {"run_id": c.run_id, "status": status, "steps": steps, "examples": steps * c.batch_size, "epochs": epochs,
               "seconds": 1.0, "device": "cpu", "hardware": "none", "files": {}, **values, "commit": "c0ffee",
               **truth.extra}
    (folder / "summary.json").write_bytes(to_json(summary))
    return status != "diverged"


def _history(c: RunConfig, steps: int, accuracy: float) -> list[dict[str, Any]]:
    """Curve points on a log grid; the last lies beyond the run's end, as after the stop rule's look-ahead."""
    found = []
    for step in sorted({*np.geomspace(max(1, steps // 40), steps, 12).astype(int).tolist(), steps + 5}):
        head = {"step": step, "examples": step * c.batch_size, "epoch": step * c.batch_size / N_TRAIN}
        progress = min(1.0, step / steps) ** 0.3
        noise = 0.3 * _rng(c, step).standard_normal() if progress < 1 else 0.0
        found.append({"kind": "train", **head, "loss": 2.3 * TARGET**progress, "lr": c.lr})
        found.append({"kind": "eval", **head, "train_loss": 2.3 * 0.004**progress, "test_loss": 0.5 + progress,
                      "train_accuracy": 60 + 39.9 * progress + noise,
                      "test_accuracy": 60 + (accuracy - 60) * progress + noise})
    return found


def _sharpness(metric: str, c: RunConfig, truth: Truth) -> float:
    factor = {"lambda_max": 1.0, "phi_full": 20.0, "phi_subspace": 0.3}.get(metric, 0.1)
    return factor * truth.lambda_max(c.batch_size) * float(np.exp(0.15 * _rng(c, 2).standard_normal()))


def _certificate(value: float, status: str, details: dict[str, Any]) -> dict[str, Any]:
    return {"value": value, "standard_error": None, "residual": 1e-4, "products": 30, "examples": 100,
            "bn_mode": "eval", "dtype": "float32", "seed": 0, "status": status, "details": details}


def _slice(seed: int) -> dict[str, list[float]]:
    a = np.linspace(-1, 2, 25)
    bump = 1 + 0.1 * seed
    train = 0.01 + bump * (2 * np.clip(-a, 0, None) ** 2 + 20 * np.clip(a - 1, 0, None) ** 2 + 0.3 * (a * (1 - a)).clip(0))
    test = 1.0 + train + 0.2 * a
    curves = {"alphas": a, "train_loss": train, "test_loss": test, "train_accuracy": 100 * np.exp(-train / 5),
              "test_accuracy": 85 * np.exp(-test / 20)}
    return {name: values.tolist() for name, values in curves.items()}
