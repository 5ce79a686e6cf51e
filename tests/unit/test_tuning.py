"""Choosing learning rates from the records of a tuning stage."""

from __future__ import annotations

from experiments.lab.config import Budget, RunConfig
from experiments.lab.study import Record, Request
from experiments.lab.tuning import extension, fewest_steps, grid, score_of, tuned, tuning_seed, validation_accuracy, winners

BASE = RunConfig(batch_size=8, lr=1.0, budget=Budget.EPOCHS, epochs=1)


def records(values: dict[float, float | str], batch_size: int = 8) -> list[Record]:
    """lr -> validation accuracy, or the status of a run that has none."""
    return [
        Record(BASE.replace(lr=lr, batch_size=batch_size), x if isinstance(x, str) else "done",
               {} if isinstance(x, str) else {"validation_accuracy": x, "steps": int(x)})
        for lr, x in values.items()
    ]  # fmt: skip


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
    assert score_of(first, validation_accuracy, BASE.replace(lr=4.0)) == float("-inf")


def test_extension_only_beyond_an_edge() -> None:
    """An optimum on the edge of its grid is no optimum; one inside needs no more runs."""
    inside = records({0.5: 1.0, 1.0: 2.0, 2.0: 1.0})
    upper = records({0.5: 1.0, 1.0: 2.0, 2.0: 3.0}, 16)
    lower = records({0.5: 3.0, 1.0: 2.0, 2.0: "diverged"}, 32)
    found = extension([*inside, *upper, *lower], validation_accuracy)
    assert [(c.batch_size, c.lr) for c in found] == [(16, 4), (16, 8), (32, 0.25), (32, 0.125)]


def test_tuning_seeds_answer_no_claim() -> None:
    """A winner judged by the seed that chose it looks better than it is."""
    for pilot in (False, True):
        request = Request("quick", pilot=pilot)
        assert tuning_seed(request) not in request.seed_range(100)
        own = Record(BASE.replace(seed=tuning_seed(request)), "done", {})
        assert tuned(request, [own, Record(BASE.replace(seed=request.seed_range(1)[0]), "done", {})]) == [own]
