"""A run killed at any step, or at any call that changes a file, ends bitwise where the undisturbed one does."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path
from typing import Any

import lives
import pytest
import torch
import toy_lives
from torch import Tensor
from toy_runs import Memory, identical, run, same_checkpoint, toy_config, toy_data

from experiments.lab.declare.config import Augment, Machine, Model, Norm, Optimizer, RunConfig
from experiments.lab.store.check import check
from experiments.lab.store.checkpoints import load_tensors
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import RunFolder, open_run
from experiments.lab.training import gradient
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.loop import train
from experiments.lab.training.outcome import Outcome
from experiments.lab.training.state import Checkpoint

SIZE = 10
TWO_EPOCHS: dict[str, Any] = {"batch_size": 8, "steps": 18}
"""of the 72 examples of the toy data"""
CASES: dict[str, dict[str, Any]] = {
    "adam, dropout, crops, ghost norm": TWO_EPOCHS | {
        "model": Model.KESKAR_C1, "norm": Norm.GHOST, "norm_batch": 4, "augment": Augment.CROP_FLIP,
        "optimizer": Optimizer.ADAM, "lr": 0.01,
    },
    "momentum, ghost norm": TWO_EPOCHS | {"momentum": 0.9, "norm": Norm.GHOST, "norm_batch": 4},
}


class Watched:
    """The log of a run on disk that also keeps every checkpoint it could have written."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.checkpoints = folder, dict[int, Checkpoint]()
        self.load, self.row, self.history_bytes = folder.load, folder.row, folder.history_bytes

    def wants_checkpoint(self, step: int) -> bool:
        return True

    def save(self, checkpoint: Checkpoint) -> None:
        self.checkpoints[checkpoint.current.step] = checkpoint


def resume(root: Path, config: RunConfig) -> tuple[Outcome, dict[int, Checkpoint], bytes]:
    """Finish a killed run; its outcome, its state before each update, its history."""
    folder = open_run(Store(root), config, Machine(), lambda: False, lambda step: None)
    assert folder is not None, "a dead process keeps its lease"
    log = Watched(folder)
    outcome = train(config, Machine(), toy_data(config, SIZE), log)
    assert folder.publish(outcome)
    folder.close()
    assert not check(Store(root)).damaged
    return outcome, log.checkpoints, folder.history.read_bytes()


def assert_equal(found: tuple[Outcome, dict[int, Checkpoint], bytes], expected: Outcome, log: Memory) -> None:
    outcome, checkpoints, history = found
    for step, checkpoint in checkpoints.items():
        assert same_checkpoint(checkpoint, log.checkpoints[step]), f"weights, optimizer or stop rule differ before update {step}"
    assert identical(outcome.weights, expected.weights) and identical(outcome.predictions, expected.predictions)
    assert (outcome.status, outcome.values, history) == (expected.status, expected.values, log.text)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[str]]:
    """Digests of what each step draws: its examples, their crops, the counters of its dropout masks."""
    seen: dict[int, set[str]] = {}
    update = SingleEngine.update

    def watched(self: SingleEngine, positions: Tensor, draws: Tensor | None, lr: Any, counter: Tensor,
                weights: Tensor | None) -> Tensor:
        parts = [part.contiguous().numpy().tobytes() for part in (positions, draws, counter, weights) if part is not None]
        seen.setdefault(int(counter[1]), set()).add(hashlib.sha256(b"".join(parts)).hexdigest())
        return update(self, positions, draws, lr, counter, weights)

    monkeypatch.setattr(SingleEngine, "update", watched)
    return seen


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.verify)])
@pytest.mark.parametrize(("first", "case", "record_after"), list(zip((0, 1), CASES, (30, 5), strict=True)))
def test_killed_at_every_step(first: int, case: str, record_after: int, every: int, tmp_path: Path,
                              drawn: dict[int, set[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run would be another run: other examples, crops, masks, moments, layout, or a repeated row of history;
    its updates are eager where the undisturbed run's were replayed.

    Each step in one of the two cases, in `make verify` in both.
    """
    monkeypatch.setattr(gradient, "RECORD_AFTER", record_after)
    config = toy_config(**CASES[case])
    expected, log = run(config, size=SIZE)
    before = torch.get_rng_state()
    steps = range(min(first, every - 1), 18, every)
    for step in steps:
        root = tmp_path / str(step)
        assert lives.run(toy_lives.train_until, root, CASES[case], SIZE, step, 4, record_after) == -signal.SIGKILL
        found = resume(root, config)
        assert min(found[1]) == (step - 1) // 4 * 4 if step > 4 else min(found[1]) == 0
        assert_equal(found, expected, log)
    assert len(drawn) == 18 and all(len(digests) == 1 for digests in drawn.values())
    assert torch.equal(torch.get_rng_state(), before)
    print(f"survived {len(steps)}/{len(steps)} kills")


@pytest.mark.parametrize("steps", [(2, 5, 7), (5, 5, 6), tuple(range(1, 19))], ids=["three", "twice the same", "every"])
def test_killed_again_and_again(steps: tuple[int, ...], tmp_path: Path) -> None:
    """Three times within the epoch of nine steps, and at each step of one life after another: errors would add up."""
    fields = CASES["adam, dropout, crops, ghost norm"]
    expected, log = run(toy_config(**fields), size=SIZE)
    for step in steps:  # checkpoints before each update: a life goes on where the last one ended
        assert lives.run(toy_lives.train_until, tmp_path, fields, SIZE, step, 1) == -signal.SIGKILL
    found = resume(tmp_path, toy_config(**fields)) if steps[-1] < 18 else None
    if found is not None:
        assert_equal(found, expected, log)
    loaded = load_tensors(Store(tmp_path).folder(toy_config(**fields).run_id) / "final.safetensors")
    assert loaded is not None and identical(loaded[0], expected.weights)
    print(f"survived {len(steps)}/{len(steps)} kills")


@pytest.mark.slow  # quick only where the others have run
@pytest.mark.parametrize("forgotten", ["optimizer.", "step"])
def test_a_forgetful_resume_is_seen(forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above could not fail: without its moments, or its place in the order, a killed run must end elsewhere."""
    restore = SingleEngine.restore

    def forgetful(self: SingleEngine, snapshots: Any) -> None:
        (snapshot,) = snapshots
        kept = {name: 0 * t if name.startswith(forgotten) else t for name, t in snapshot.tensors.items()}
        restore(self, [type(snapshot)(0 if forgotten == "step" else snapshot.step, kept)])

    fields = CASES["momentum, ghost norm"]
    expected, log = run(toy_config(**fields), size=SIZE)
    assert lives.run(toy_lives.train_until, tmp_path, fields, SIZE, 7, 4) == -signal.SIGKILL
    monkeypatch.setattr(SingleEngine, "restore", forgetful)
    with pytest.raises(AssertionError):
        assert_equal(resume(tmp_path, toy_config(**fields)), expected, log)


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.verify)])
def test_killed_at_every_call_that_changes_a_file(every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instant between two calls would lose the run, or leave what nobody removes; random kills rarely meet it.

    Every second call, in `make verify` each.
    """
    for where, name in toy_lives.CHANGED:
        monkeypatch.setattr(where, name, getattr(where, name))
    config, told = toy_lives.disk_config(), tmp_path / "calls"
    expected, log = run(config)
    assert lives.run(toy_lives.dying, tmp_path / "counted", 0, told) == 0
    calls = int(told.read_text())
    names = {path.name for path in Store(tmp_path / "counted").folder(config.run_id).iterdir()}
    tried = range(1, calls + 1, every)
    for call in tried:
        root = tmp_path / str(call)
        assert lives.run(toy_lives.dying, root, call) == -signal.SIGKILL
        assert toy_lives.toy_task(root) == "done"
        folder, summary = Store(root).folder(config.run_id), Store(root).summary(config.run_id)
        assert summary is not None and {k: summary[k] for k in expected.values} == expected.values
        assert {path.name for path in folder.iterdir()} == names, f"killed at call {call}"
        loaded = load_tensors(folder / "final.safetensors")
        assert loaded is not None and identical(loaded[0], expected.weights)
        assert (folder / "history.jsonl").read_bytes() == log.text and not check(Store(root)).damaged
    print(f"survived {len(tried)}/{len(tried)} calls")
    assert calls > 40
