"""What a study declares: a paper's claims, the runs that test them at each scale, the measurements and the figures."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.lab.declare.claims import Claim, Group, Power
from experiments.lab.declare.config import RunConfig


@dataclass(frozen=True)
class Request:
    """What the user asked of a study: a scale, and what they chose to override."""

    scale: str
    seeds: int | None = None
    """seeds per cell (default: as the study declares)"""
    pilot: bool = False
    """seeds from PILOT up, which no verdict ever uses: to size a study before its claims are fixed"""

    def seed_range(self, declared: int) -> range:
        """The seeds of a cell for which the study declares so many."""
        first = PILOT if self.pilot else 0
        return range(first, first + (self.seeds or declared))


PILOT = 1000
"""first pilot seed"""


@dataclass(frozen=True)
class Measure:
    """One measurement to make: a metric of `experiments.lab.measures.registry` and its options, as sorted (name, value) pairs."""

    metric: str
    options: tuple[tuple[str, Any], ...] = ()


def measure(metric: str, **options: Any) -> Measure:
    return Measure(metric, tuple(sorted(options.items())))


@dataclass(frozen=True)
class Pair:
    """A measurement of two finished runs, such as the path between their minima."""

    first: RunConfig
    second: RunConfig
    measure: Measure


@dataclass(frozen=True, slots=True)
class Record:
    """A finished run as later stages see it: its config, status and summary values (missing is None, never 0)."""

    config: RunConfig
    status: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """A size at which a study can run, and what it takes."""

    name: str
    about: str
    """one sentence: data, net, seeds"""
    cost: str
    """measured duration with its hardware, or an estimate that says so"""
    settings: Any = None
    """a frozen dataclass, best one of `Settings`: what the stages, claims and figures are made of"""
    power: Power | None = None
    """of the primary claim: what this scale's number of seeds was chosen for"""
    analogue: bool = False
    """whether network and data are none of the paper's: its claims then say so"""
    of: str = ""
    """the scale whose settings these are, except for what the user set (default: one of the study's own)"""
    given: tuple[str, ...] = ()
    """what the user set, as FIELD=VALUE"""
    own: tuple[str, ...] = ()
    """parts of the task that are the user's own"""
    fitted: tuple[str, ...] = ()
    """settings that were changed to fit it"""

    @property
    def asked(self) -> str:
        """What asks for it on a command line, after --scale."""
        return shlex.join([self.of or self.name, *(word for given in self.given for word in ("--set", given))])


@dataclass(frozen=True)
class Stage:
    """A pure function from earlier stages' records to the runs of this one. A warm start names its parent's `run_id`.

    Each function takes what its parameters name: `settings` (of the scale asked for), `seeds` (as many as they say, or as the
    user asked for), `scale`, `request`; and where it says so `records` (of all earlier stages in declared order: tuning grids
    come first, fresh seeds of the winners after), `config` or `runs`.
    """

    name: str
    runs: Callable[..., Sequence[RunConfig]]
    """of request, scale, settings, seeds, records"""
    at_most: Callable[..., int] | None = None
    """upper bound of the number of runs, for plans made before earlier stages are known (default: `runs` without records)"""
    measures: Callable[..., Sequence[Measure]] = lambda: ()
    """measurements of each run: of request, scale, settings, seeds, config"""
    pairs: Callable[..., Sequence[Pair]] = lambda: ()
    """measurements of pairs among this stage's runs: of request, scale, settings, seeds, runs"""
    scales: tuple[Scale, ...] = ()
    """the study's, filled in by it"""

    def runs_of(self, request: Request, records: Sequence[Record]) -> Sequence[RunConfig]:
        return called(self.runs, records=records, **asked(request, self.scales))

    def bound(self, request: Request) -> int:
        return int(called(self.at_most, **asked(request, self.scales)) if self.at_most else len(self.runs_of(request, ())))

    def measures_of(self, request: Request, config: RunConfig) -> Sequence[Measure]:
        return called(self.measures, config=config, **asked(request, self.scales))

    def pairs_of(self, request: Request, runs: Sequence[RunConfig]) -> Sequence[Pair]:
        return called(self.pairs, runs=runs, **asked(request, self.scales))


def asked(request: Request, scales: tuple[Scale, ...]) -> dict[str, Any]:
    """What the functions of a stage may take of what the user asked for: `seeds` and `settings` where the scale has some."""
    found: dict[str, Any] = {"request": request}
    scale = next((scale for scale in scales if scale.name == request.scale), None)
    if scale is None or scale.settings is None:
        return found
    return found | {"scale": scale, "settings": scale.settings, "seeds": request.seed_range(scale.settings.seeds)}


@functools.lru_cache(maxsize=1024)
def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters without a default: what the function must be given, by name."""
    return tuple(p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty)


def called(function: Callable[..., Any], **given: Any) -> Any:
    """`function` of those of `given` that its parameters name."""
    names = parameters(function)
    if lacking := [name for name in names if name not in given]:
        raise TypeError(f"{getattr(function, '__name__', 'a function')} takes {lacking[0]!r}; there are {', '.join(given)}")
    return function(**{name: given[name] for name in names})


@dataclass(frozen=True)
class PaperRow:
    """One line of a published table, for the table ours-vs-paper."""

    table: str
    network: str
    quantity: str
    value: str
    """the same quantity of ours: a column of the runs table, a metric, or metric.detail"""
    first: float
    """under the first of the study's two conditions"""
    second: float
    first_sd: float | None = None
    second_sd: float | None = None
    source: str = "read"


@dataclass(frozen=True)
class Comparison:
    """Which of our runs stand beside the paper's rows of `network` at `scale`."""

    scale: str
    network: str
    label: str
    """what ours is, in a reader's words"""
    first: Group
    second: Group


@dataclass(frozen=True)
class Figure:
    """A figure of the study: a module of `analysis.figures` and the values it needs, as (name, value) pairs."""

    name: str
    kind: str
    options: tuple[tuple[str, Any], ...] = ()
    scales: tuple[str, ...] = ()
    """the scales it is for (default: all of the study's)"""


@dataclass(frozen=True)
class Study:
    """One paper. See `experiments/keskar2017.py` for a whole one."""

    name: str
    title: str
    citation: str
    scales: tuple[Scale, ...]
    stages: tuple[Stage, ...]
    claims: tuple[Claim, ...] = ()
    figures: tuple[Figure, ...] = ()
    paper: tuple[PaperRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    claims_of: Callable[..., Iterable[Claim]] | None = None
    """the claims of each scale, of its `scale` and `settings`, in place of `claims`"""
    figures_of: Callable[..., Iterable[Figure]] | None = None
    """the figures of each scale, of its `scale` and `settings`, in place of `figures`"""
    comparisons_of: Callable[..., Iterable[Comparison]] | None = None
    """the comparisons of each scale, of its `scale` and `settings`, in place of `comparisons`"""
    deviations: tuple[str, ...] = ()
    """where it departs from the paper, one sentence each; one may begin with the name of the scale that it is about"""
    conditions: tuple[str, str] = ("small batch", "large batch")
    """what the two numbers of a `PaperRow` are numbers of"""
    tried: tuple[str, ...] = ()
    """sentences for claims that are not reproduced: power, budget and tuning, so that a reader can judge whether the claim or
    the scale is at fault; one that begins with the name of a scale in backquotes is of that scale alone"""
    module: str = ""
    """where it is declared"""

    def __post_init__(self) -> None:
        """Fill in what follows from the scales' settings, once."""
        if not isinstance(self.scales, tuple) or not isinstance(self.stages, tuple):
            return  # what is wrong is said where the study is found
        bound = (dataclasses.replace(s, scales=self.scales) if isinstance(s, Stage) else s for s in self.stages)
        object.__setattr__(self, "stages", tuple(bound))
        for name in ("claims", "figures", "comparisons"):
            made = getattr(self, f"{name}_of")
            if made is not None and not getattr(self, name):
                found = [(scale.name, one) for scale in self.scales for one in called(made, scale=scale, settings=scale.settings)]
                own = (dataclasses.replace(one, scales=(at,)) if isinstance(one, Figure) else one for at, one in found)
                object.__setattr__(self, name, tuple(own))

    def scale(self, name: str) -> Scale:
        """Raises `KeyError` for a scale the study does not have."""
        return {scale.name: scale for scale in self.scales}[name]

    def figures_at(self, scale: str) -> tuple[Figure, ...]:
        return tuple(figure for figure in self.figures if not figure.scales or scale in figure.scales)

    def claims_at(self, scale: str) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims if claim.at(scale))
