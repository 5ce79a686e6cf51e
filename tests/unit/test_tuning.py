"""Choosing learning rates from the records of a tuning stage."""

from __future__ import annotations

from experiments.lab.declare.config import Budget, RunConfig
from experiments.lab.declare.study import Record, Request
from experiments.lab.declare.tuning import (
    best_candidates,
    contenders,
    extension,
    fewest_steps,
    grid,
    tuned,
    tuning_seed,
    validation_accuracy,
    winners,
)

BASE = RunConfig(batch_size=8, lr=1.0, budget=Budget.EPOCHS, epochs=1)


def records(values: dict[float, float | str], batch_size: int = 8, seed: int = 0) -> list[Record]:
    """lr -> validation accuracy, or the status of a run that has none."""
    return [Record(BASE.replace(lr=lr, batch_size=batch_size, seed=seed), x if isinstance(x, str) else "done",
                   {} if isinstance(x, str) else {"validation_accuracy": x, "steps": int(x)})
            for lr, x in values.items()]


def test_grid_is_symmetric_by_factors_of_two() -> None:
    """Grids of unequal width would give one batch size more tries than another."""
    assert grid(0.3, 2) == [0.075, 0.15, 0.3, 0.6, 1.2]


def test_winner_of_each_cell() -> None:
    """A diverged or capped run may never win over one that is done, and a tie is decided the same way every time."""
    first = records({4.0: "diverged", 2.0: 80.0, 1.0: 80.0, 0.5: 70.0})
    second = records({1.0: "diverged", 2.0: "capped", 4.0: 30.0}, 16)
    hopeless = records({2.0: "diverged", 1.0: "diverged"}, 32)
    best = winners([*first, *second, *hopeless], validation_accuracy)
    assert [(c.batch_size, c.lr) for c in best] == [(8, 1), (16, 4), (32, 1)]
    assert winners(first, fewest_steps)[0].lr == 0.5


def test_extension_only_beyond_an_edge() -> None:
    """An optimum on the edge of its grid is no optimum; one inside needs no more runs."""
    inside = records({0.5: 1.0, 1.0: 2.0, 2.0: 1.0})
    upper = records({0.5: 1.0, 1.0: 2.0, 2.0: 3.0}, 16)
    lower = records({0.5: 3.0, 1.0: 2.0, 2.0: "diverged"}, 32)
    found = extension([*inside, *upper, *lower], validation_accuracy)
    assert [(c.batch_size, c.lr) for c in found] == [(16, 4), (16, 8), (32, 0.25), (32, 0.125)]


def test_contenders_are_judged_by_their_mean() -> None:
    """A rate that was lucky with one seed, or that diverges with another, would be the winner."""
    first = records({1.0: 70.0, 2.0: 81.0, 4.0: 82.0, 8.0: 60.0})
    more = contenders(first, validation_accuracy, best=2, seeds=1)
    assert [(c.lr, c.seed) for c in more] == [(4.0, 1), (2.0, 1)]
    (best,) = best_candidates([*first, *records({4.0: 78.0, 2.0: 83.0}, seed=1)], validation_accuracy)
    assert (best.config.lr, best.score, best.seeds, best.config.seed) == (2.0, 82.0, 2, 0)
    assert winners([*first, *records({4.0: "diverged", 2.0: 70.0}, seed=1)], validation_accuracy)[0].lr == 2.0
    lucky = [*records({8.0: 90.0}), *first[:3], *records({4.0: 80.0, 2.0: 79.0}, seed=1)]
    assert winners(lucky, validation_accuracy)[0].lr == 4.0


def test_tuning_seeds_answer_no_claim() -> None:
    """A winner judged by the seed that chose it looks better than it is."""
    for pilot in (False, True):
        request = Request("quick", pilot=pilot)
        assert tuning_seed(request) not in request.seed_range(100)
        own = Record(BASE.replace(seed=tuning_seed(request)), "done", {})
        assert tuned(request, [own, Record(BASE.replace(seed=request.seed_range(1)[0]), "done", {})]) == [own]
