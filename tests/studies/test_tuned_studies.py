"""The stages of smith2020 and shallue2019: which runs follow from which tuning records."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from experiments import shallue2019, smith2020
from experiments.lab.declare.config import Budget, RunConfig, Scaling
from experiments.lab.declare.study import Record, Request, Study

Score = Callable[[RunConfig], float]


def played(study: Study, request: Request, score: Score) -> dict[str, list[RunConfig]]:
    """stage -> runs, every run done with the validation accuracy `score` and 1000 - score steps."""
    found: dict[str, list[RunConfig]] = {}
    records: list[Record] = []
    for stage in study.stages:
        found[stage.name] = list(stage.runs_of(request, tuple(records)))
        records += [Record(c, "done", {"validation_accuracy": score(c), "steps": 1000 - score(c)}) for c in found[stage.name]]
    return found


def peaked(best_size: int, *, octave: int = 0) -> Score:
    """Best at `best_size` and, for every batch size, `octave` octaves above the middle of its grid."""

    def score(c: RunConfig) -> float:
        middle = 0.04 * math.sqrt(c.batch_size / 64) * 2.0**octave
        return 80 - abs(math.log2(c.lr / middle)) - abs(math.log2(c.batch_size / best_size))

    return score


@pytest.mark.parametrize("scale", ["quick", "overnight"])
@pytest.mark.parametrize("best", [64, 256, 100_000])
def test_the_best_size_is_a_smaller_one(scale: str, best: int) -> None:
    """A best batch size that is the largest itself, or a group that mixes two, would make the primary gap meaningless."""
    settings = smith2020.STUDY.scale(scale).settings
    stages = played(smith2020.STUDY, Request(scale), peaked(best))
    expected = min(best, settings.batch_sizes[-2])
    for budget in (Budget.STEPS, Budget.EPOCHS):
        runs = [c for c in stages["best"] if c.budget is budget]
        assert {c.batch_size for c in runs} == {expected}
        assert len(runs) == (settings.seeds if budget is Budget.STEPS else settings.compared)
        assert expected not in {c.batch_size for c in stages["final"] if smith2020.arm_of(c) == smith2020.arm_of(runs[0])}
    largest = [c for c in stages["final"] if c.batch_size == settings.large and settings.is_main(c)]
    assert len(largest) == settings.seeds


def test_untuned_runs_carry_one_learning_rate() -> None:
    """What is called untuned would be tuned after all."""
    stages = played(smith2020.STUDY, Request("quick"), peaked(256))
    runs = stages["untuned"] + stages["untuned best"]
    assert {c.lr for c in runs} == {0.02} and {c.batch_size for c in stages["untuned best"]} == {256}
    assert {c.peak_lr for c in runs if c.scaling is Scaling.LINEAR} == {0.02, 0.08, 0.32, 1.28}
    assert {c.batch_size for c in stages["untuned"]} == {16, 64, 1024}


def test_seeds_that_tune_answer_nothing() -> None:
    """A learning rate chosen by luck would be judged by the same luck."""
    for study, score in ((smith2020.STUDY, peaked(256, octave=3)), (shallue2019.STUDY, lambda c: 100 - c.lr)):
        stages = played(study, Request("quick"), score)
        chooses = {name: runs for name, runs in stages.items() if name in ("tune", "extend", "confirm")}
        assert stages["extend"], "an optimum on the edge gets its extension"
        assert all(c.seed >= 500 for runs in chooses.values() for c in runs)
        assert all(c.seed < 100 for name, runs in stages.items() if name not in chooses for c in runs)


def test_every_cell_has_room_to_reach_its_goal() -> None:
    """A cap in epochs alone stops large batches that are on their way, one in updates alone small ones."""
    for config, _ in shallue2019.STUDY.scale("quick").settings.cells:
        assert config.max_epochs is not None and config.n_train is not None
        assert config.max_epochs >= 10 and config.max_epochs * config.n_train / config.batch_size >= 400
