"""Tuning the learning rate: factor-2 grids of equal width for every cell, one extension rule, fresh seeds for the winners.

A study's stages are pure functions of earlier records:

    tune     [cell.replace(lr=lr, seed=tuning_seed(request)) for cell in cells for lr in grid(center_of(cell), 3)]
    extend   extension(tuned(request, records), score)
    confirm  contenders(tuned(request, records), score)
    final    [best.replace(seed=seed) for best in winners(tuned(request, records), score) for seed in request.seed_range(n)]

`extend` and `confirm` may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import Record, Request

Score = Callable[[Record], float]
"""of a run that is done; larger is better"""

SEEDS = 100
"""seeds set aside for tuning"""
TUNING = range(500, 500 + SEEDS)
"""those of a study, pilots aside"""


def tuning_seed(request: Request) -> int:
    """The first of the seeds that learning rates are chosen with: far from those of the runs that answer a claim."""
    return request.seed_range(1)[0] + TUNING.start


def tuned(request: Request, records: Sequence[Record]) -> list[Record]:
    """The records of tuning runs among all that a stage receives."""
    first = tuning_seed(request)
    return [record for record in records if first <= record.config.seed < first + SEEDS]


def grid(center: float, octaves: int) -> list[float]:
    """center * 2^k for k = -octaves ... octaves: 2 octaves + 1 learning rates, ascending."""
    return [center * 2.0**k for k in range(-octaves, octaves + 1)]


def validation_accuracy(record: Record) -> float:
    """In percent; of a task without accuracy minus the validation loss."""
    accuracy = record.values["validation_accuracy"]
    return -float(record.values["validation_loss"]) if accuracy is None else float(accuracy)


def fewest_steps(record: Record) -> float:
    """For runs that stop at a target."""
    return -float(record.values["steps"])


@dataclass(frozen=True)
class Candidate:
    """One learning rate of one cell with its tuning runs: `config` is that of the first seed."""

    config: RunConfig
    seeds: int
    rank: int
    """of the worst run: 0 done, 1 budget exhausted, 2 diverged"""
    score: float
    """mean over seeds; minus infinity unless every run is done"""

    @property
    def order(self) -> tuple[int, int, float, float]:
        """Ascending from the best. Rates tried with more seeds come first; a tie goes to the smaller learning rate."""
        return -self.seeds, self.rank, -self.score, self.config.lr


def candidates(records: Sequence[Record], score: Score) -> dict[RunConfig, list[Candidate]]:
    """Cell -> its candidates from the best to the worst; cells, which are tuned apart, in the order of `records`."""
    runs: dict[RunConfig, dict[float, list[Record]]] = {}
    for record in records:
        cell = record.config.replace(lr=1.0, seed=0)  # every field except the learning rate and the seed
        runs.setdefault(cell, {}).setdefault(record.config.lr, []).append(record)
    return {cell: sorted((_candidate(found, score) for found in rates.values()), key=lambda c: c.order)
            for cell, rates in runs.items()}


def best_candidates(records: Sequence[Record], score: Score) -> list[Candidate]:
    """The best candidate of every cell."""
    return [found[0] for found in candidates(records, score).values()]


def winners(records: Sequence[Record], score: Score) -> list[RunConfig]:
    """The best config of every cell, at its first tuning seed."""
    return [best.config for best in best_candidates(records, score)]


def extension(records: Sequence[Record], score: Score, *, octaves: int = 2) -> list[RunConfig]:
    """The one extension: for each cell whose winner is its largest (smallest) learning rate, `octaves` more beyond it."""
    found: list[RunConfig] = []
    for cell in candidates(records, score).values():
        rates, best = [candidate.config.lr for candidate in cell], cell[0].config
        factor = 2.0 if best.lr == max(rates) else 0.5 if best.lr == min(rates) else None
        if factor is not None:
            found += [best.replace(lr=best.lr * factor**k) for k in range(1, octaves + 1)]
    return found


def contenders(records: Sequence[Record], score: Score, *, best: int = 3, seeds: int = 2) -> list[RunConfig]:
    """Further tuning seeds for the best learning rates of each cell: one seed may prefer a rate that the mean does not."""
    return [candidate.config.replace(seed=candidate.config.seed + k)
            for cell in candidates(records, score).values()
            for candidate in cell[:best]
            for k in range(1, seeds + 1)]


def _candidate(records: Sequence[Record], score: Score) -> Candidate:
    rank = max({"done": 0, "capped": 1}.get(record.status, 2) for record in records)
    mean = sum(map(score, records)) / len(records) if rank == 0 else float("-inf")
    return Candidate(min((r.config for r in records), key=lambda c: c.seed), len(records), rank, mean)
