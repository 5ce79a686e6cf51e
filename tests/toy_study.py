"""A study of four stages that takes seconds, and a program that runs it: `python tests/toy_study.py STORE WORKERS [FUSED]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.lab.declare.config import Budget, Machine, Norm, RunConfig
from experiments.lab.declare.study import Measure, Pair, Record, Request, Scale, Stage, Study, measure

LRS = (0.01, 0.02, 0.04)
BASE = RunConfig(n_train=300, n_validation=100, width=24, depth=2, norm=Norm.BATCH, batch_size=20, lr=LRS[0], momentum=0.9,
                 budget=Budget.STEPS, steps=250)


def tune(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return [BASE.replace(lr=lr, seed=1000) for lr in LRS]


def fresh(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """The winner on the validation split, trained anew by other seeds."""
    best = max(records, key=lambda record: record.values["validation_accuracy"])
    return [best.config.replace(seed=seed) for seed in range(request.seeds or 2)]


def continued(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """Warm starts at a larger batch from each fresh run."""
    parents = [record.config for record in records[len(LRS) :]]
    return [config.replace(batch_size=100, steps=100, parent=config.run_id) for config in parents]


def measures(config: RunConfig) -> list[Measure]:
    return [measure("lambda_max", examples=50, tol=1e-2)]


def pairs(runs: Sequence[RunConfig]) -> list[Pair]:
    return [Pair(runs[0], other, measure("slice", examples=50, points=4)) for other in runs[1:]]


STUDY = Study(
    name="toy",
    title="Toy",
    citation="none",
    scales=(Scale("quick", "toy", ""),),
    stages=(
        Stage("tune", tune),
        Stage("fresh", fresh, at_most=lambda request: request.seeds or 2, measures=measures),
        Stage("continued", continued, at_most=lambda request: request.seeds or 2, pairs=pairs),
    ),
    claims=(),
)

if __name__ == "__mp_main__":  # in the workers: checkpoints often enough for a kill to meet one
    from experiments.lab.store import run_folder as folder

    folder.CHECKPOINT_SECONDS = 0.15

if __name__ == "__main__":
    from experiments.lab.store.records import Store
    from experiments.lab.sweep.launch import Stopped, run_study

    machine = Machine(fused=int(sys.argv[3]) if sys.argv[3:] else None)
    try:
        result = run_study(STUDY, Request("quick"), Store(Path(sys.argv[1])), machine, workers=int(sys.argv[2]))
    except Stopped as stopped:
        sys.exit(128 + stopped.signal_number)
    print("\n".join(result.failures))
    sys.exit(0 if result.complete else 1)
