"""A run's name depends on its science alone, and a configuration that cannot run is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.lab.datasets import identity
from experiments.lab.declare.config import (
    Augment,
    Budget,
    Machine,
    Model,
    Norm,
    Optimizer,
    Precision,
    RunConfig,
    Scaling,
    Schedule,
)
from experiments.lab.declare.errors import ConfigError

PLAIN: dict[str, Any] = {"batch_size": 32, "lr": 0.1, "budget": Budget.EPOCHS, "epochs": 10}
MATCHED: dict[str, Any] = {"batch_size": 500, "lr": 1e-3, "optimizer": Optimizer.ADAM, "budget": Budget.TRAIN_LOSS,
                           "train_loss": 0.01, "max_epochs": 400, "n_train": 5000, "width": 128, "depth": 2,
                           "seed": 3}
FULL: dict[str, Any] = {
    "dataset": "cifar10", "augment": Augment.CROP_FLIP, "model": Model.KESKAR_C1, "norm": Norm.GHOST, "norm_batch": 128,
    "batch_size": 4096, "lr": 0.1, "scaling": Scaling.SQRT, "base_batch_size": 128, "momentum": 0.9, "nesterov": True,
    "weight_decay": 5e-4, "schedule": Schedule.COSINE, "warmup": 0.05, "budget": Budget.STEPS, "steps": 1000,
    "precision": Precision.BFLOAT16, "tf32": True, "parent": "0" * 20,
}


def plain(**changes: Any) -> RunConfig:
    return RunConfig(**{**PLAIN, **changes})


@pytest.mark.parametrize(("fields", "run_id"),
                         [(PLAIN, "75cc78202d1bfc69fe64"), (MATCHED, "5da61f0f34d8f55922f6"), (FULL, "72d44c3cdcf5e987bae0")])
def test_golden_ids(fields: dict[str, Any], run_id: str) -> None:
    """Stored runs would be orphaned: nothing may change the id of an existing configuration."""
    assert RunConfig(**fields).run_id == run_id


def test_every_default_is_frozen() -> None:
    """A changed default would give old ids to another science."""
    defaults = {f.name: f.default for f in dataclasses.fields(RunConfig) if f.default is not dataclasses.MISSING}
    off = {name: value for name, value in defaults.items() if value not in (None, False, 0)}
    assert off == {
        "dataset": "fashion-mini", "augment": "none", "model": "mlp", "norm": "none", "dropout": True, "optimizer": "sgd",
        "scaling": "none", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "schedule": "constant", "precision": "float32",
        "batch_growth": 1, "trust": 0.001, "train_draw": "first", "loss": "cross_entropy", "imbalance": 1.0,
    }


def test_default_fields_do_not_enter_the_id() -> None:
    """A field added later, standing at its default, would change every id."""
    config = plain()
    assert set(config.to_dict()) == {"batch_size", "lr", "budget", "epochs"}
    assert RunConfig(**config.full_dict()).run_id == config.run_id


def test_numbers_of_either_type_are_one_run() -> None:
    """10 epochs in a study and 10.0 from the command line would be two runs."""
    assert plain(epochs=10.0).run_id == plain().run_id


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 0.1000001}, {"tf32": True}, {"parent": "0" * 20}])
def test_science_enters_the_id(change: dict[str, Any]) -> None:
    """Two different runs would share one folder."""
    assert plain(**change).run_id != plain().run_id


def test_canonical_json_round_trips() -> None:
    """config.json could not be read back as the run it names."""
    config = RunConfig(**FULL)
    fields = json.loads(config.canonical())
    assert fields.pop("science_version") == 1
    assert RunConfig.from_dict(fields) == config


def _folder(path: Path, first_pixel: int = 0) -> Path:
    path.mkdir()
    record = bytes([0, first_pixel]) + bytes(3071)
    (path / "data_batch_1.bin").write_bytes(record * 4)
    (path / "test_batch.bin").write_bytes(record * 2)
    return path


def test_folders_count_by_content(tmp_path: Path) -> None:
    """A moved data folder would retrain everything, an edited one would pass for the old data."""
    ids = []
    for path in (_folder(tmp_path / "here"), _folder(tmp_path / "there"), _folder(tmp_path / "edited", 1)):
        name = f"cifar-bin:{path}"
        ids.append(plain(dataset=name, data_sha256=identity(name)).run_id)
    assert ids[0] == ids[1] != ids[2]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 64, "n_train": 63}, "exceeds the 63"),
    ({"batch_size": 2.5}, "of type int"),
    ({"batch_size": True}, "of type int"),
    ({"batch_size": "32"}, "of type int"),
    ({"lr": math.nan}, "lr is nan"),
    ({"lr": math.inf}, "lr is inf"),
    ({"lr": -1.0}, "lr is -1"),
    ({"eps": 0.0}, "eps is 0"),
    ({"momentum": 1.0}, "momentum is 1"),
    ({"beta1": math.nan}, "beta1 is nan"),
    ({"warmup": -0.1}, "warmup is -0.1"),
    ({"weight_decay": -1.0}, "weight_decay is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**64}, "seed is"),
    ({"n_validation": -1}, "n_validation is -1"),
    ({"epochs": None}, "needs epochs"),
    ({"steps": 5}, "takes no steps"),
    ({"budget": Budget.TRAIN_LOSS, "epochs": None, "train_loss": 0.1}, "needs max_epochs"),
    ({"budget": Budget.PLATEAU, "epochs": None, "patience": 1, "max_epochs": 9, "warmup": 0.1}, "no known length"),
    ({"budget": "forever"}, "must be one of epochs, steps"),
    ({"norm": Norm.GHOST}, "norm_batch belongs to"),
    ({"norm_batch": 8}, "norm_batch belongs to"),
    ({"norm": Norm.GHOST, "norm_batch": 5}, "does not divide"),
    ({"gradient_penalty": 1.0, "penalty_batch": 5}, "does not divide"),
    ({"penalty_batch": 8}, "penalty_batch needs"),
    ({"trust": 0.02}, "trust is for optimizer lars"),
    ({"scaling": Scaling.LINEAR}, "base_batch_size belongs to"),
    ({"base_batch_size": 8}, "base_batch_size belongs to"),
    ({"model": Model.SMALL_CONV, "width": 8}, "are for model mlp"),
    ({"model": Model.VIT, "norm": Norm.GROUP}, "layer norms of its own"),
    ({"nesterov": True}, "needs a momentum"),
    ({"optimizer": Optimizer.ADAM, "momentum": 0.9}, "for optimizer sgd"),
    ({"final_lr": 0.1}, "for schedules linear and cosine"),
    ({"data_sha256": "0" * 64}, "for data of your own"),
    ({"colour": "red"}, "no field 'colour'"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_values_are_refused_in_one_sentence(change: dict[str, Any], words: str) -> None:
    """A run that means nothing would be trained, or a traceback shown."""
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(PLAIN | change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_fields_are_refused() -> None:
    """A damaged config.json would end in a TypeError."""
    with pytest.raises(ConfigError, match="incomplete"):
        RunConfig.from_dict({"lr": 0.1})


@pytest.mark.parametrize(
    ("fields", "machine", "words"),
    [
        ({"norm": Norm.BATCH}, Machine(micro_batch=16), "cannot split"),
        ({"norm": Norm.GHOST, "norm_batch": 8}, Machine(micro_batch=12), "not a multiple"),
        ({}, Machine(micro_batch=0), "must be positive"),
        ({}, Machine(threads=0), "must be positive"),
    ],
)
def test_machines_that_change_the_science_are_refused(fields: dict[str, Any], machine: Machine, words: str) -> None:
    """A micro-batch would become a normalisation batch unnoticed."""
    with pytest.raises(ConfigError, match=words):
        machine.check(plain(**fields))


def test_machines_that_do_not_are_taken() -> None:
    """The refusals above would be of everything."""
    Machine(micro_batch=16).check(plain(norm=Norm.GHOST, norm_batch=8))
    Machine(micro_batch=32).check(plain(norm=Norm.BATCH))
    Machine(micro_batch=5).check(plain(norm=Norm.GROUP))


def test_scaling_rules() -> None:
    """Peak LRs of a scaled sweep would be off by a factor."""
    peaks = [plain(batch_size=512, scaling=rule, base_batch_size=base).peak_lr
             for rule, base in ((Scaling.NONE, None), (Scaling.SQRT, 128), (Scaling.LINEAR, 128))]
    assert peaks == pytest.approx([0.1, 0.2, 0.4], rel=1e-15)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    positive = st.floats(1e-12, 1e6)
    fields: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"budget": "epochs", "epochs": draw(positive)},
                {"budget": "steps", "steps": draw(st.integers(1, 10**9))},
                {"budget": "train_loss", "train_loss": draw(positive), "max_epochs": draw(positive)},
                {"budget": "plateau", "patience": draw(positive), "max_epochs": draw(positive)},
            ]
        )
    )
    norm_batch, groups = draw(st.integers(2, 512)), draw(st.integers(1, 64))
    fields["batch_size"] = norm_batch * groups
    if draw(st.booleans()):
        fields |= {"norm": "ghost", "norm_batch": norm_batch}
    if draw(st.booleans()):
        fields |= {"scaling": draw(st.sampled_from(["sqrt", "linear"])), "base_batch_size": draw(st.integers(1, 4096))}
    return RunConfig(
        **fields, lr=draw(positive), seed=draw(st.integers(0, 2**63 - 1)), beta1=draw(st.floats(0, 0.999)),
        optimizer=draw(st.sampled_from(list(Optimizer))), weight_decay=draw(st.floats(0, 1)), dropout=draw(st.booleans()),
        precision=draw(st.sampled_from(list(Precision))), augment=draw(st.sampled_from(list(Augment))),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(config=configs())
def test_any_config_round_trips_through_json(config: RunConfig) -> None:
    """A stored run would come back as another one."""
    back = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert back.run_id == config.run_id


@pytest.mark.parametrize("fields", [{"norm": Norm.BATCH, "batch_size": 1}, {"norm": Norm.GHOST, "norm_batch": 1}])
def test_normalising_over_one_example_is_refused(fields: dict[str, Any]) -> None:
    """All outputs would be the layer's bias."""
    with pytest.raises(ConfigError, match="one example"):
        RunConfig(**(PLAIN | fields))
