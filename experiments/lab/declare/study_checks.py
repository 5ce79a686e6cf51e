"""Whether a study declares what exists: types when it is found, names before anything is trained."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any

from experiments.lab.declare import vocabulary
from experiments.lab.declare.claims import Claim, Group, Kind
from experiments.lab.declare.config import RunConfig, typed
from experiments.lab.declare.config_checks import shown
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.study import Figure, Measure, Pair, Request, Stage, Study
from experiments.lab.declare.vocabulary import FIELDS, GATES, TESTS, VALUES, unknown

WORD = re.compile(r"[\w-][\w.-]*")
"""what can be the name of a folder"""


@dataclasses.dataclass(frozen=True)
class Wrong:
    """What is wrong with a declaration, in one sentence, and the word in its file that it is about."""

    sentence: str
    word: str | None = None


def misfit(value: Any, kind: Any, where: str) -> str | None:
    """Why `value` is not of the declared type `kind`, in one sentence, or None where it is."""
    if kind is Any or type(value) is kind in (str, int, float, bool, Kind):
        return None
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        found = (misfit(value, argument, where) for argument in arguments[::-1])  # None, where it may be, is the last
        return None if None in found else misfit(value, arguments[0], where)
    if origin is tuple:
        if not isinstance(value, tuple):
            return f"{where} is {shown(value)}, but must be a tuple; one of a single entry is written (entry,)"
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            return f"{where} has {len(value)} entries, but must have {len(arguments)}"
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return next((w for i, part in enumerate(value) if (w := misfit(part, kinds[i], f"{where}[{i}]"))), None)
    if origin is Callable:
        return None if callable(value) else f"{where} is {shown(value)}, but must be a function"
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        return f"{where} is {shown(value)}, but must be of type {kind.__name__}"
    if dataclasses.is_dataclass(kind):
        for name, of in _fields(kind):
            if wrong := misfit(getattr(value, name), of, f"{where}.{name}"):
                return wrong
    return None


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(kind))


def wrong_names(study: Study) -> Iterator[Wrong]:
    """The names in `study` that do not exist, or do twice."""
    stages, scales = [stage.name for stage in study.stages], [scale.name for scale in study.scales]
    claims = [claim.id for claim in study.claims]
    for what, names in (("scale", scales), ("stage", stages)):
        if not names:
            yield Wrong(f"the study has no {what}")
    for what, names in (("name", [study.name]), ("scale", scales), ("figure", [figure.name for figure in study.figures])):
        yield from (Wrong(f"the {what} {n!r} cannot name a folder or file", n) for n in names if not WORD.fullmatch(n))
    if study.name == "all":
        yield Wrong("a study cannot be called 'all', which stands for every study", "all")
    for what, names in (("scale", scales), ("stage", stages), ("claim", claims)):
        yield from (Wrong(f"there are {count} of the {what} {n!r}", n) for n, count in Counter(names).items() if count > 1)
    for scale in scales:
        drawn = Counter(["effects", *(figure.name for figure in study.figures_at(scale))])
        yield from (Wrong(f"there are {n} of the figure {name!r} at scale {scale}; every study has one called 'effects'", name)
                    for name, n in drawn.items() if n > 1)
    for claim in study.claims:
        yield from _at(f"claim {claim.id}", _of_claim(claim, stages, scales))
    for row in study.paper:
        yield from _at(f"the paper's {row.quantity}", _values([row.value]))
    for comparison in study.comparisons:
        at = f"the comparison with {comparison.network}"
        groups = (comparison.first, comparison.second)
        yield from _at(at, _known("scale", [comparison.scale], scales), *(_where(group.where, stages) for group in groups))
    for figure in study.figures:
        yield from _at(f"figure {figure.name}", _of_figure(figure, stages, scales, claims))


def _at(where: str, *found: Iterable[Wrong]) -> Iterator[Wrong]:
    for several in found:
        yield from (Wrong(f"{where}: {wrong.sentence}", wrong.word) for wrong in several)


def _known(what: str, names: Iterable[Any], known: Iterable[str]) -> Iterator[Wrong]:
    known = tuple(known)
    yield from (Wrong(unknown(what, name, known), str(name)) for name in names if name not in known)


def _values(names: Iterable[Any]) -> Iterator[Wrong]:
    """Values of runs, and metrics (with a detail after a dot)."""
    yield from (Wrong(unknown("value or metric", name, (*VALUES, *vocabulary.metrics())), str(name))
                for name in names if name not in VALUES and str(name).partition(".")[0] not in vocabulary.metrics())


def _where(pairs: Iterable[tuple[str, Any]], stages: Sequence[str], *, several: bool = False) -> Iterator[Wrong]:
    """Conditions on config fields or the stage; with `several` a condition may list values."""
    if wrong := misfit(pairs, WHERE, "where"):
        yield Wrong(wrong)
        return
    for name, value in pairs:
        if name not in FIELDS and name != "stage":
            yield Wrong(unknown("config field", name, (*FIELDS, "stage")), str(name))
            continue
        for one in value if several and isinstance(value, (tuple, list)) else [value]:
            if name == "stage":
                yield from _known("stage", [one], stages)
                continue
            try:
                typed(name, one)
            except ConfigError as error:
                yield Wrong(str(error), str(one))


def _of_claim(claim: Claim, stages: Sequence[str], scales: Sequence[str]) -> Iterator[Wrong]:
    contrast, power = claim.contrast, claim.power
    yield from _known("scale", claim.scales, scales)
    yield from _values([contrast.value])
    for group in contrast.groups:
        yield from _at(f"group {group.name}", _where(group.where, stages))
    if not contrast.groups:
        yield Wrong("its contrast has no group")
    if contrast.sign not in (1, -1):
        yield Wrong(f"its sign is {contrast.sign}, but must be 1 or -1")
    if not 0 < claim.margin < math.inf:
        yield Wrong(f"its margin is {claim.margin:g}, but must be positive")
    for gate in claim.gates:
        yield from _known("gate", [gate.kind], GATES)
        if gate.kind == "matched" and gate.value is not None:
            yield from _values([gate.value])
        if gate.kind == "converged":
            yield from _known("metric", [gate.value], vocabulary.metrics())
    yield from _known("test", [claim.test], TESTS)
    if power is not None and not (power.sd > 0 and power.seeds >= 2 and (power.effect or claim.kind is not Kind.DIRECTIONAL)):
        yield Wrong("its power needs an effect other than 0, a positive sd and at least 2 seeds")
    family = contrast.family
    if family is not None:
        yield from _known("statistic of a family of runs", [family.statistic], vocabulary.statistics())
        if family.statistic in vocabulary.statistics():
            options = dict(family.options)
            yield from _options(f"statistic {family.statistic}", options, vocabulary.statistics()[family.statistic])
            yield from _values(value for name, value in options.items() if name.endswith("_value"))
            yield from _known("config field", _named(options.get("axes")), FIELDS)
        yield from _known("config field", (*family.by, *family.clusters), (*FIELDS, "stage"))
    if bool(family and family.clusters) != (claim.test == "cluster-bootstrap") or (family and family.clusters and family.by):
        yield Wrong("clusters belong to the test 'cluster-bootstrap' of one family, by nothing: give both or neither")


KINDS = {"int": int, "float": float, "bool": bool, "str": str, "int | None": int | None, "float | None": float | None,
         "tuple[str, ...]": tuple[str, ...]}
"""the types of options, as they are written"""


def _options(of: str, given: Mapping[str, Any], known: vocabulary.Options) -> Iterator[Wrong]:
    for name, value in given.items():
        if name not in known.kinds:
            yield Wrong(unknown(f"option of {of}", name, known.kinds), str(name))
        elif wrong := misfit(value, KINDS.get(known.kinds[name], Any), name):
            yield Wrong(f"{of}: {wrong}", name)
    yield from (Wrong(f"{of} needs the option {name!r}") for name in known.required if name not in given)


WHERE = tuple[tuple[str, Any], ...]
NAMES = str | tuple[str | tuple[str, str], ...] | None
VALUES_OF = ("values", "measures", "metrics", "quantities", "metric", "against", "score")
"""options of figures that name values or metrics, as names or (name, label) pairs"""
FIELDS_OF = ("arm", "axes")
"""options of figures that name config fields"""


def _of_figure(figure: Figure, stages: Sequence[str], scales: Sequence[str], claims: Sequence[str]) -> Iterator[Wrong]:
    options = dict(figure.options)
    yield from _known("scale", figure.scales, scales)
    yield from _known("kind of figure", [figure.kind], vocabulary.figures())
    if figure.kind not in vocabulary.figures():
        return
    yield from _options(f"figure {figure.kind}", options, vocabulary.figures()[figure.kind])
    yield from _where(options.get("where") or (), stages, several=True)
    if wrong := misfit(options.get("arms"), tuple[tuple[str, Any], ...] | None, "arms"):
        yield Wrong(wrong)
        return
    for _, where in options.get("arms") or ():
        yield from _where(where, stages, several=True)
    for option in ("claims", *FIELDS_OF, *VALUES_OF):
        if wrong := misfit(options.get(option), NAMES, option):
            yield Wrong(wrong)
            return
    yield from _known("claim", _named(options.get("claims")), claims)
    for option in FIELDS_OF:
        yield from _known("config field", _named(options.get(option)), (*FIELDS, "stage"))
    for option in (*VALUES_OF, *(("x", "y") if figure.kind == "scatter" else ())):
        yield from _values(_named(options.get(option)))
    for kind, option in vocabulary.DRAWN:
        if kind == figure.kind and options.get(option) is not None:
            yield from _known("curve", _named(options[option]), vocabulary.drawn(kind, option))
    if figure.kind == "values_vs_batch":
        yield from _known("config field", str(options.get("x", "batch_size")).split("/"), FIELDS)


def _named(option: Any) -> list[Any]:
    """The names in an option: one, or several, alone or as (name, label) pairs."""
    several = [] if option is None else [option] if isinstance(option, str) else option
    return [one if isinstance(one, str) else one[0] for one in several]


Runs = Sequence[tuple[Stage, Sequence[RunConfig]]]
"""the stages whose runs are known, with these"""


def wrong_runs(study: Study, request: Request, runs: Runs) -> Iterator[Wrong]:
    """Measurements of these runs that cannot be made, and claims about runs or values that there are not.

    What later stages make of earlier records is their affair: a group that they fill is not looked at.
    """
    measured: list[list[Sequence[Measure]]] = []
    every: set[Measure] = set()
    for stage, configs in runs:
        measured.append([])
        alone: set[Measure] = set()
        for config in configs:
            found = stage.measures_of(request, config)
            if not isinstance(found, (tuple, list)) or not all(isinstance(one, Measure) for one in found):
                yield Wrong(f"stage {stage.name}: measures gives {shown(found)}, but must give a tuple of Measure")
                return
            measured[-1].append(found)
            try:
                alone.update(found)
            except TypeError:  # unhashable
                yield Wrong(f"stage {stage.name}: an option of {found[0].metric} can change, as a list can; write a tuple")
                return
        pairs = stage.pairs_of(request, configs)
        if not isinstance(pairs, (tuple, list)) or not all(isinstance(pair, Pair) for pair in pairs):
            yield Wrong(f"stage {stage.name}: pairs gives {shown(pairs)}, but must give a list of Pair")
            return
        for number, several in ((1, alone), (2, {pair.measure for pair in pairs})):
            for one in several:
                yield from _at(f"stage {stage.name}", _of_measure(one, number))
        every |= alone
    for metric, count in Counter(one.metric for one in every).items():
        if count > 1:
            yield Wrong(f"{metric} is measured with {count} sets of options at scale {request.scale}: which is meant?", metric)
    first = study.stages[0].name
    for claim in study.claims_at(request.scale) if runs else ():
        for group in claim.contrast.groups:
            if len(study.stages) == 1 or ("stage", first) in group.where:
                yield from _at(f"claim {claim.id}", _of_group(group, claim.contrast.value, runs[0][1], measured[0]))


def _of_measure(one: Measure, runs: int) -> Iterator[Wrong]:
    known = vocabulary.metrics()
    if wrong := misfit(one, Measure, "a measure"):
        yield Wrong(wrong)
        return
    yield from _known("metric", [one.metric], known)
    if one.metric in known:
        metric = known[one.metric]
        if metric.runs != runs:
            yield Wrong(f"the metric {one.metric!r} is of {'pairs of runs' if metric.runs == 2 else 'one run'}; declare it in "
                        f"{'pairs' if metric.runs == 2 else 'measures'}", one.metric)
        yield from _options(f"metric {one.metric}", dict(one.options), metric.options)


def _of_group(group: Group, value: str, runs: Sequence[RunConfig], measured: Sequence[Sequence[Measure]]) -> Iterator[Wrong]:
    where = [(name, wanted) for name, wanted in group.where if name != "stage"]
    held = [i for i, config in enumerate(runs) if all(getattr(config, name) == wanted for name, wanted in where)]
    metric = value.partition(".")[0]
    if not held:
        yield Wrong(f"group {group.name} holds none of the declared runs", group.name)
    elif value not in VALUES and (lacking := sum(all(one.metric != metric for one in measured[i]) for i in held)):
        lack = f"{lacking} of the {len(held)} runs of group {group.name} are"
        yield Wrong(f"{lack} not measured with {metric}", metric)
