"""Out of memory: the micro-batch shrinks in whole normalisation batches and nothing else changes, or one sentence says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import toy_config, toy_images

from experiments.lab.declare.config import Augment, Machine, Model, Norm, Precision, RunConfig
from experiments.lab.store.checkpoints import load_tensors
from experiments.lab.store.execution_plan import read_plan, write_plan
from experiments.lab.store.records import Store
from experiments.lab.sweep import runner
from experiments.lab.training.gradient import Gradient
from experiments.lab.training.memory import smaller
from experiments.lab.training.state import Tensors

ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
          RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")]


@pytest.fixture(autouse=True)
def toy_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "read", lambda name, folder: toy_images(10))


def limit(monkeypatch: pytest.MonkeyPatch, examples: int, error: BaseException, members: int | None = None) -> None:
    """Let passes of more than `examples` examples (of `members` runs) run out of memory."""
    compute = Gradient._part

    def part(self: Gradient, *inputs: torch.Tensor) -> Any:
        if inputs[-1].shape[-1] > examples and members in (None, len(inputs[-1])):
            raise error
        return compute(self, *inputs)

    monkeypatch.setattr(Gradient, "_part", part)


def trained(root: Path, configs: list[RunConfig], **machine: Any) -> list[Tensors]:
    store = Store(root)
    statuses = runner.train_runs(configs, store, Machine(**machine), lambda: False, lambda step: None)
    assert set(statuses) == {"done"}
    found = [load_tensors(store.folder(config.run_id) / "final.safetensors") for config in configs]
    return [loaded[0] for loaded in found if loaded is not None]


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_the_micro_batch_shrinks_and_nothing_else(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the batch, or other examples, masks or ghost batches, would be another experiment."""
    config = toy_config(model=Model.KESKAR_C1, norm=Norm.GHOST, norm_batch=4, augment=Augment.CROP_FLIP, batch_size=24, steps=4,
                        momentum=0.9, lr=1e-2, precision=Precision.FLOAT64)
    (whole,) = trained(tmp_path / "whole", [config])
    (asked,) = trained(tmp_path / "asked", [config], micro_batch=8)
    limit(monkeypatch, 11, error)
    (shrunk,) = trained(tmp_path / "shrunk", [config])
    plan = read_plan(Store(tmp_path / "shrunk").folder(config.run_id))
    assert plan is not None and plan["micro_batch"] == 8  # 24, then 12, then 8: two ghost batches
    assert all(torch.equal(shrunk[name], asked[name]) for name in asked)
    assert all(torch.allclose(shrunk[name], whole[name], rtol=1e-9, atol=1e-9) for name in whole)


def test_a_plan_outlives_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run would try the whole batch again, and its rounding would change on the way."""
    config = toy_config(batch_size=24, steps=4)
    sizes: list[int] = []
    compute = Gradient._part
    monkeypatch.setattr(Gradient, "_part", lambda self, *x: (sizes.append(len(x[-1])), compute(self, *x))[1])
    Store(tmp_path).folder(config.run_id).mkdir()
    write_plan(Store(tmp_path).folder(config.run_id), [config.run_id], 6)
    trained(tmp_path, [config])
    assert set(sizes) == {6}


def test_what_cannot_shrink_fails_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm over half a batch is another network."""
    config = toy_config(norm=Norm.BATCH, batch_size=24)
    limit(monkeypatch, 11, ERRORS[1])
    with pytest.raises(RuntimeError, match="out of memory"):
        trained(tmp_path, [config])
    assert not Store(tmp_path).finished(config.run_id)


@pytest.mark.parametrize(("fields", "present", "expected"), [
    ({"batch_size": 24}, None, 12), ({"batch_size": 24}, 5, 3), ({"batch_size": 24}, 1, None), ({"batch_size": 1}, None, None),
    ({"batch_size": 24, "norm": Norm.GHOST, "norm_batch": 8}, None, 16),
    ({"batch_size": 24, "norm": Norm.GHOST, "norm_batch": 8}, 16, 8),
    ({"batch_size": 24, "norm": Norm.GHOST, "norm_batch": 8}, 8, None),
    ({"batch_size": 24, "norm": Norm.BATCH}, None, None),
])
def test_the_next_smaller_micro_batch(fields: dict[str, Any], present: int | None, expected: int | None) -> None:
    """A size that splits a normalisation batch, or a loop that never ends."""
    assert smaller(toy_config(**fields), present) == expected


def test_a_program_too_large_for_memory_shrinks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused runs would be lost together."""
    configs = [toy_config(seed=seed, batch_size=24, steps=4) for seed in range(3)]
    limit(monkeypatch, 12, ERRORS[0])
    weights = trained(tmp_path, configs, fused=3)
    plans = [read_plan(Store(tmp_path).folder(config.run_id)) for config in configs]
    assert len(weights) == 3 and all(plan and plan["micro_batch"] == 12 and len(plan["members"]) == 3 for plan in plans)
