"""When a run stops, and that micro-batches change rounding only."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from toy_runs import Memory, run, toy_config

from experiments.lab.datasets import load
from experiments.lab.declare.config import Augment, Budget, Machine, Model, Norm, Optimizer, Precision, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.training.batch_schedule import batch_schedule, total_steps
from experiments.lab.training.data import prepare
from experiments.lab.training.loop import next_curve_point, train
from experiments.lab.training.state import Snapshot
from experiments.lab.training.stop_rule import StopRule

N = 1000


def matched(batch_size: int = 10, **fields: Any) -> RunConfig:
    return toy_config(batch_size=batch_size, **({"budget": Budget.TRAIN_LOSS, "train_loss": 0.1, "max_epochs": 9} | fields))


def plateau(patience: float = 2, batch_size: int = 10) -> RunConfig:
    return toy_config(batch_size=batch_size, budget=Budget.PLATEAU, patience=patience, max_epochs=9)


def rule(config: RunConfig, *passes: tuple[int, float]) -> StopRule:
    """The rule once it has seen these."""
    made = StopRule(config, N)
    for step, loss in passes:
        made.note(step, loss, partial(Snapshot, step, {}))
    return made


def test_lengths() -> None:
    """A budget in epochs would favour one batch size by its rounding."""
    epochs = {"budget": Budget.EPOCHS, "epochs": 2.5}
    assert total_steps(toy_config(batch_size=10, **epochs), N) == 250
    assert total_steps(toy_config(batch_size=333, **epochs), N) == 8
    assert total_steps(toy_config(batch_size=1000, **(epochs | {"epochs": 0.1})), N) == 1
    assert total_steps(toy_config(steps=7), N) == rule(toy_config(steps=7)).cap == 7
    assert (total_steps(plateau(), N), rule(plateau(batch_size=333)).cap) == (None, 28)


def test_next_pass_of_a_plateau_is_the_end_of_the_next_epoch() -> None:
    """Patience counts epochs: passes must neither skip one nor come twice, also where B does not divide n."""
    for batch_size in (1, 10, 333, 1000):
        seen: list[tuple[int, float]] = []
        for epoch in range(1, 10):
            step = rule(plateau(batch_size=batch_size), *seen).next_pass()
            assert step is not None and step == math.ceil(epoch * N / batch_size)
            seen.append((step, 1.0))
    assert rule(toy_config()).next_pass() is None


def test_next_pass_of_a_target() -> None:
    """Passes too sparse overshoot the target, too dense cost more than training."""
    config = matched()
    assert rule(config).next_pass() == 100
    assert rule(config, (100, 2.0)).next_pass() == 200
    # two halvings from the target: half of that way is one epoch
    assert rule(config, (100, 0.8), (200, 0.4)).next_pass() == 300
    slow = 100 * math.log(1.05) / math.log(0.11 / 0.105)  # steps to the target at the last pace
    assert rule(config, (100, 0.11), (200, 0.105)).next_pass() == 200 + math.ceil(slow / 2)
    assert rule(config, (100, 0.9), (200, 0.10001)).next_pass() == 213  # n/8 examples, rounded up
    assert rule(config, (100, 0.2), (200, 0.09)).next_pass() == 213
    assert rule(config, (100, 0.500), (200, 0.499)).next_pass() == 600  # at most four epochs
    assert rule(config, (600, 0.500), (700, 0.499)).next_pass() == 900  # the cap
    assert rule(config, (100, 0.5), (200, 0.6)).next_pass() == 300  # rising: an epoch


@pytest.mark.parametrize("losses", [(0.0, 0.2), (0.2, 0.0), (0.0, 0.0)])
def test_next_pass_survives_a_loss_of_zero(losses: tuple[float, float]) -> None:
    """A memorised training set has a float32 loss of exactly 0; its logarithm would end the run."""
    following = rule(matched(), (100, losses[0]), (200, losses[1])).next_pass()
    assert following is not None and 200 < following <= 600


def test_a_target_is_crossed_by_two_passes_in_a_row() -> None:
    """One lucky pass would end a run."""
    config = matched()
    assert not rule(config, (1, 0.09)).crossed(1)
    assert not rule(config, (1, 0.09), (2, 0.11), (3, 0.1)).crossed(3)
    assert rule(config, (1, 0.3), (2, 0.1), (3, 0.1)).crossed(3)
    assert rule(config, (1, 0.3), (900, 0.1)).crossed(900) and not rule(config, (1, 0.3), (900, 0.2)).crossed(900)  # the cap
    assert not rule(plateau(), (1, 0.0), (2, 0.0)).crossed(2)


def test_band() -> None:
    """Comparisons are gated at 10%."""
    losses = (0.0899, 0.0901, 0.1, 0.1001)
    assert [rule(matched()).in_band(loss) for loss in losses] == [False, True, True, False]


def test_a_plateau_is_patience_epochs_without_one_percent() -> None:
    """A slow decline of under 1% an epoch would never end, or noise end a run early."""
    config = plateau(patience=2)
    falling = (100, 1.0), (200, 0.9), (300, 0.8)
    assert not rule(config, *falling).levelled_off()
    assert not rule(config, *falling, (400, 0.795)).levelled_off()
    assert rule(config, *falling, (400, 0.795), (500, 0.7925)).levelled_off()
    assert not rule(config, *falling, (400, 0.795), (500, 0.79)).levelled_off()  # 1.25% in two epochs
    assert not rule(config).levelled_off()
    assert not rule(matched(), (1, 1.0), (5000, 1.0)).levelled_off()


def test_curve_points() -> None:
    """Curves of different batch sizes would be sampled at other epochs."""
    for batch_size in (10, 300, 1000):
        schedule, steps, step = batch_schedule(toy_config(batch_size=batch_size), N), [], 0
        for _ in range(8):
            step = next_curve_point(N, schedule, step)
            steps.append(step)
        expected = [math.ceil(epochs * N / batch_size) for epochs in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)]
        assert steps == sorted(set(expected))[:8]


def test_a_run_that_spends_its_budget_is_done() -> None:
    """Steps, examples and epochs are the x axes of every figure."""
    outcome, log = run(toy_config(steps=9))
    assert (outcome.status, outcome.reason) == ("done", None)
    assert (outcome.values["steps"], outcome.values["examples"], outcome.values["epochs"]) == (9, 144, 2)
    assert {name for name, value in outcome.values.items() if value is None} == {"validation_loss", "validation_accuracy"}
    assert {row["kind"] for row in log.rows} == {"train", "eval"}
    assert sorted(log.checkpoints) == list(range(9))


def test_a_missed_target_is_capped_with_its_values() -> None:
    """A run that ran out of time would pass for one that met its target, or be lost."""
    outcome, _ = run(matched(batch_size=8, train_loss=1e-9, max_epochs=2))
    assert outcome.status == "capped" and outcome.reason and "2 epochs" in outcome.reason
    assert outcome.values["steps"] == 18 and outcome.values["test_accuracy"] is not None


def test_a_run_that_levels_off_is_done() -> None:
    """The paper's stop rule."""
    outcome, log = run(toy_config(batch_size=8, lr=1e-9, budget=Budget.PLATEAU, patience=2, max_epochs=9))
    assert (outcome.status, outcome.values["epochs"]) == ("done", 3)
    assert [row["epoch"] for row in log.rows if row["kind"] == "check"] == [1, 2, 3]


DIVERGING: list[dict[str, Any]] = [
    {"steps": 9},
    {"steps": 1},  # the loss was finite before the only update
    {"budget": Budget.TRAIN_LOSS, "train_loss": 0.1, "max_epochs": 3, "batch_size": 72},  # seen by the stop rule's pass first
]


@pytest.mark.parametrize("fields", DIVERGING)
def test_a_run_that_is_not_finite_diverged(fields: dict[str, Any]) -> None:
    """Divergences are results: lost, failed or NaN ones would bias the comparison; null is not 0."""
    outcome, _ = run(toy_config(lr=1e30, **fields))
    assert outcome.status == "diverged" and outcome.reason
    assert outcome.values["train_loss"] is None and outcome.values["test_accuracy"] is None
    assert outcome.values["steps"] >= 1


class WithoutCheckpoints(Memory):
    """For longer runs: a checkpoint of every step would fill the memory."""

    def wants_checkpoint(self, step: int) -> bool:
        return False


@pytest.mark.parametrize(("batch_size", "optimizer", "lr"), [(8, Optimizer.SGD, 0.1), (250, Optimizer.ADAM, 3e-3)])
def test_a_target_is_met_within_a_tenth(batch_size: int, optimizer: Optimizer, lr: float) -> None:
    """Curvature scales with the loss: arms that stop at different losses cannot be compared."""
    config = RunConfig(n_train=1000, width=32, depth=1, batch_size=batch_size, optimizer=optimizer, lr=lr,
                       budget=Budget.TRAIN_LOSS, train_loss=0.1, max_epochs=100)
    data, log = prepare(config, Machine(), load("fashion-mini")), WithoutCheckpoints()
    outcome = train(config, Machine(), data, log)
    assert outcome.status == "done"
    assert 0.09 <= outcome.values["train_loss"] <= 0.1
    checks = [row["train_loss"] for row in log.rows if row["kind"] == "check"]
    assert checks[-3] > 0.1 >= max(checks[-2:])


@pytest.mark.parametrize(("batch_size", "lr"), [(2, 0.05), (2, 0.1), (4, 0.05)])
def test_a_crossing_between_passes_is_found(batch_size: int, lr: float) -> None:
    """Where the loss falls fast, also before the first pass, runs would end far below their target."""
    outcome, log = run(matched(batch_size, lr=lr, train_loss=0.3, max_epochs=30, precision=Precision.FLOAT64))
    checks = {row["step"]: row["train_loss"] for row in log.rows if row["kind"] == "check"}
    assert not any(0.27 <= loss <= 0.3 for loss in checks.values()) and outcome.values["steps"] not in checks
    assert outcome.status == "done" and 0.27 <= outcome.values["train_loss"] <= 0.3


CONV: dict[str, Any] = {"model": Model.KESKAR_C1, "precision": Precision.FLOAT64, "steps": 4, "augment": Augment.CROP_FLIP}


@pytest.mark.parametrize(
    "fields",
    [CONV, CONV | {"norm": Norm.GHOST, "norm_batch": 4}, CONV | {"norm": Norm.GROUP}, CONV | {"optimizer": Optimizer.ADAM}],
)
def test_micro_batches_change_rounding_only(fields: dict[str, Any]) -> None:
    """A wrong weight of the last part, other masks or crops, or another normalisation batch."""
    config = toy_config(**(fields | {"batch_size": 20, "lr": 0.01}))
    whole, _ = run(config, size=10)
    for micro_batch in (8, 16, 20, 32):  # 20 = 8 + 8 + 4
        parts, _ = run(config, machine=Machine(micro_batch=micro_batch), size=10)
        worst = max((parts.weights[name] - value).abs().max().item() for name, value in whole.weights.items())
        assert worst < 1e-12
    assert torch.tensor(whole.values["distance_from_start"]) > 1e-3


def test_a_micro_batch_cannot_split_batch_norm() -> None:
    """The refusal of `Machine.check` would be asked for by the command line only."""
    with pytest.raises(ConfigError, match="cannot split"):
        run(toy_config(norm=Norm.BATCH), machine=Machine(micro_batch=8))


def test_a_target_met_before_training_is_not_done() -> None:
    """A warm start below the target would count as stopped at it, with the wrong curvature."""
    outcome, _ = run(matched(batch_size=8, train_loss=9.0, max_epochs=2))
    assert outcome.status == "capped" and outcome.values["steps"] == 0 and outcome.reason and "before" in outcome.reason


def test_a_target_met_at_the_cap_is_done() -> None:
    """The run would be counted as one that missed its target, though its loss lies at it."""
    free, _ = run(matched(batch_size=8, train_loss=0.5, max_epochs=99))
    steps = free.values["steps"]
    capped, _ = run(matched(batch_size=8, train_loss=0.5, max_epochs=(steps + 1) * 8 / 72))
    assert free.status == capped.status == "done"
    assert abs(capped.values["train_loss"] / 0.5 - 1) < 0.1
