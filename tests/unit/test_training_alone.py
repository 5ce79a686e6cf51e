"""Training needs nothing of the room that fuses runs: that room could be removed whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toy_runs import Memory, toy_config, toy_data

from experiments.lab.declare.config import Machine
from experiments.lab.declare.errors import ConfigError
from experiments.lab.training.loop import train_group

BLOCKED = """
import sys
sys.modules["experiments.lab.fused"] = None
from toy_runs import run, toy_config
outcome, _ = run(toy_config(budget="train_loss", train_loss=0.2, max_epochs=30, batch_size=3))
print(outcome.status)
"""


def test_single_runs_train_without_fusing() -> None:
    """The loop, or the bisection of a stop rule, would reach into the other room."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=Path(__file__).parents[1], capture_output=True, text=True,
                          env={"PYTHONPATH": f"{Path(__file__).parents[2]}:."})
    assert done.stdout == "done\n", done.stderr


def test_several_runs_need_its_engine() -> None:
    """Only the first of them would be trained."""
    configs = [toy_config(seed=seed) for seed in range(2)]
    with pytest.raises(ConfigError, match="one by one"):
        train_group(configs, Machine(), toy_data(configs[0]), [Memory(), Memory()])
