"""A study of many runs, and records of them made without training: those that a plan and the analysis of histories read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.declare.config import Budget, Optimizer, RunConfig, Schedule
from experiments.lab.declare.study import Measure, Scale, Stage, Study
from experiments.lab.store.checksums import SCHEMA, with_checksum
from experiments.lab.store.files import to_json
from experiments.lab.store.history import COLUMNS, Columns, pack
from experiments.lab.store.records import Store

RUNS, ROWS = 168_160, 424
"""of Shallue et al. 2019's published data: 168,160 runs, 71 million rows"""
SEEDS = 10
SIZES = 12
KINDS = 50
"""different histories; each stands in many runs"""
BASE = RunConfig(n_train=5000, width=128, depth=2, optimizer=Optimizer.SGD, momentum=0.9, schedule=Schedule.LINEAR, final_lr=0.01,
                 batch_size=1, lr=1.0, budget=Budget.STEPS, steps=25 * ROWS)


def configs(runs: int) -> list[RunConfig]:
    """Batch sizes 1 to 2,048, as many learning rates as it takes, ten seeds per cell."""
    return [BASE.replace(batch_size=2 ** (i // SEEDS % SIZES), lr=1e-4 * 1.005 ** (i // SEEDS // SIZES), seed=i % SEEDS)
            for i in range(runs)]


def study(runs: int, measures: Callable[[RunConfig], Sequence[Measure]] = lambda config: ()) -> Study:
    stages = (Stage("grid", lambda request, records: configs(runs), measures=measures),)
    return Study("grid", "Many runs", "none", (Scale("quick", "nothing trained", "none"),), stages, ())


def contents(rows: int) -> list[tuple[bytes, str]]:
    """Histories of `rows` evaluations with their digests."""
    generator = np.random.default_rng(0)
    step = np.arange(1, rows + 1) * 25
    given = {"step": step, "examples": step * 32, "epoch": step * 32 / 5000}
    measured = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    made = [pack(Columns(("eval",), np.zeros(rows, np.uint8), given | {name: generator.random(rows) for name in measured}))
            for _ in range(KINDS)]
    return [(content, hashlib.sha256(content).hexdigest()) for content in made]


def fill(store: Store, runs: Sequence[RunConfig], rows: int) -> None:
    """A summary and a history for each of `runs`, as a run leaves them except for its weights and `history.jsonl`."""
    histories = contents(rows)
    values: dict[str, Any] = dict.fromkeys(("validation_loss", "validation_accuracy", "reason"))
    values |= dict.fromkeys(("train_loss", "test_loss", "gap_loss", "gap_accuracy", "distance_from_start"), 0.12345678901234567)
    for index, config in enumerate(runs):
        folder = f"{store.root}/runs/{config.run_id}"
        content, digest = histories[index % KINDS]
        summary = {"schema": SCHEMA, "run_id": config.run_id, "status": "done", "steps": config.steps, "epochs": 10.0,
                   "examples": 10_000, "seconds": 1.5, "train_accuracy": 99.5, "test_accuracy": 84.25, "device": "cpu",
                   "commit": "0" * 40, "hardware": "none", "files": {COLUMNS: digest}, **values}
        os.mkdir(folder)
        Path(folder, COLUMNS).write_bytes(content)
        Path(folder, "summary.json").write_bytes(with_checksum(to_json(summary)))
