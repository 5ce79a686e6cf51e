"""`measure RUN`: every metric of a stored run once, each with its certificate, and names that keep their ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_store
from toy_runs import toy_config, toy_images

from experiments.__main__ import main
from experiments.lab.declare.config import Machine, Model, Norm
from experiments.lab.measures import measure
from experiments.lab.store.records import Store, measurement_id
from experiments.lab.training import data
from sharpness.metrics import TABLE

torch.set_num_threads(1)

CERTIFICATE = {
    "metric", "options", "runs", "value", "standard_error", "residual", "products", "examples", "bn_mode", "dtype",
    "seed", "status", "details",
}


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
    names = measure.names_of_one_run()
    assert {"lambda_max", "phi_full_5e-4", "trace", "local_entropy"} <= set(names)
    assert [m["metric"] for m in found] == list(names)
    assert f"{len(names)} of {len(names)} measured" in seen.err
    for m in found:
        assert m.keys() == CERTIFICATE, m["metric"]
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


def test_the_values_are_the_librarys_at_the_stored_weights(finished) -> None:
    """With the calibrated statistics of batch normalisation, on the first training examples."""
    from sharpness import random_perturbation

    store, run_id = finished
    subject = measure.load_subject(store, run_id, Machine())
    measure.perform(store, Machine(), [measure.standard("random_perturbation")], [run_id])
    stored = store.measurement(measure.standard("random_perturbation"), [run_id])
    train = subject.data.train
    expected = random_perturbation(
        subject.model, torch.nn.functional.cross_entropy, (train.inputs, train.targets), sigma=0.01, draws=10
    )
    assert stored is not None
    assert stored["value"] == pytest.approx(expected.value, rel=1e-4)
    assert stored["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)


def test_ids_stay(finished) -> None:
    """Stored measurements would be made again, under another name."""
    runs = ["a" * 16]
    assert measurement_id(measure.standard("lambda_max"), runs) == "lambda_max-054e52054cb6"
    assert measurement_id(measure.standard("phi_full"), runs) == "phi_full-369a1e601454"
    assert measurement_id(measure.standard("phi_full_5e-4"), runs) == "phi_full_5e-4-ee8b429fe9b8"
    assert measurement_id(measure.standard("phi_subspace"), runs) == "phi_subspace-15a448289c2d"


def test_names_of_the_panel_do_not_replace_the_labs() -> None:
    names = measure.names_of_one_run()
    assert len(set(names)) == len(names) and "slice" not in names
    assert measure.standard("phi_full").options == (("examples", 2000),)
    for metric in TABLE:
        assert metric.name in names


def test_an_unknown_metric_is_one_sentence(finished, capsys) -> None:
    store, run_id = finished
    for name in ("sharpest", "slice"):
        assert call(store, run_id, "trace", name) == 2
        seen = capsys.readouterr()
        assert seen.out == "" and f"no metric {name!r}" in seen.err and len(seen.err.splitlines()) == 1


def test_other_examples_are_another_measurement(finished) -> None:
    store, run_id = finished
    wanted = [measure.measure("frobenius_norm", examples=n) for n in (20, 30)]
    made = [m for _, _, m in measure.performing(store, Machine(), wanted, [run_id])]
    assert made == wanted
    found = [store.measurement(m, [run_id]) for m in wanted]
    assert [m["examples"] for m in found if m] == [20, 30]


def test_float64_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(data, "read", lambda name, folder: toy_images())
    store, config = Store(tmp_path), toy_config(precision="float64", model=Model.MLP)
    toy_store.finish(store, config)
    measure.perform(store, Machine(), [measure.standard("frobenius_norm")], [config.run_id])
    found = store.measurement(measure.standard("frobenius_norm"), [config.run_id])
    assert found is not None and found["dtype"] == "float64" and found["details"]["dtype"] == "float64"


def test_the_plane_holds_both_minimisers_and_their_start(finished) -> None:
    """Corners beside their weights, or statistics of other weights, would draw a landscape of nothing."""
    store, first = finished
    other = toy_config(norm=Norm.BATCH, batch_size=12)
    toy_store.finish(store, other)
    subjects = [measure.load_subject(store, run_id, Machine()) for run_id in (first, other.run_id)]
    found = measure.METRICS["plane"](*subjects, points=5, examples=72)
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
