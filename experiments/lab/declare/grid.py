"""Every combination of the values that a sweep is asked for: lists of fields as runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from experiments.lab.declare.config import OWN, RunConfig
from experiments.lab.declare.enums import Budget
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.settings import read_list

SINGLE = ("dataset", "data_sha256", "model_options", "model_sha256", "loss_sha256", "optimizer_sha256", "allow_random", "seed",
          "parent")
"""fields that have one value in all of a sweep; every other one may be a list"""
LENGTHS = {"epochs": Budget.EPOCHS, "steps": Budget.STEPS, "train_loss": Budget.TRAIN_LOSS, "patience": Budget.PLATEAU}
"""what a sweep is told of its budget -> the budget, where that is not named"""
MOST = 10_000
"""cells of a sweep"""


def read_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a command line gives, as values: the texts of fields that may be lists are read. Raises `UsageError`."""
    kinds, found = get_type_hints(RunConfig), dict[str, Any]()
    for name, value in given.items():
        if name == "model_option":
            found["model_options"] = " ".join(sorted(value)) or None
        elif name in SINGLE:
            found[name] = value
        elif value is not None:
            found[name] = read_list(f"--{name.replace('_', '-')}", str if name in OWN else kinds[name], value)
    return found


def grid(fields: Mapping[str, Any]) -> list[RunConfig]:
    """A run of every combination, the last field fastest. The budget is that of the length given, where none is named.

    Raises `ConfigError` for a combination that cannot be run.
    """
    lists = {name: _listed(name, value) for name, value in fields.items()}
    if "budget" not in lists:
        given = [budget for name, budget in LENGTHS.items() if lists.get(name, [None]) != [None]]
        if len(given) != 1:
            raise ConfigError("a sweep needs one length of its runs: epochs, steps, or with max_epochs train_loss or patience")
        lists["budget"] = given
    if missing := [name for name in ("batch_size", "lr") if name not in lists]:
        raise ConfigError(f"a sweep needs {missing[0]}: one value or several")
    count = 1
    for values in lists.values():
        count *= len(values)
    if count > MOST:
        raise ConfigError(f"a sweep of {count:,} cells is too large; take at most {MOST:,}")
    return [RunConfig(**dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())]


def _listed(name: str, value: Any) -> list[Any]:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    values = list(value) if several else [value]
    if name in SINGLE and several:
        raise ConfigError(f"{name} takes one value in a sweep, not a list")
    if not values or len(set(map(str, values))) < len(values):
        raise ConfigError(f"{name} is {value!r}, but a list needs values, each once")
    return values
