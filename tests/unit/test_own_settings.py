"""A study's settings and claims on a user's own task: what fits, what is refused, what is asked in loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import toy_task

from experiments import dose, goyal2017, jiang2020, keskar2017, masters2018, smith2020, yao2018
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.settings import with_settings
from experiments.lab.declare.study import Request, Study

TASK = ("model=mine:net", "dataset=mine:data")


def on(study: Study, *given: str, **like: Any) -> Study:
    return with_settings(study, "quick", (*TASK, *given), toy_task.Like(**like))


def settings(study: Study) -> Any:
    return study.scales[0].settings


def test_sizes_shrink_by_one_rule() -> None:
    """Batches larger than the data, none left for validation, or batch sizes out of their order."""
    small = settings(on(keskar2017.STUDY))
    assert (small.n_train, small.batch_sizes, small.smaller, small.examples) == (240, (3, 5, 9, 14, 24), (2,), 240)
    tuned = settings(on(smith2020.STUDY))
    assert (tuned.n_train, tuned.n_validation, tuned.batch_sizes[-1]) == (192, 48, 19)
    assert set(tuned.matched) < set(tuned.batch_sizes) and tuned.robust_size in tuned.batch_sizes
    apart = settings(on(smith2020.STUDY, validation=100))
    assert (apart.n_train, apart.n_validation, apart.batch_sizes[-1]) == (240, 100, 24)


@pytest.mark.parametrize("study", [keskar2017.STUDY, smith2020.STUDY, dose.STUDY], ids=lambda study: study.name)
def test_large_data_change_no_size(study: Study) -> None:
    """Studies that are smaller than they were declared, unasked."""
    base, found = study.scale("quick").settings, settings(on(study, train=60_000))
    names = [*found.sizes, "n_train", "n_validation", "examples"]
    assert all(getattr(found, name, 0) == getattr(base, name, 0) for name in names)


@pytest.mark.parametrize(("given", "words"), [
    ("n_train=300", "n_train 300 and n_validation 0 exceed the 240 training examples of mine:data"),
    ("n_validation=240", "n_validation 240 leaves none of the 240 training examples"),
    ("batch_sizes=8,500", "batch_sizes ends at 500, but there are 240 training examples"),
    ("width=64", "width and depth are for model mlp"),
    ("norm=batch", "norm and dropout are for built-in models"),
    ("model_options=width", "takes NAME=VALUE"),
    ("optimizer=mine", "one of sgd, adam, adamw, lars, lamb or MODULE:FUNCTION of your own"),
])
def test_given_values_that_do_not_fit_are_refused(given: str, words: str) -> None:
    """Another number than the user's, in silence."""
    with pytest.raises(UsageError) as refused:
        on(keskar2017.STUDY, given)
    assert words in str(refused.value)


def test_given_values_stay() -> None:
    """The user's own number, replaced by one that fits better."""
    found = settings(on(keskar2017.STUDY, "n_train=100", "batch_sizes=8,32", "target=0.5", "examples=7"))
    assert (found.n_train, found.batch_sizes, found.target, found.examples) == (100, (8, 32), 0.5, 7)


def test_a_matched_loss_is_a_share_of_the_initial_one() -> None:
    """0.01 nats of a loss that is no cross-entropy."""
    assert settings(on(keskar2017.STUDY, loss=2.0)).target == 0.0087
    assert settings(on(yao2018.STUDY, loss=200.0)).target == 8.7
    with pytest.raises(UsageError, match="initial loss is -1"):
        on(yao2018.STUDY, loss=-1.0)


def test_ghost_batches_have_an_initial_loss() -> None:
    """A run of fewer examples than share their statistics cannot be."""
    found = with_settings(goyal2017.STUDY, "laptop", ("dataset=mine:data",), toy_task.Like(train=60_000, kind="numbers"))
    assert found.scales[0].settings.norm_batch == 32


def test_an_own_network_has_no_settings_of_built_in_ones() -> None:
    """A width that no network has, as part of every run."""
    found = settings(on(jiang2020.STUDY))
    assert (found.width, found.widths, found.depths) == (None, (), ()) and set(found.axes) == {"batch_size", "lr"}
    runs = on(keskar2017.STUDY, "optimizer=mine:rule", "model_options=k=2 width=3").stages[0].runs_of
    made = runs(Request(on(keskar2017.STUDY, "optimizer=mine:rule", "model_options=k=2 width=3").scales[0].name), ())
    assert {(c.model, c.optimizer, c.model_options, c.dataset) for c in made} == {
        ("mine:net", "mine:rule", "k=2 width=3", "mine:data")}


def test_no_number_of_the_paper_stands_beside_it() -> None:
    """The paper's effect on its own networks, held against somebody else's."""
    for study in (keskar2017.STUDY, smith2020.STUDY):
        found = on(study)
        assert found.paper == found.comparisons == () and found.claims
        assert all(c.paper_value is None and c.paper_source == "none: a task of your own" for c in found.claims)
        assert found.scales[0].own == ("model", "dataset") and "yours" in found.deviations[0]


def test_an_optimizer_that_the_study_fixes_is_refused() -> None:
    """Runs in which nothing differs, under another name."""
    from experiments import malladi2022

    with pytest.raises(UsageError, match="no run of malladi2022 at scale quick hangs on optimizer"):
        with_settings(malladi2022.STUDY, "quick", ("optimizer=mine:rule",), toy_task.Like())


def test_claims_in_accuracy_are_asked_in_loss() -> None:
    """A claim that has no values, or has its sign the wrong way round."""
    own, lost = (on(dose.STUDY, "loss=mse", kind=kind, loss=3.0) for kind in ("classes", "numbers"))
    for before, after in zip(own.claims, lost.claims, strict=True):
        if "accuracy" not in before.contrast.value:
            assert dataclasses.replace(after, id=before.id) == before
            continue
        assert after.contrast.value == "test_loss" and after.contrast.unit == "loss"
        assert after.contrast.sign == -before.contrast.sign and after.margin == pytest.approx(0.03 * before.margin)
        assert "asked in loss" in after.sentence and (before.diverged_as, after.diverged_as) == (25.0, 3.0)
    assert not any("accuracy" in repr(figure.options) for figure in lost.figures)


def test_the_other_accuracies_are_asked_in_loss_too() -> None:
    """A gap turned round, or the best learning rate taken for the worst."""
    gaps = on(jiang2020.STUDY, kind="numbers", loss=3.0).claims
    assert {dict(c.contrast.family.options)["against_value"] for c in gaps if c.contrast.family} == {"gap_loss"}
    assert [c.contrast.sign for c in gaps] == [c.contrast.sign for c in on(jiang2020.STUDY).claims]
    ranges = [c for c in on(masters2018.STUDY, kind="numbers", loss=3.0).claims if c.contrast.family]
    options = [dict(c.contrast.family.options) for c in ranges if c.contrast.family]
    assert options and all(o == {"larger_is_better": False, "tolerance": pytest.approx(0.06)} for o in options)
    assert all((c.contrast.value, c.contrast.sign, c.contrast.unit, c.margin) == ("test_loss", 1, "octaves", 0.5) for c in ranges)
