"""What a study declares: a paper's claims, the runs that test them at each scale, the measurements and the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.lab.declare.claims import Claim, Group
from experiments.lab.declare.config import RunConfig


@dataclass(frozen=True)
class Request:
    """What the user asked of a study: a scale, and what they chose to override."""

    scale: str
    seeds: int | None = None
    """seeds per cell (default: as the study declares)"""
    dataset: str | None = None
    """another data set than the scale's own"""
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


Runs = Callable[[Request, Sequence[Record]], Sequence[RunConfig]]


@dataclass(frozen=True)
class Stage:
    """A pure function from earlier stages' records to the runs of this one.

    `runs` receives the records of all earlier stages in declared order (empty for the first): tuning grids come first,
    fresh seeds of the winners after; a warm start names its parent's `run_id`.
    """

    name: str
    runs: Runs
    at_most: Callable[[Request], int] | None = None
    """upper bound of the number of runs, for plans made before earlier stages are known (default: `runs(request, ())`)"""
    measures: Callable[[RunConfig], Sequence[Measure]] = lambda config: ()
    """measurements of each run"""
    pairs: Callable[[Request, Sequence[RunConfig]], Sequence[Pair]] = lambda request, configs: ()
    """measurements of pairs among this stage's runs"""


@dataclass(frozen=True)
class Scale:
    """A size at which a study can run, and what it takes."""

    name: str
    about: str
    """one sentence: data, net, seeds"""
    cost: str
    """measured duration with its hardware, or an estimate that says so"""


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
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...] = ()
    paper: tuple[PaperRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    conditions: tuple[str, str] = ("small batch", "large batch")
    """what the two numbers of a `PaperRow` are numbers of"""
    tried: tuple[str, ...] = ()
    """sentences for claims that are not reproduced: power, budget and tuning, so that a reader can judge whether the claim or
    the scale is at fault; one that begins with the name of a scale in backquotes is of that scale alone"""
    module: str = ""
    """where it is declared, for the list of deviations (`# Deviation:` comments)"""

    def scale(self, name: str) -> Scale:
        """Raises `KeyError` for a scale the study does not have."""
        return {scale.name: scale for scale in self.scales}[name]

    def figures_at(self, scale: str) -> tuple[Figure, ...]:
        return tuple(figure for figure in self.figures if not figure.scales or scale in figure.scales)

    def claims_at(self, scale: str) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims if claim.at(scale))
