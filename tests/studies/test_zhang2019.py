"""How the noisy quadratic's learning rates are chosen: by several seeds, for one meets the target by luck."""

from __future__ import annotations

from experiments.lab.declare.study import Record, Request
from experiments.lab.declare.tuning import tuning_seed
from experiments.zhang2019 import ALGORITHMS, STUDY, TUNING_SEEDS, slowest

REQUEST = Request("quick")
TUNE, EXTEND, FINAL = STUDY.stages


def test_every_algorithm_has_grids_of_equal_width() -> None:
    """An algorithm that tries more learning rates wins."""
    runs, sizes = TUNE.runs_of(REQUEST, ()), len(STUDY.scale("quick").settings.batch_sizes)
    assert len(runs) == len(set(runs)) == TUNING_SEEDS * 5 * len(ALGORITHMS) * sizes
    assert {run.seed for run in runs} == {500, 501, 502} and tuning_seed(REQUEST) == 500


def test_a_learning_rate_is_as_good_as_its_slowest_seed() -> None:
    """One lucky seed would choose a learning rate at which the others never meet the target."""
    runs = TUNE.runs_of(REQUEST, ())
    of_cell = [run for run in runs if run.batch_size == 8 and run.momentum]
    rates = sorted({run.lr for run in of_cell})

    def record(config, number: int) -> Record:
        lucky = config.lr == rates[3] and config.seed == 500
        status = "capped" if config.lr == rates[3] and not lucky else "done"
        return Record(config, status, {"steps": 10 if lucky else 1000 + abs(rates.index(config.lr) - 2) + number})

    records = [record(run, k % 2) for k, run in enumerate(of_cell)]
    found = slowest(REQUEST, records)
    assert len(found) == 5 and {r.config.lr: r.status for r in found}[rates[3]] == "capped"
    final = FINAL.runs_of(REQUEST, records)
    assert {run.lr for run in final} == {rates[2]} and not EXTEND.runs_of(REQUEST, records)
    assert [run.seed for run in final] == list(range(8))
