"""Tuning the learning rate: factor-2 grids of equal width for every cell, one extension rule, fresh seeds for the winners.

A study's stages are pure functions of earlier records:

    tune    [cell.replace(lr=lr, seed=tuning_seed(request)) for cell in cells for lr in grid(center_of(cell), 3)]
    extend  extension(tuned(request, records), score)
    final   [best.replace(seed=seed) for best in winners(tuned(request, records), score) for seed in request.seed_range(n)]
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from experiments.lab.config import RunConfig
from experiments.lab.study import Record, Request

Score = Callable[[Record], float]
"""of a finished run that is done; larger is better"""


def tuning_seed(request: Request) -> int:
    """The one seed that learning rates are chosen with: far from those of the runs that answer a claim."""
    return request.seed_range(1)[0] + 500


def tuned(request: Request, records: Sequence[Record]) -> list[Record]:
    """The records of tuning runs among all that a stage receives."""
    return [record for record in records if record.config.seed == tuning_seed(request)]


def grid(center: float, octaves: int) -> list[float]:
    """center * 2^k for k = -octaves ... octaves: 2 octaves + 1 learning rates, ascending."""
    return [center * 2.0**k for k in range(-octaves, octaves + 1)]


def validation_accuracy(record: Record) -> float:
    return float(record.values["validation_accuracy"])


def fewest_steps(record: Record) -> float:
    """For runs that stop at a target."""
    return -float(record.values["steps"])


def cell_of(config: RunConfig) -> RunConfig:
    """What is tuned apart: every field but the learning rate and the seed."""
    return config.replace(lr=1.0, seed=0)


def winners(
    records: Sequence[Record], score: Score, key: Callable[[RunConfig], Hashable] = cell_of
) -> list[RunConfig]:  # fmt: skip
    """The best config of every cell, cells in the order of `records`.

    A capped run is worse than every run that is done, a diverged one worse than that; a tie goes to the smaller learning rate.
    """
    cells: dict[Hashable, list[Record]] = {}
    for record in records:
        cells.setdefault(key(record.config), []).append(record)
    return [min(found, key=lambda record: _order(record, score)).config for found in cells.values()]


def score_of(records: Sequence[Record], score: Score, config: RunConfig) -> float:
    """The score of one config among `records`, minus infinity where its run is not done. Raises KeyError where it is absent."""
    found = {record.config: record for record in records}[config]
    return score(found) if found.status == "done" else float("-inf")


def extension(
    records: Sequence[Record], score: Score, key: Callable[[RunConfig], Hashable] = cell_of, *, octaves: int = 2
) -> list[RunConfig]:  # fmt: skip
    """The one extension: for each cell whose winner is its largest (smallest) learning rate, `octaves` more beyond it."""
    found: list[RunConfig] = []
    for best in winners(records, score, key):
        rates = [record.config.lr for record in records if key(record.config) == key(best)]
        if best.lr == max(rates):
            found += [best.replace(lr=best.lr * 2.0**k) for k in range(1, octaves + 1)]
        elif best.lr == min(rates):
            found += [best.replace(lr=best.lr / 2.0**k) for k in range(1, octaves + 1)]
    return found


def _order(record: Record, score: Score) -> tuple[int, float, float]:
    rank = {"done": 0, "capped": 1}.get(record.status, 2)
    return rank, -score(record) if rank == 0 else 0.0, record.config.lr
