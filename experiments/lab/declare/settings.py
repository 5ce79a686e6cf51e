"""What a study may be run with, and other settings than a scale's own: `--set FIELD=VALUE`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, ClassVar

from experiments.lab.declare.config import OWN, RunConfig
from experiments.lab.declare.config_checks import shown
from experiments.lab.declare.enums import Augment, Loss, Model, Norm, Optimizer
from experiments.lab.declare.errors import ConfigError, UsageError
from experiments.lab.declare.own_claims import figure_in_loss, in_loss, own_claim
from experiments.lab.declare.own_code import is_own
from experiments.lab.declare.own_settings import NAME, Facts, Known, fitted, matched, own_parts, start_of
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
    model: Model | str = Model.MLP
    model_options: str | None = None
    width: int | None = None
    depth: int | None = None
    norm: Norm = Norm.NONE
    norm_batch: int | None = None
    augment: Augment = Augment.NONE
    loss: Loss | str = Loss.CROSS_ENTROPY
    optimizer: Optimizer | str = Optimizer.SGD
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: float | None = None
    steps: int | None = None
    fewest: ClassVar[int] = 2
    """batch sizes that there must be: 1 in a study which compares none"""
    sizes: ClassVar[tuple[str, ...]] = ("batch_sizes",)
    """settings that are batch sizes: they shrink together where the data are smaller than the scale"""

    def __post_init__(self) -> None:
        if len(self.batch_sizes) < self.fewest or list(self.batch_sizes) != sorted(set(self.batch_sizes)):
            least = "two" if self.fewest == 2 else "one"
            raise ConfigError(f"batch_sizes is {shown(self.batch_sizes)}, but must be at least {least}, ascending, as in 16,256")
        if not 1 <= self.seeds <= PILOT:
            raise ConfigError(f"seeds is {shown(self.seeds)}, but must be from 1 to {PILOT}: pilots have the seeds above")
        for name, value in vars(self).items():
            if type(value) is int and value < int(name == "examples"):
                raise ConfigError(f"{name} is {shown(value)}, but must be at least {int(name == 'examples')}")

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


def with_settings(study: Study, scale: str, given: Sequence[str], known: Known | None = None) -> Study:
    """`study` at one scale of another name, SCALE-<8 hex of the settings>: those of `scale` except for every FIELD=VALUE given.

    On a task of the user's own the settings fit it, as `known` tells what it is like (`own_settings`), and the claims are asked
    of it (`own_claims`). Where nothing differs it is the study as it was. Raises `UsageError` for a field or value that cannot
    be.
    """
    base = study.scale(scale)
    if not given:
        return study
    if not dataclasses.is_dataclass(base.settings) or isinstance(base.settings, type):
        raise UsageError(f"the settings of {study.name} cannot be set yet; leave out --set and the flags of the task")
    read = [_change(base.settings, words) for words in given]
    if twice := [name for name, count in Counter(name for name, _ in read).items() if count > 1]:
        raise UsageError(f"--set {twice[0]} is given more than once; give it once, or by its own flag")
    changes = {name: value for name, value in read if value != getattr(base.settings, name)}
    if not changes:
        return study
    words = ", ".join(f"{name} {words_of(value)}" for name, value in changes.items())
    declared: Any = base.settings
    own = own_parts(_Asked(declared, changes)) if isinstance(declared, Settings) else ()
    facts = _facts(changes.get("dataset", declared.dataset), known) if own else None
    try:
        task = _Task() if facts is None or known is None else _Task.of(declared, dict(read), own, facts, known)
        settings = dataclasses.replace(base.settings, **changes | task.changes)
        made = dataclasses.replace(base, name=f"{scale}-{digest(settings)}", about=f"`{scale}` with {words}", cost="not measured",
                                   settings=settings, power=None, of=scale, given=tuple(given), own=task.own,
                                   analogue=base.analogue and not task.own, fitted=tuple(task.changes))
        figures = () if study.figures_of else tuple(dataclasses.replace(f, scales=()) for f in study.figures_at(scale))
        compared = (dataclasses.replace(c, scale=made.name) for c in study.comparisons if c.scale == scale)
        claims = () if study.claims_of else tuple(dataclasses.replace(c, scales=(), power=None) for c in study.claims_at(scale))
        found = dataclasses.replace(study, scales=(made,), tried=(), claims=claims, figures=figures,
                                    comparisons=() if study.comparisons_of else tuple(compared))
        runs = _runs(found)
        if idle := [name for name in changes if name in FIELDS and _without(found, name, getattr(base.settings, name)) == runs]:
            raise UsageError(f"--set: no run of {study.name} at scale {scale} hangs on {' or '.join(idle)}")
        named = ((c, c.id if c.id.startswith(made.name) else f"{made.name}-{c.id}") for c in found.claims)
        found = dataclasses.replace(found, claims=tuple(dataclasses.replace(claim, id=name) for claim, name in named))
        return task.asked(found) if task.own else found
    except UsageError:
        raise
    except Exception as error:  # the study's functions are made for sensible settings
        raise UsageError(f"{study.name} cannot be asked with {words}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class _Task:
    """A task of the user's own: what it changes in the settings, and what its claims need to know."""

    own: tuple[str, ...] = ()
    """the parts that are the user's"""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: Facts | None = None
    initial: float | None = None
    """training loss before the first update, where accuracy has no meaning"""

    @classmethod
    def of(cls, base: Settings, given: dict[str, Any], own: tuple[str, ...], facts: Facts, known: Known) -> _Task:
        changes = fitted(base, given, facts)
        settings = dataclasses.replace(base, **given | changes)
        changes |= matched(base, settings, given, known) if own != ("optimizer",) else {}
        return cls(own, changes, facts, None if facts.accurate else known.initial_loss(start_of(settings)))

    def asked(self, study: Study) -> Study:
        """`study` with its claims and figures for this task, and without what is the paper's."""
        assert self.facts is not None
        chance = None if "dataset" not in self.own else 100 / self.facts.outputs
        claims, figures = [own_claim(claim, chance) for claim in study.claims], study.figures
        if self.initial is not None:
            claims = [claim for claim in (in_loss(claim, self.initial) for claim in claims) if claim is not None]
            figures = tuple(map(figure_in_loss, figures))
        words = f"This is an {NAME}: {', '.join(self.own)} are yours, and no number of the paper's stands beside it."
        return dataclasses.replace(study, claims=tuple(claims), figures=figures, comparisons=(), comparisons_of=None, paper=(),
                                   deviations=(words,))


def _facts(dataset: str, known: Known | None) -> Facts:
    """What the data are like: a failure to read them is theirs, not the settings'."""
    if known is None:
        raise UsageError("a task of your own must be looked at first")
    if not dataset:
        raise UsageError("the scale is of several data sets; name one with --data")
    return known.facts(dataset)


class _Asked:
    """Settings as they are asked for, before they are made: they may not fit yet."""

    def __init__(self, base: Settings, given: dict[str, Any]) -> None:
        self.__dict__.update({field.name: getattr(base, field.name) for field in dataclasses.fields(base)} | given)


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


LATER = ("model_options", "loss", "optimizer")
"""settings added since results were named by their digest: at their default they do not count"""


def digest(settings: Any) -> str:
    """The first 8 hex digits of the SHA-256 of the settings."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings) if field.name in LATER}
    values = {name: value for name, value in dataclasses.asdict(settings).items()
              if name not in defaults or value != defaults[name]}
    text = json.dumps(values, sort_keys=True)
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
    return name, text if name in OWN and is_own(text) else _value(f"--set {name}", kinds[name], text, name)


def read_list(where: str, kind: Any, text: str) -> tuple[Any, ...]:
    """Values of one kind with commas between; raises `UsageError`, which begins with `where`."""
    return _value(where, tuple[kind, ...], text)


def _value(where: str, kind: Any, text: str, name: str = "") -> Any:
    read, must_be = _reader(kind)
    try:
        return read(text)
    except (ValueError, KeyError):
        own = f" or {OWN[name]} of your own" if name in OWN else ""
        raise UsageError(f"{where} is {shown(text)}, but must be {must_be}{own}") from None


FIXED = "as it is: it cannot be set on a command line"


def _reader(kind: Any) -> tuple[Callable[[str], Any], str]:
    """What reads a value of type `kind`, raising ValueError or KeyError, and what such a value must be, for a sentence."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        one, words = _reader(arguments[0])
        said = words if words == FIXED else f"{words}, or several with commas between"
        return lambda text: tuple(one(part) for part in text.split(",") if part), said
    if origin in (UnionType, typing.Union):
        (one, words), optional = _reader(arguments[0]), NoneType in arguments
        return lambda text: None if optional and text.lower() == "none" else one(text), words + (" or none" if optional else "")
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind, f"one of {', '.join(kind)}"
    if kind is bool:
        return lambda text: {"true": True, "false": False}[text.lower()], "true or false"
    if kind in (int, float, str):
        return kind, {int: "an integer", float: "a number", str: "a word"}[kind]
    return {}.__getitem__, FIXED


def words_of(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(words_of(one) for one in value)
    if dataclasses.is_dataclass(value):
        return str(getattr(value, "name", value))
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)
