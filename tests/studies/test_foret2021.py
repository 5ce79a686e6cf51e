"""Sharpness-aware minimisation against SGD of as many gradients."""

from __future__ import annotations

import pytest

from experiments import foret2021
from experiments.lab.declare.study import Request
from experiments.lab.training.batch_schedule import total_steps


@pytest.mark.parametrize("scale", [scale.name for scale in foret2021.STUDY.scales])
def test_equal_gradients(scale: str) -> None:
    """SGD would be given fewer gradients than SAM takes."""
    runs = {stage.name: stage.runs_of(Request(scale), ())[0] for stage in foret2021.STUDY.stages}
    n = runs["sgd"].n_train or 50000
    steps = {name: total_steps(config, n) or 0 for name, config in runs.items()}
    assert steps["sam"] == steps["asam"] == steps["sgd"]
    assert 0 <= steps["twice"] - 2 * steps["sam"] <= 1
    assert runs["sam"].sam_rho > 0 and runs["asam"].sam_adaptive and not runs["twice"].sam_rho
