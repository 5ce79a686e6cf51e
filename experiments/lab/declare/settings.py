"""What a study may be run with, and other settings than a scale's own: `--set FIELD=VALUE`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, ClassVar

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.config_checks import shown
from experiments.lab.declare.enums import Augment, Model, Norm
from experiments.lab.declare.errors import ConfigError, UsageError
from experiments.lab.declare.study import PILOT, Request, Study
from experiments.lab.declare.vocabulary import FIELDS, unknown


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that every study has; each adds its own. A scale is a named instance."""

    batch_sizes: tuple[int, ...]
    """ascending: the first and the last are compared, those between are drawn"""
    lr: float
    n_train: int | None = None
    """training examples (default: all)"""
    n_validation: int = 0
    seeds: int
    """per group of runs that a claim compares"""
    dataset: str = "fashion-mini"
    model: Model = Model.MLP
    width: int | None = None
    depth: int | None = None
    norm: Norm = Norm.NONE
    norm_batch: int | None = None
    augment: Augment = Augment.NONE
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: float | None = None
    steps: int | None = None
    fewest: ClassVar[int] = 2
    """batch sizes that there must be: 1 in a study which compares none"""

    def __post_init__(self) -> None:
        if len(self.batch_sizes) < self.fewest or list(self.batch_sizes) != sorted(set(self.batch_sizes)):
            least = "two" if self.fewest == 2 else "one"
            raise ConfigError(f"batch_sizes is {shown(self.batch_sizes)}, but must be at least {least}, ascending, as in 16,256")
        if not 1 <= self.seeds <= PILOT:
            raise ConfigError(f"seeds is {shown(self.seeds)}, but must be from 1 to {PILOT}: pilots have the seeds above")

    @property
    def small(self) -> int:
        return self.batch_sizes[0]

    @property
    def large(self) -> int:
        return self.batch_sizes[-1]

    def run(self, **fields: Any) -> RunConfig:
        """A run at the smallest batch size, with every setting that is a field of a run, and with `fields`."""
        own = {"batch_size": self.small, **{name: getattr(self, name) for name in FIELDS if hasattr(self, name)}}
        return RunConfig(**(own | fields))


def with_settings(study: Study, scale: str, given: Sequence[str]) -> Study:
    """`study` at one scale of another name, SCALE-<8 hex of the settings>: those of `scale` except for every FIELD=VALUE given.

    Where nothing differs it is the study as it was. Raises `UsageError` for a field or value that cannot be.
    """
    base = study.scale(scale)
    if not given:
        return study
    if not dataclasses.is_dataclass(base.settings) or isinstance(base.settings, type):
        raise UsageError(f"the settings of {study.name} cannot be set yet; leave out --set")
    read = [_change(base.settings, words) for words in given]
    if twice := [name for name, count in Counter(name for name, _ in read).items() if count > 1]:
        raise UsageError(f"--set {twice[0]} is given more than once; give it once")
    changes = {name: value for name, value in read if value != getattr(base.settings, name)}
    if not changes:
        return study
    words = ", ".join(f"{name} {words_of(value)}" for name, value in changes.items())
    try:
        settings = dataclasses.replace(base.settings, **changes)
        made = dataclasses.replace(base, name=f"{scale}-{digest(settings)}", about=f"`{scale}` with {words}", cost="not measured",
                                   settings=settings, power=None, of=scale, given=tuple(given))
        figures = () if study.figures_of else tuple(dataclasses.replace(f, scales=()) for f in study.figures_at(scale))
        compared = (dataclasses.replace(c, scale=made.name) for c in study.comparisons if c.scale == scale)
        claims = () if study.claims_of else tuple(dataclasses.replace(c, scales=(), power=None) for c in study.claims_at(scale))
        found = dataclasses.replace(study, scales=(made,), tried=(), claims=claims, figures=figures,
                                    comparisons=() if study.comparisons_of else tuple(compared))
        runs = _runs(found)
        if idle := [name for name in changes if name in FIELDS and _without(found, name, getattr(base.settings, name)) == runs]:
            raise UsageError(f"--set: no run of {study.name} at scale {scale} hangs on {' or '.join(idle)}")
        named = ((c, c.id if c.id.startswith(made.name) else f"{made.name}-{c.id}") for c in found.claims)
        return dataclasses.replace(found, claims=tuple(dataclasses.replace(claim, id=name) for claim, name in named))
    except UsageError:
        raise
    except Exception as error:  # the study's functions are made for sensible settings
        raise UsageError(f"{study.name} cannot be asked with {words}: {' '.join(str(error).split())}") from error


def _without(study: Study, name: str, value: Any) -> set[RunConfig] | None:
    """The runs where `value` is the setting `name` of the only scale, None where that cannot be."""
    (made,) = study.scales
    try:
        scale = dataclasses.replace(made, settings=dataclasses.replace(made.settings, **{name: value}))
        return _runs(dataclasses.replace(study, scales=(scale,)))
    except ValueError:
        return None


def _runs(study: Study) -> set[RunConfig]:
    """Those of the first stage, at the only scale."""
    return set(study.stages[0].runs_of(Request(study.scales[0].name), ()))


def digest(settings: Any) -> str:
    """The first 8 hex digits of the SHA-256 of the settings."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def listed(settings: Any) -> dict[str, str]:
    """Field -> its value as `--set` takes it."""
    fields = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    return {field.name: words_of(getattr(settings, field.name)) for field in fields}


def _change(settings: Any, words: str) -> tuple[str, Any]:
    """FIELD=VALUE as a field of the settings and its value."""
    name, separator, text = words.partition("=")
    kinds = typing.get_type_hints(type(settings))
    names = [field.name for field in dataclasses.fields(settings)]
    if not separator:
        raise UsageError(f"--set takes FIELD=VALUE, not {words!r}; for example lr=0.1")
    if name not in names:
        raise UsageError(f"--set: {unknown('setting', name, names)}")
    return name, _value(f"--set {name}", kinds[name], text)


def read_list(where: str, kind: Any, text: str) -> tuple[Any, ...]:
    """Values of one kind with commas between; raises `UsageError`, which begins with `where`."""
    return _value(where, tuple[kind, ...], text)


def _value(where: str, kind: Any, text: str) -> Any:
    try:
        return _read(kind, text)
    except ValueError as error:
        raise UsageError(f"{where} is {shown(text)}, but must be {_kind(kind, error)}") from None


def _read(kind: Any, text: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        return None if NoneType in arguments and text.lower() == "none" else _read(arguments[0], text)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return tuple(_read(arguments[0], part) for part in text.split(",") if part)
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _fails("true or false")
    if kind in (int, float, str) or (isinstance(kind, type) and issubclass(kind, StrEnum)):
        return kind(text)
    return _fails("as it is: it cannot be set on a command line")


def _fails(words: str) -> Any:
    raise ValueError(words)


def _kind(kind: Any, error: ValueError) -> str:
    """What a value must be, for a sentence."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        one = _kind(arguments[0], error)
        return one if one == str(error) else f"{one}, or several with commas between"
    if origin in (UnionType, typing.Union):
        return f"{_kind(arguments[0], error)} or none"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    return {int: "an integer", float: "a number"}.get(kind, str(error))


def words_of(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(words_of(one) for one in value)
    if dataclasses.is_dataclass(value):
        return str(getattr(value, "name", value))
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)
