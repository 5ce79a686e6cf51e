"""From a study to its runs: stages, plans with bounds, filters, and what keskar2017 declares."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import toy_study
import toy_task
from toy_runs import toy_config

from experiments import keskar2017
from experiments.lab.declare import contrasts
from experiments.lab.declare.config import Model, RunConfig, check_fits
from experiments.lab.declare.errors import ConfigError, UsageError
from experiments.lab.declare.finding import search
from experiments.lab.declare.study import Record, Request, Stage, measure
from experiments.lab.store.files import to_json, write_atomic
from experiments.lab.store.records import Store, measurement_id
from experiments.lab.sweep.plan import asked_for, find_study, measurements_due, plan, select

ROOT = Path(__file__).resolve().parents[2]
QUICK = Request("quick")


def record(store: Store, config: RunConfig, status: str = "done", **values: Any) -> None:
    store.folder(config.run_id).mkdir(parents=True)
    write_atomic(store.folder(config.run_id) / "summary.json", to_json({"status": status, **values}))


def test_later_stages_are_bounded_until_their_turn(tmp_path: Path) -> None:
    """A plan would guess runs that tuning has not decided yet, or promise too few."""
    store = Store(tmp_path)
    assert [(len(s.runs) if s.runs is not None else None, s.at_most) for s in plan(toy_study.STUDY, QUICK, store)] == [
        (3, 3), (None, 2), (None, 2)]
    assert plan(toy_study.STUDY, Request("quick", seeds=7), store)[1].at_most == 7
    for lr, accuracy in zip(toy_study.LRS, (50.0, 70.0, 60.0), strict=True):
        assert plan(toy_study.STUDY, QUICK, store)[1].runs is None
        record(store, toy_study.BASE.replace(lr=lr, seed=1000), validation_accuracy=accuracy)
    tuned, fresh, later = plan(toy_study.STUDY, QUICK, store)
    assert tuned.complete and not fresh.complete and later.runs is None
    assert fresh.runs is not None and {c.lr for c in fresh.runs} == {0.02} and [c.seed for c in fresh.runs] == [0, 1]
    assert fresh.missing() == fresh.runs


def test_a_stage_without_a_bound_is_asked_with_no_records(tmp_path: Path) -> None:
    """The default of `at_most`."""
    stages = (toy_study.STUDY.stages[0], Stage("same", lambda request, records: [toy_config(seed=s) for s in range(5)]))
    study = toy_study.STUDY.__class__("s", "", "", toy_study.STUDY.scales, stages, ())
    assert [s.at_most for s in plan(study, QUICK, Store(tmp_path))] == [3, 5]


def test_a_run_asked_for_twice_is_one(tmp_path: Path) -> None:
    """Two workers would get the same run, and counts would be wrong."""
    study = toy_study.STUDY.__class__(
        "s", "", "", toy_study.STUDY.scales, (Stage("s", lambda request, records: [toy_config(), toy_config()]),), ()
    )
    assert plan(study, QUICK, Store(tmp_path))[0].runs == (toy_config(),)


def test_diverged_runs_are_records_but_not_measured(tmp_path: Path) -> None:
    """A divergence would be retried for ever, dropped, or have its sharpness measured."""

    def measured(config: RunConfig) -> Sequence[Any]:
        return [measure("lambda_max", examples=5)]

    runs = [toy_config(seed=s) for s in range(3)]
    study = toy_study.STUDY.__class__("s", "", "", toy_study.STUDY.scales,
                                      (Stage("s", lambda request, records: runs, measures=measured),), ())
    store = Store(tmp_path)
    for config, status in zip(runs, ("done", "diverged", "capped"), strict=True):
        record(store, config, status)
    (stage,) = plan(study, QUICK, store)
    assert stage.complete and [r.status for r in stage.records if r] == ["done", "diverged", "capped"]
    assert [ids for _, ids in measurements_due(stage, QUICK, store)] == [(runs[0].run_id,), (runs[2].run_id,)]
    store.write_measurement(measured(runs[0])[0], [runs[0].run_id], {"value": 1.0})
    assert [ids for _, ids in measurements_due(stage, QUICK, store)] == [(runs[2].run_id,)]


def test_measurements_are_named_by_what_they_are() -> None:
    """Another subset, or the pair reversed, would pass for the same number."""
    base = measurement_id(measure("slice", points=5, examples=10), ["a", "b"])
    assert measurement_id(measure("slice", examples=10, points=5), ["a", "b"]) == base
    others = [(measure("slice", points=6, examples=10), ["a", "b"]), (measure("slice", points=5, examples=10), ["b", "a"])]
    assert base not in [measurement_id(*other) for other in others]


GRID = [toy_config(batch_size=b, seed=s, model=m) for b in (8, 500) for s in (0, 1) for m in (Model.MLP, Model.SMALL_CONV)]


@pytest.mark.parametrize(
    ("where", "count"),
    [((), 8), (("batch_size=500",), 4), (("batch_size=500", "seed=1"), 2), (("model=small-conv",), 4), (("lr=5e-2",), 8),
     (("parent=none",), 8), (("nesterov=False",), 8), (("tf32=true",), 0), (("seed=x",), 0), (("width=16",), 4)],
)
def test_select(where: tuple[str, ...], count: int) -> None:
    """--where would train other runs than asked for."""
    assert len(select(GRID, where)) == count


@pytest.mark.parametrize("where", [("colour=red",), ("batch_size",), ("seed=9", "colour=red")])
def test_select_refuses_what_is_no_field(where: tuple[str, ...]) -> None:
    """A misspelt filter would keep everything, or nothing, in silence."""
    with pytest.raises(ConfigError):
        select(GRID, where)


def test_check_fits() -> None:
    """Validation examples would be trained on."""
    assert check_fits(toy_config(n_validation=100), 1000) == 900
    for bad in (toy_config(n_train=950, n_validation=100), toy_config(n_validation=1000), toy_config(batch_size=1001)):
        with pytest.raises(ConfigError):
            check_fits(bad, 1000)


def test_unknown_names_are_refused() -> None:
    """A misspelt study would end in a KeyError."""
    with pytest.raises(UsageError, match="keskar2017"):
        find_study("keskar")
    with pytest.raises(UsageError, match="quick"):
        plan(toy_study.STUDY, Request("huge"), Store(Path("unused"), create=False))


# --- keskar2017




def runs_of(scale: str, **options: Any) -> list[RunConfig]:
    return [c for stage in keskar2017.STUDY.stages for c in stage.runs_of(Request(scale, **options), ())]


def test_studies_are_found() -> None:
    """A study file that nobody sees."""
    assert search().studies["keskar2017"] is keskar2017.STUDY


def test_keskar_quick_runs() -> None:
    """Seeds a batch size as the claims' power needs them, at a tenth of the data."""
    train = keskar2017.STUDY.stages[0]
    runs = train.runs_of(QUICK, ())
    assert len(runs) == len(set(runs))
    assert Counter(c.batch_size for c in runs) == {32: 12, 500: 12, 16: 4, 64: 4, 128: 4, 256: 4}
    assert {(c.dataset, c.n_train, c.train_loss, c.optimizer) for c in runs} == {("fashion-mini", 5000, 0.01, "adam")}
    later = set(runs_of("quick")) - set(runs)
    assert later and all(c.budget == "epochs" for c in later)  # no claim's group holds them
    single = Counter(c.batch_size for c in train.runs_of(Request("quick", seeds=1), ()))
    assert single == dict.fromkeys((16, 32, 64, 128, 256, 500), 1)


@pytest.mark.parametrize("scale", [scale.name for scale in keskar2017.STUDY.scales])
def test_keskar_scales_have_their_seeds(scale: str) -> None:
    """Claims compare two batch sizes that a scale does not run, or with fewer seeds than it says."""
    runs, about = runs_of(scale), keskar2017.STUDY.scale(scale).about
    claims = keskar2017.STUDY.claims_at(scale)
    assert claims
    for claim in claims:
        for group in claim.contrast.groups:
            seeds = [c.seed for c in runs if group.holds(c.full_dict())]
            assert sorted(seeds) == list(range(len(seeds))) and f"{len(seeds)} seeds" in about, f"{claim.id}: {group.name}"


@pytest.mark.parametrize("scale", [scale.name for scale in keskar2017.STUDY.scales])
@pytest.mark.parametrize("dataset", [None, "fashion-mini", "cifar-bin:/somewhere"])
def test_keskar_pairs_join_runs_of_one_seed_and_rule(scale: str, dataset: str | None) -> None:
    """A slice between two runs of other seeds or data; none at all where the data set is the user's."""
    study, name = keskar2017.STUDY, scale
    if dataset is not None:
        study, name = asked_for(study, scale, [f"dataset={dataset}"], toy_task.Like(train=60_000))
    runs = [c for stage in study.stages for c in stage.runs_of(Request(name), ())]
    if dataset is not None and dataset.startswith("cifar-bin:"):
        runs = [c.replace(data_sha256="0" * 64) for c in runs]  # as `plan` identifies them
    pairs = [p for stage in study.stages for p in stage.pairs_of(Request(name), runs)]
    assert pairs or scale == "gpu"  # minutes of a GPU measure no slices
    for pair in pairs:
        assert pair.first in runs and pair.second in runs
        assert pair.first.batch_size < pair.second.batch_size
        assert pair.first.replace(batch_size=pair.second.batch_size) == pair.second


# --- imports

LIGHT = ("declare.config", "declare.study", "declare.claims", "store.records", "store.provenance",
         "store.transfer", "store.leases", "sweep.plan", "sweep.launch", "sweep.commands", "sweep.progress", "sweep.pool")


@pytest.mark.parametrize("modules", [["experiments.__main__"], [f"experiments.lab.{name}" for name in LIGHT]])
def test_imports_are_light(modules: list[str]) -> None:
    """--help and plan would take the seconds that importing torch takes."""
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'scipy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_is_made_without_torch(tmp_path: Path) -> None:
    """The same, for what a plan calls."""
    code = ("import sys; from experiments.__main__ import main;"
            f"main(['plan', 'keskar2017', '--scale', 'paper', '--store', {str(tmp_path)!r}]); assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_record_is_what_a_later_stage_sees(tmp_path: Path) -> None:
    """Missing values would read as 0."""
    store, config = Store(tmp_path), toy_config()
    record(store, config, validation_accuracy=None)
    assert store.record(config) == Record(config, "done", {"status": "done", "validation_accuracy": None})


def test_a_diverged_run_counts_in_claims_of_test_accuracy() -> None:
    """A loss of 10 would be made up for a run that has none."""
    groups = contrasts.group("small", batch_size=16), contrasts.group("large", batch_size=256)
    given = [contrasts.directional("a", "a", contrasts.difference(value, *groups), 1.0, diverged_as=own)
             for value, own in (("test_accuracy", None), ("train_loss", None), ("test_accuracy", 0.0))]
    found = contrasts.at_scale(toy_study.STUDY.scale("quick"), *given, diverged_as=10.0)
    assert [claim.diverged_as for claim in found] == [10.0, None, 0.0]
