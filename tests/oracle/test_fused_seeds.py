"""Statistics over seeds do not depend on whether the seeds were trained alone or as one program."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from toy_runs import Memory

from experiments.lab.datasets import load
from experiments.lab.declare.config import Budget, Machine, Optimizer, RunConfig
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.training.data import prepare
from experiments.lab.training.loop import train, train_group
from experiments.lab.training.outcome import Outcome

SEEDS = 32
CONFIG = RunConfig(n_train=500, width=24, depth=2, batch_size=10, optimizer=Optimizer.ADAM, lr=3e-3, budget=Budget.STEPS,
                   steps=120)
QUANTITIES = ("test_loss", "test_accuracy", "train_loss", "distance_from_start")


class Quiet(Memory):
    def wants_checkpoint(self, step: int) -> bool:
        return False


def column(outcomes: list[Outcome], quantity: str) -> np.ndarray:
    return np.array([outcome.values[quantity] for outcome in outcomes])


@pytest.fixture(scope="module")
def populations() -> tuple[list[Outcome], list[Outcome], list[Outcome]]:
    """Seeds 0 to 31 alone, the same as one program, and 32 other seeds as one program."""
    data = prepare(CONFIG, Machine(), load("fashion-mini"))
    configs = [CONFIG.replace(seed=seed) for seed in range(2 * SEEDS)]
    alone = [train(config, Machine(), data, Quiet()) for config in configs[:SEEDS]]
    fused = [train_group(part, Machine(), data, [Quiet() for _ in part], make_engine=fused_engine)
             for part in (configs[:SEEDS], configs[SEEDS:])]
    return alone, *fused


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_same_seeds_give_the_same_runs(quantity: str, populations: tuple[list[Outcome], ...]) -> None:
    """Rounding grows along a trajectory, but must stay far below the spread over seeds."""
    alone, fused, _ = (column(population, quantity) for population in populations)
    assert np.abs(fused - alone).max() < 0.2 * alone.std(ddof=1)
    assert abs((fused - alone).mean()) < 0.02 * alone.std(ddof=1)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_other_seeds_are_of_the_same_population(quantity: str, populations: tuple[list[Outcome], ...]) -> None:
    """Members that shared examples, masks or moments would spread less, or around another mean."""
    alone, _, others = (column(population, quantity) for population in populations)
    assert stats.ks_2samp(alone, others).pvalue > 0.01
    assert stats.ttest_ind(alone, others, equal_var=False).pvalue > 0.01
    assert stats.levene(alone, others).pvalue > 0.01


def test_members_in_step_would_be_seen(populations: tuple[list[Outcome], ...]) -> None:
    """These tests could not fail: one seed 32 times has no spread."""
    alone, fused, _ = populations
    repeated = np.repeat(column(fused, "test_loss")[:1], SEEDS)
    assert stats.levene(column(alone, "test_loss"), repeated).pvalue < 0.01
