"""A study of 30 runs in three stages that takes seconds, and a program for it: `python tests/toy_sweep.py STORE WORKERS`."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.lab import datasets
from experiments.lab.datasets import Dataset, Split, load
from experiments.lab.declare.config import Budget, Machine, Norm, RunConfig
from experiments.lab.declare.study import Measure, Pair, Record, Request, Scale, Stage, Study, measure

LRS = tuple(0.01 * 1.25**k for k in range(10))
SEEDS, PARENTS = 14, 6
BASE = RunConfig(n_train=200, n_validation=100, width=16, depth=2, norm=Norm.BATCH, batch_size=20, lr=LRS[0], momentum=0.9,
                 budget=Budget.STEPS, steps=24)


def tune(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return [BASE.replace(lr=lr, seed=1000) for lr in LRS]


def fresh(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """The winner on the validation split, trained anew by other seeds."""
    best = max(records, key=lambda record: record.values["validation_accuracy"])
    return [best.config.replace(seed=seed) for seed in range(SEEDS)]


def continued(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """Warm starts at a larger batch from each fresh run."""
    parents = [record.config for record in records[len(LRS) :][:PARENTS]]
    return [config.replace(batch_size=100, steps=40, parent=config.run_id) for config in parents]


def measures(config: RunConfig) -> list[Measure]:
    return [measure("lambda_max", examples=50, tol=1e-1)] if config.seed % 4 == 0 else []


def pairs(runs: Sequence[RunConfig]) -> list[Pair]:
    return [Pair(runs[0], other, measure("slice", examples=50, points=4)) for other in runs[1:3]]


STUDY = Study(
    name="toy",
    title="Toy",
    citation="none",
    scales=(Scale("quick", "toy", ""),),
    stages=(
        Stage("tune", tune),
        Stage("fresh", fresh, at_most=lambda request: SEEDS, measures=measures),
        Stage("continued", continued, at_most=lambda request: PARENTS, pairs=pairs),
    ),
    claims=(),
)


@functools.cache
def few(name: str, data_dir: Path | None) -> Dataset:
    """The data set's first examples: preparing all of them takes longer than the run."""
    whole = load(name, data_dir)
    train, test = (Split(split.inputs[:400].copy(), split.targets[:400]) for split in (whole.train, whole.test))
    return dataclasses.replace(whole, train=train, test=test)


def hurry() -> None:
    """Read little, and write checkpoints so often that a kill meets one."""
    from experiments.lab.store import run_folder as folder
    from experiments.lab.training import data

    folder.CHECKPOINT_SECONDS = 0.03
    data.load = datasets.load = few


def main(root: Path, workers: int) -> int:
    """Run the study; returns the exit status."""
    from experiments.lab.store.records import Store
    from experiments.lab.sweep.launch import Stopped, run_study

    hurry()
    try:
        result = run_study(STUDY, Request("quick"), Store(root), Machine(), workers=workers, quiet=True)
    except Stopped as stopped:
        return 128 + stopped.signal_number
    print("\n".join(result.failures), file=sys.stderr)
    return 0 if result.complete else 1


if __name__ == "__mp_main__":  # in the workers
    hurry()

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
