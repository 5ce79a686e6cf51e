"""The same command gives the same bytes, and the same examples in the same order however it is computed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import Memory, toy_config, toy_images

from experiments.lab.datasets import load
from experiments.lab.declare.config import Augment, Budget, Machine, Model, Norm, Optimizer, RunConfig
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.store.records import Store
from experiments.lab.sweep import runner
from experiments.lab.training.data import prepare
from experiments.lab.training.gradient import Gradient
from experiments.lab.training.loop import train_group

ROOT = Path(__file__).resolve().parents[2]
N, SEEN = 2500, 4096
"""training examples, fewer than two epochs of them"""
RUNS = [
    toy_config(model=Model.KESKAR_C1, norm=Norm.BATCH, augment=Augment.CROP_FLIP, steps=35, optimizer=Optimizer.ADAM, lr=1e-3),
    toy_config(model=Model.SMALL_CONV, norm=Norm.GROUP, momentum=0.9, steps=35),
    toy_config(budget=Budget.TRAIN_LOSS, train_loss=0.3, max_epochs=40, optimizer=Optimizer.ADAM, lr=0.01),
]


@pytest.mark.parametrize("members", [1, 3])
def test_the_same_command_gives_the_same_bytes(members: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that cannot be had again is no result."""
    monkeypatch.setattr(runner, "read", lambda name, folder: toy_images(10))
    found = []
    for attempt in ("first", "second"):
        store, files = Store(tmp_path / attempt), {}
        for config in RUNS:
            configs = [config.replace(seed=seed) for seed in range(members)]
            runner.train_runs(configs, store, Machine(fused=members), lambda: False, lambda step: None)
        for path in sorted(store.root.rglob("*.*")):
            if path.is_file() and path.name not in ("provenance.json", "summary.json"):  # they say how long it took
                files[str(path.relative_to(store.root))] = path.read_bytes()
        for run_id in store.run_ids():
            summary = dict(store.summary(run_id) or {})
            files[run_id] = str({k: v for k, v in summary.items() if k not in ("seconds", "files", "seal")}).encode()
        found.append(files)
    assert found[0] == found[1]
    assert len(found[0]) >= 5 * 3 * members


def stream(batch_size: int, micro_batch: int | None = None, members: int = 1) -> str:
    """SHA-256 of the first SEEN examples that the last member's updates look at, augmented, and their labels."""
    config = RunConfig(n_train=N, width=2, depth=1, batch_size=batch_size, lr=0.01, augment=Augment.CROP_FLIP,
                       budget=Budget.STEPS, steps=SEEN // batch_size)
    configs = [config.replace(seed=seed) for seed in range(7 - members + 1, 8)]
    sha, compute = hashlib.sha256(), Gradient._part

    def part(self: Gradient, whole: int, *inputs: torch.Tensor) -> Any:
        for tensor in inputs[1:]:
            last = tensor if members == 1 else tensor[-1]
            (sha if tensor is inputs[1] else labels).update(last.contiguous().numpy().tobytes())
        return compute(self, whole, *inputs)

    labels = hashlib.sha256()
    Gradient._part = part
    try:
        data = prepare(config, Machine(), load("fashion-mini"))
        train_group(configs, Machine(micro_batch=micro_batch), data, [Quiet() for _ in configs], make_engine=fused_engine)
    finally:
        Gradient._part = compute
    return sha.hexdigest() + labels.hexdigest()


class Quiet(Memory):
    def wants_checkpoint(self, step: int) -> bool:
        return False


def test_examples_and_their_augmentation_do_not_depend_on_how_they_are_computed() -> None:
    """Arms would differ in more than their batch size."""
    ways: list[tuple[int, int | None, int]] = [
        (8, None, 1), (512, None, 1), (2048, None, 1), (8, 3, 1), (512, 100, 1), (2048, 500, 1),
        (512, None, 3), (2048, 256, 2),
    ]
    code = "import sys; sys.path[:0] = ['tests', 'tests/faults', '.']; from test_same_bytes import stream; print(stream(512))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    hashes = {stream(*way) for way in ways} | {done.stdout.strip()}
    print(f"{len(ways) + 1} ways, {len(hashes)} order of examples")
    assert len(hashes) == 1
