"""Measurements of one run share its leading eigenpair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_runs import toy_config, toy_data

from experiments.keskar2017 import STUDY
from experiments.lab import models
from experiments.lab.declare.study import Request
from experiments.lab.measures.registry import METRICS
from experiments.lab.measures.subject import Subject

EXAMPLES = 60


def subject() -> Subject:
    config = toy_config()
    data = toy_data(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(config, data.shape, data.outputs).eval()
    return Subject(config, model, dict(model.state_dict()), data)


def measured(of: Subject, metric: str) -> dict[str, Any]:
    options: dict[str, Any] = {"subspace": 5} if metric == "phi_subspace" else {}
    return METRICS[metric].of(of, examples=EXAMPLES, **options)


def test_the_order_of_measurements_changes_nothing() -> None:
    """A number that depends on what else was asked for could not be repeated."""
    names = ("lambda_max", "phi_full", "phi_subspace", "norm_scaled_lambda", "trace", "relative_trace", "adaptive_l2_step")
    alone = {name: measured(subject(), name) for name in names}
    for order in (names, names[::-1]):
        one = subject()
        assert {name: measured(one, name) for name in order} == alone


def test_the_eigenpair_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each phi would pay for it anew; other examples or tolerances would get a pair that is not theirs."""
    import sharpness

    calls: list[float] = []
    original = sharpness.top_eigenvalues

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options["tol"])
        return original(*args, **options)

    monkeypatch.setattr(sharpness, "top_eigenvalues", counted)
    one = subject()
    for name in ("phi_full", "lambda_max", "phi_subspace", "norm_scaled_lambda"):
        result = measured(one, name)
        assert name[:3] != "phi" or result["details"]["hessian_products"] == 0
    METRICS["lambda_max"].of(one, examples=EXAMPLES, tol=0.1)
    METRICS["lambda_max"].of(one, examples=EXAMPLES - 1)
    assert calls == [1e-3, 0.1, 1e-3]


def test_measures_of_the_study_can_be_made() -> None:
    """A metric or an option that the study declares and `measure` does not know: every run would fail at its end."""
    one = subject()
    first = [(r, s, s.runs_of(r, ())[:1]) for r in (Request(scale.name) for scale in STUDY.scales) for s in STUDY.stages]
    for wanted in {wanted for asked, stage, runs in first for config in runs for wanted in stage.measures_of(asked, config)}:
        options = dict(wanted.options) | {"examples": 20}
        if wanted.metric != "sharpness_along":  # lives a finished run again
            found = METRICS[wanted.metric].of(one, **options)
            assert found["value"] is not None and found["examples"] == 20 and found["status"] != "nonfinite"
