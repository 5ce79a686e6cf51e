"""`measure RUN`: every metric of a stored run once, each with its certificate, and names that keep their ids."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import toy_store
from toy_runs import toy_config, toy_images

from experiments.__main__ import main
from experiments.lab.declare.config import Machine, Model, Norm
from experiments.lab.declare.study import Measure, measure
from experiments.lab.declare.vocabulary import Metric, Options, rows
from experiments.lab.measures import registry
from experiments.lab.measures.perform import perform, performing
from experiments.lab.measures.registry import FUNCTIONS, METRICS, OWN, names_of_one_run, standard
from experiments.lab.measures.subject import head, load_subject
from experiments.lab.store.records import Store, measurement_id
from experiments.lab.training import data
from sharpness.__main__ import main as sharpness_command
from sharpness.metrics import TABLE
from sharpness.panels import panel

torch.set_num_threads(1)

CERTIFICATE = {"metric", "options", "runs", "value", "standard_error", "residual", "products", "examples", "bn_mode", "dtype",
               "seed", "status", "details"}


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, str]:
    """A toy run with batch normalisation, in a store of its own."""
    monkeypatch.setattr(data, "read", lambda name, folder: toy_images())
    store, config = Store(tmp_path), toy_config(norm=Norm.BATCH, batch_size=24)
    toy_store.finish(store, config)
    return store, config.run_id


def call(store: Store, run_id: str, *metrics: str) -> int:
    return main(["measure", run_id, "--store", str(store.root), "--json", "--metrics", *metrics])


def test_all_metrics_once(finished, capsys) -> None:
    store, run_id = finished
    assert call(store, run_id, "all") == 0
    seen = capsys.readouterr()
    found = json.loads(seen.out)["measurements"]
    names = names_of_one_run()
    assert {"lambda_max", "phi_full_5e-4", "trace", "local_entropy"} <= set(names)
    assert [m["metric"] for m in found] == list(names)
    assert f"{len(names)} of {len(names)} measured" in seen.err
    for m in found:
        assert m.keys() == CERTIFICATE and m["options"].keys() == METRICS[m["metric"]].options.keys(), m["metric"]
        assert m["runs"] == [run_id] and m["bn_mode"] == "eval" and m["dtype"] == "float32" and m["examples"] == 72
        assert m["status"] != "not applicable" and (m["value"] is not None or m["status"] == "unresolved"), m["metric"]
        assert m["details"] or m["metric"] == "lambda_max"
    files = toy_store.files(store.root)
    assert call(store, run_id, "all") == 0
    again = capsys.readouterr()
    assert "measured" not in again.err and json.loads(again.out)["measurements"] == found
    assert toy_store.files(store.root) == files


def test_only_what_is_missing_is_measured(finished, capsys) -> None:
    store, run_id = finished
    call(store, run_id, "trace", "lambda_max")
    capsys.readouterr()
    assert call(store, run_id, "trace", "frobenius_norm") == 0
    assert capsys.readouterr().err.startswith("1 of 1 measured: frobenius_norm")
    assert call(store, run_id, "trace", "--examples", "30") == 0
    assert json.loads(capsys.readouterr().out)["measurements"][0]["examples"] == 30
    assert call(store, run_id, "trace", "--examples", "0") == 2 and "at least 1" in capsys.readouterr().err


def test_the_values_are_the_librarys_at_the_stored_weights(finished) -> None:
    """With the calibrated statistics of batch normalisation, on the first training examples."""
    from sharpness import random_perturbation

    store, run_id = finished
    subject = load_subject(store, run_id, Machine())
    perform(store, Machine(), [standard("random_perturbation")], [run_id])
    stored = store.measurement(standard("random_perturbation"), [run_id])
    train = subject.data.train
    expected = random_perturbation(
        subject.model, torch.nn.functional.cross_entropy, (train.inputs, train.targets), sigma=0.01, draws=10
    )
    assert stored is not None
    assert stored["value"] == pytest.approx(expected.value, rel=1e-4)
    assert stored["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)


@pytest.mark.parametrize(("declared", "runs", "name"), [
    (measure("lambda_max", examples=2000), "a", "lambda_max-054e52054cb6"),
    (measure("lambda_max", examples=1000, tol=1e-2), "a", "lambda_max-e2399b83e507"),
    (measure("trace", examples=1000, products=12), "a", "trace-a15e76df4455"),
    (measure("phi_full", examples=2000, epsilon=1e-3), "a", "phi_full-0a87c3eb5404"),
    (measure("phi_full_5e-4", examples=2000, epsilon=5e-4), "a", "phi_full_5e-4-ee8b429fe9b8"),
    (measure("phi_subspace", examples=500, epsilon=1e-3, subspace=100), "a", "phi_subspace-8f0d81684b5a"),
    (measure("pac_bayes_sigma_magnitude", examples=128), "a", "pac_bayes_sigma_magnitude-bd95e129e61a"),
    (measure("slice", examples=2000, points=25), "ab", "slice-f822400224f4"),
], ids=lambda given: str(given) if isinstance(given, str) else "")
def test_ids_stay(declared: Measure, runs: str, name: str) -> None:
    """Published measurements, as their studies declare them, would be made again under another name."""
    assert measurement_id(declared, [letter * 16 for letter in runs]) == name


SHARED = ("lambda_max", "norm_scaled_lambda", "trace", "phi_full", "phi_subspace", "relative_trace", "adaptive_l2_step")


def test_a_name_means_the_same_in_both_commands(finished, capsys, monkeypatch) -> None:
    """Two people would compare numbers of one name that are not the same thing."""
    store, run_id = finished
    subject = load_subject(store, run_id, Machine())
    theirs = SimpleNamespace(model=subject.model, data=(subject.data.train.inputs, subject.data.train.targets))
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    names = [*SHARED, "frobenius_norm"]
    assert call(store, run_id, *names) == 0
    ours = {m["metric"]: m for m in json.loads(capsys.readouterr().out)["measurements"]}
    assert sharpness_command(["--model", "theirs:model", "--data", "theirs:data", "--json", "--metrics", *names]) == 0
    for other in json.loads(capsys.readouterr().out):
        mine = ours[other["metric"]]
        assert mine["value"] == pytest.approx(other["value"], rel=1e-6), other["metric"]
        assert mine["standard_error"] == (other["standard_error"] and pytest.approx(other["standard_error"], rel=1e-3))
        assert mine["examples"] == other.get("examples", 72)


def test_options_are_the_functions_own() -> None:
    """A default in a function would be a second meaning of an option left out; a row without the option, none."""
    names = [*(row.name for row in TABLE), *(row.name for row in OWN)]
    assert len(set(names)) == len(names) and set(names_of_one_run()) == {*(row.name for row in TABLE), "phi_full_5e-4"}
    for name in {*FUNCTIONS, *(row.name for row in OWN)}:
        given = inspect.signature(METRICS[name].function or panel).parameters.values()
        own = {p.name: p for p in given if p.kind is p.KEYWORD_ONLY}
        left_out = own.keys() - METRICS[name].options.keys()
        assert METRICS[name].options.keys() <= own.keys() and METRICS[name].runs == len(given) - len(own), name
        assert all(own[option].default is None for option in left_out), name


def test_a_default_changes_with_its_version() -> None:
    """Old records that leave the option out would mean another measurement. After a change raise `version`, then this digest."""
    names = sorted({*FUNCTIONS, *(row.name for row in OWN)})
    defaults = {name: [METRICS[name].filled({}), METRICS[name].version] for name in names}
    assert hashlib.sha256(json.dumps(defaults).encode()).hexdigest()[:12] == "285a77707365"


def test_a_metric_is_added_as_the_registry_says(finished, monkeypatch) -> None:
    """Its text would send whoever follows it astray."""
    store, run_id = finished
    said = [line.strip() for line in str(registry.__doc__).splitlines() if line.startswith("    ")]
    function, row = "\n    ".join(said[:2]), said[2]
    source = inspect.getsource(registry).replace("OWN: tuple[Metric, ...] = (\n", f"{function}\n\nOWN = (\n    {row}\n")
    module = ModuleType("added")
    monkeypatch.setitem(sys.modules, "added", module)
    vars(module)["head"] = head
    exec(source, vars(module))
    found = module.METRICS["mine"].of(load_subject(store, run_id, Machine()), examples=20)
    assert found.keys() | {"metric", "options", "runs"} == CERTIFICATE and found["examples"] == 20
    assert rows(source)["mine"] == Metric(1, Options({"examples": "int", "power": "float", "seed": "int"}, ("examples",)), 1)


def test_an_unknown_metric_is_one_sentence(finished, capsys) -> None:
    store, run_id = finished
    for name in ("sharpest", "slice"):
        assert call(store, run_id, "trace", name) == 2
        seen = capsys.readouterr()
        assert seen.out == "" and f"no metric {name!r}" in seen.err and len(seen.err.splitlines()) == 1


def test_other_examples_are_another_measurement(finished) -> None:
    store, run_id = finished
    wanted = [measure("frobenius_norm", examples=n) for n in (20, 30)]
    made = [m for _, _, m in performing(store, Machine(), wanted, [run_id])]
    assert made == wanted
    found = [store.measurement(m, [run_id]) for m in wanted]
    assert [m["examples"] for m in found if m] == [20, 30]


def test_float64_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(data, "read", lambda name, folder: toy_images())
    store, config = Store(tmp_path), toy_config(precision="float64", model=Model.MLP)
    toy_store.finish(store, config)
    perform(store, Machine(), [standard("frobenius_norm")], [config.run_id])
    found = store.measurement(standard("frobenius_norm"), [config.run_id])
    assert found is not None and found["dtype"] == "float64" and found["details"]["dtype"] == "float64"


def test_the_plane_holds_both_minimisers_and_their_start(finished) -> None:
    """Corners beside their weights, or statistics of other weights, would draw a landscape of nothing."""
    store, first = finished
    other = toy_config(norm=Norm.BATCH, batch_size=12)
    toy_store.finish(store, other)
    subjects = [load_subject(store, run_id, Machine()) for run_id in (first, other.run_id)]
    found = METRICS["plane"].of(*subjects, points=5, examples=72)
    assert found.keys() | {"metric", "options", "runs"} == CERTIFICATE and found["status"] == "ok"
    details = found["details"]
    losses = np.array(details["train_loss"])
    assert losses.shape == (5, 5) and found["value"] == losses.min()
    assert [p["label"] for p in details["points"]] == ["B 24", "B 12", "start"]
    x, y = ([p[axis] for p in details["points"]] for axis in "xy")
    assert min(details["alphas"]) < min(x) and max(x) < max(details["alphas"])
    assert min(details["betas"]) < min(y) and max(y) < max(details["betas"])
    distance = np.hypot(x[0] - x[2], y[0] - y[2])
    assert distance == pytest.approx(store.summary(first)["distance_from_start"], rel=1e-4)
