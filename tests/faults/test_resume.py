"""A run interrupted anywhere continues as if it had never stopped: weights, optimizer, stop rule and history, bitwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_runs import identical, run, same_checkpoint, toy_config, toy_data

from experiments.lab.declare.config import Augment, Budget, Machine, Model, Norm, Optimizer, RunConfig, Schedule
from experiments.lab.store.checkpoints import load_checkpoint
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import Interrupted, open_run
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.loop import train
from experiments.lab.training.outcome import Outcome
from experiments.lab.training.state import Checkpoint


def interrupted(config: RunConfig, root: Path, stops: Sequence[int], size: int = 8) -> tuple[Outcome, bytes, list[Checkpoint]]:
    """Train through the run's folder, stopped before each update of `stops`; the outcome, history and checkpoints."""
    store, left, checkpoints, now = Store(root), list(stops), [], [0]
    while True:
        folder = open_run(store, config, Machine(), lambda: now[0] in left[:1], lambda step: now.__setitem__(0, step))
        assert folder is not None
        try:
            outcome = train(config, Machine(), toy_data(config, size), folder)
            assert not left and folder.publish(outcome)
            return outcome, folder.history.read_bytes(), checkpoints
        except Interrupted:
            left.pop(0)
            checkpoint = load_checkpoint(folder.path)
            assert checkpoint is not None
            checkpoints.append(checkpoint)
        finally:
            folder.close()


TARGET: dict[str, Any] = {"budget": Budget.TRAIN_LOSS, "train_loss": 0.2, "max_epochs": 30, "batch_size": 3}
CASES: dict[str, dict[str, Any]] = {
    "mlp-adam": {"optimizer": Optimizer.ADAM, "lr": 0.01, "weight_decay": 0.01},
    "mlp-plain-sgd": {},
    "conv-momentum": {"model": Model.SMALL_CONV, "momentum": 0.9, "nesterov": True},  # channels-last weights and slots
    "conv-lars": {"model": Model.SMALL_CONV, "optimizer": Optimizer.LARS, "momentum": 0.9, "clip_norm": 1.0},
    "lamb-averaged": {"optimizer": Optimizer.LAMB, "lr": 0.01, "ema": 0.9, "norm": Norm.BATCH, "gradient_penalty": 0.1},
    "target-averaged": TARGET | {"momentum": 0.9, "ema": 0.9, "label_smoothing": 0.05},
    "conv-adamw": {"model": Model.SMALL_CONV, "optimizer": Optimizer.ADAMW, "lr": 0.01},
    "ghost-norm": {"norm": Norm.GHOST, "norm_batch": 4, "momentum": 0.9},
    "dropout-augmented": {"model": Model.KESKAR_C1, "norm": Norm.BATCH, "augment": Augment.CROP_FLIP, "momentum": 0.9},
    "growing": {"norm": Norm.GHOST, "norm_batch": 4, "batch_size": 4, "batch_growth": 2, "momentum": 0.9, "epochs": 2,
                "budget": Budget.EPOCHS, "schedule": Schedule.LINEAR, "augment": Augment.CROP_FLIP},
    "plateau": {"budget": Budget.PLATEAU, "patience": 1, "max_epochs": 3},
    "target": TARGET | {"momentum": 0.9, "norm": Norm.BATCH},
}


@pytest.mark.parametrize("name", CASES)
def test_interrupted_at_every_step(name: str, tmp_path: Path) -> None:
    """A resumed run would be another run: other examples, masks, moments, layout, or a repeated row of history."""
    config = toy_config(**CASES[name])
    expected, log = run(config, size=10)
    steps = sorted(log.checkpoints)
    assert len(steps) > 6
    outcome, history, checkpoints = interrupted(config, tmp_path, steps, size=10)
    for checkpoint in checkpoints:
        assert same_checkpoint(checkpoint, log.checkpoints[checkpoint.current.step]), f"at step {checkpoint.current.step}"
    assert identical(outcome.weights, expected.weights) and identical(outcome.predictions, expected.predictions)
    assert (outcome.status, outcome.values, history) == (expected.status, expected.values, log.text)


def test_the_bracketing_phase_is_among_the_interruptions() -> None:
    """The case `target` above would not see a checkpoint between the two passes below the target."""
    _, log = run(toy_config(**CASES["target"]), size=10)
    assert any(c.above is not None and c.below is not None for c in log.checkpoints.values())


@pytest.mark.parametrize("stops", [(1, 2, 3), (2, 2, 2), (0, 6, 7)])
def test_three_interruptions_in_one_epoch(stops: tuple[int, ...], tmp_path: Path) -> None:
    """The second resume of an epoch would start from the first one's position."""
    config = toy_config(batch_size=8, optimizer=Optimizer.ADAM, lr=0.01)  # nine steps per epoch
    expected, log = run(config)
    outcome, history, _ = interrupted(config, tmp_path, stops)
    assert identical(outcome.weights, expected.weights) and history == log.text


@pytest.mark.parametrize("forgotten", ["optimizer.", "step"])
def test_a_forgetful_resume_is_seen(forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests could not fail: without its moments, or its place in the data, the run must end elsewhere."""
    restore = SingleEngine.restore

    def forgetful(self: SingleEngine, snapshots: Any) -> None:
        (snapshot,) = snapshots
        kept = {name: 0 * t if name.startswith(forgotten) else t for name, t in snapshot.tensors.items()}
        restore(self, [type(snapshot)(0 if forgotten == "step" else snapshot.step, kept)])

    config = toy_config(momentum=0.9)
    expected, _ = run(config)
    monkeypatch.setattr(SingleEngine, "restore", forgetful)
    outcome, _, _ = interrupted(config, tmp_path, [5])
    assert not identical(outcome.weights, expected.weights)
