"""Long work speaks, short work does not; what it will cost is said beforehand; results print short."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from toy_nets import CROSS_ENTROPY, class_data, own_labels, relu_net

import sharpness
from sharpness.metrics import TABLE
from sharpness.problem import progress as module

torch.set_num_threads(1)


def ends(model):
    return {k: t.clone() for k, t in model.state_dict().items()}, {k: 1.5 * t for k, t in model.state_dict().items()}


def on_model(function, **options):
    """A measurement of the toy network."""

    def measure(progress):
        model, data = relu_net(), own_labels()
        along = function in (sharpness.slice_1d, sharpness.connect)
        more = dict(zip(("start", "end"), ends(model), strict=True)) if along else {}
        if function is sharpness.slice_2d:
            more["directions"] = [sharpness.random_direction(model, seed) for seed in (0, 1)]
        if function is sharpness.gradient_hessian_overlap:
            n = sum(p.numel() for p in model.parameters())
            more |= {"op": sharpness.hessian(model, CROSS_ENTROPY, data), "vectors": np.eye(n)[:2]}
        return function(model, CROSS_ENTROPY, data, progress=progress, **options, **more)

    return measure


def on_operator(function, **options):
    return lambda progress: function(sharpness.hessian(relu_net(), CROSS_ENTROPY, class_data()), progress=progress, **options)


LONG = {
    "top_eigenvalues": on_operator(sharpness.top_eigenvalues),
    "trace": on_operator(sharpness.trace, matvecs=12),
    "frobenius_norm": on_operator(sharpness.frobenius_norm, matvecs=5),
    "effective_rank": on_operator(sharpness.effective_rank, matvecs=5),
    "diagonal": on_operator(sharpness.diagonal, matvecs=5),
    "spectral_density": on_operator(sharpness.spectral_density, probes=2, steps=4),
    "gradient_noise": on_model(sharpness.gradient_noise),
    "gradient_hessian_overlap": on_model(sharpness.gradient_hessian_overlap, mixtures=2),
    "batch_sharpness": on_model(sharpness.batch_sharpness, batch=4, batches=3),
    "epsilon_sharpness": on_model(sharpness.epsilon_sharpness, starts=["origin"], iterations=2),
    "random_perturbation": on_model(sharpness.random_perturbation, sigma=0.01, draws=4),
    "pac_bayes_sigma": on_model(sharpness.pac_bayes_sigma, draws=2, tolerance=0.5),
    "worst_case_sharpness": on_model(sharpness.worst_case_sharpness, rho=0.1, steps=3, starts=2, m=20),
    "average_case_sharpness": on_model(sharpness.average_case_sharpness, rho=0.1, draws=4, m=20),
    "fisher_rao_norm": on_model(sharpness.fisher_rao_norm),
    "relative_trace": on_model(sharpness.relative_trace, probes=3),
    "local_entropy": on_model(sharpness.local_entropy, gamma=1e4, samples=4),
    "basin_radius": on_model(sharpness.basin_radius, directions=3, tolerance=0.1),
    "slice_1d": on_model(sharpness.slice_1d, alphas=[0, 0.5, 1]),
    "slice_2d": on_model(sharpness.slice_2d, alphas=[0, 1], betas=[0, 1]),
    "connect": on_model(sharpness.connect, steps=2, points=3),
}


def test_every_long_function_takes_progress():
    functions = {n: f for n, f in vars(sharpness).items() if n in sharpness.__all__ and inspect.isfunction(f)}
    takes = {n for n, f in functions.items() if "progress" in inspect.signature(f).parameters}
    assert takes == {*LONG, "panel"}


@pytest.mark.parametrize("name", LONG)
def test_progress_counts_to_its_total_and_changes_nothing(name, capsys):
    told = []
    loud = LONG[name](lambda *facts: told.append(facts))
    quiet = LONG[name](None)
    assert loud.to_dict() == quiet.to_dict()
    assert capsys.readouterr() == ("", "")
    for what in {facts[2] for facts in told}:
        done, totals = [f[0] for f in told if f[2] == what], {f[1] for f in told if f[2] == what}
        assert what.startswith(f"{name}: ") and done == sorted(set(done)) and len(totals) == 1
        assert totals == {None} or totals == {done[-1]}
    assert told


def test_lines_on_stderr(monkeypatch, capsys):
    """The first as soon as the first step shows that it is long: not after it."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    meter = module.Meter(True, "trace: HVPs", 100)
    for _ in range(100):
        now[0] += 2
        meter.tick()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0] == "trace: HVPs: 1 of 100, 2 s, about 198 s left"
    assert lines[-1] == "trace: HVPs: 100 of 100, 200 s" and 15 < len(lines) < 20
    short = module.Meter(True, "trace: HVPs", 100)
    for _ in range(100):
        now[0] += 0.02
        short.tick()
    assert capsys.readouterr() == ("", "")


def test_lines_without_a_total(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    meter = module.Meter(True, "top_eigenvalues: HVPs")
    for _ in range(4):
        now[0] += 2
        meter.tick()
    assert capsys.readouterr().err == "top_eigenvalues: HVPs: 2, 4 s\n"


def test_progress_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="progress is 'yes'"):
        sharpness.trace(np.eye(3), progress="yes")  # pyright: ignore[reportArgumentType]


def test_a_panel_passes_progress_on():
    told = set()
    metrics = ["trace", "basin_radius"]
    list(sharpness.panel(relu_net(), CROSS_ENTROPY, class_data(), metrics=metrics, progress=lambda *f: told.add(f[2])))
    assert told == {"trace: HVPs", "basin_radius: directions"}


def test_the_estimate_counts_what_the_panel_then_does():
    """Stated work against the certificates of the results: an estimate half as large would promise too much."""
    model, data = relu_net(torch.float32), class_data(96, torch.float32)
    for metric in TABLE:
        (entry,) = sharpness.panel(model, CROSS_ENTROPY, data, metrics=metric.name)
        facts, work = entry.to_dict(), metric.work
        if metric.uses_leading or metric.name == "batch_sharpness":  # its batches are a part of 500 examples, not of 96
            continue
        if facts.get("matvecs"):
            assert work.products / 8 <= facts["matvecs"] <= work.products, metric.name
        elif "evaluations" in facts:
            assert facts["evaluations"] <= 1.5 * (work.passes + work.gradients) <= 12 * facts["evaluations"], metric.name


def test_estimate_adds_up_and_the_leading_eigenpair_is_counted_once():
    metrics = ["lambda_max", "norm_scaled_lambda", "trace"]
    found = sharpness.cost_estimate(relu_net(), CROSS_ENTROPY, class_data(), metrics=metrics)
    assert found.metrics["lambda_max"] == pytest.approx(40 * found.product_seconds)
    assert found.metrics["norm_scaled_lambda"] == 0 and found.metrics["trace"] == pytest.approx(12 * found.product_seconds)
    assert found.value == pytest.approx(sum(found.metrics.values())) and (found.passes, found.products) == (0, 52)


def test_estimate_counts_no_more_examples_than_there_are():
    """`examples=10**6` of 200 was an estimate for a million."""
    few = [sharpness.cost_estimate(relu_net(), CROSS_ENTROPY, class_data(200), metrics="trace", examples=n) for n in (200, 10**6)]
    for found in few:
        assert found.value == pytest.approx(12 * found.product_seconds * 200 / 128)


@pytest.mark.parametrize("name", LONG)
def test_results_print_short(name):
    """Value and error, status and cost first, in at most a few lines."""
    found = LONG[name](None)
    text = repr(found)
    assert len(text) <= 300 and text.count("\n") <= 2
    assert text.index("status=") < 130
    if isinstance(getattr(found, "standard_error", None), float):
        assert text.startswith(f"{type(found).__name__}(value=") and " ± " in text[:60]
    cost = [text.index(f"{field}=") for field in ("matvecs", "evaluations") if hasattr(found, field)]
    assert all(place < 180 for place in cost)
    hidden = text.rpartition(", and ")[2]
    shown_fields = text.count("=")
    assert not hidden.endswith("more)") or int(hidden.split()[0]) + shown_fields >= 10
