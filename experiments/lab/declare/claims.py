"""A falsifiable sentence with everything that decides it, fixed before the runs.

An effect is a linear contrast  sum_g w_g mean_g  of one value over groups of runs; the groups are filters on the fields
of `RunConfig`. Two groups with weights +1 and -1 are a difference, four a difference in differences, one a mean against 0.
How the interval and the verdict follow is in `analysis.stats` and `analysis.verdicts`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    DIRECTIONAL = "directional"
    """the effect lies on the paper's side of 0"""
    EQUIVALENCE = "equivalence"
    """the effect lies within +-margin"""
    NON_INFERIORITY = "non-inferiority"
    """the effect lies above -margin"""


class ValueScale(StrEnum):
    LINEAR = "linear"
    LOG = "log"
    """the contrast is taken of natural logarithms: effects are log ratios, margins too"""


@dataclass(frozen=True)
class Group:
    """The runs whose config fields equal `where`, with their weight in the contrast."""

    name: str
    weight: float
    where: tuple[tuple[str, Any], ...]

    def holds(self, fields: dict[str, Any]) -> bool:
        return all(fields.get(name) == value for name, value in self.where)


@dataclass(frozen=True)
class Family:
    """One number from several runs together: `statistic` of the runs of a group that share the fields `by`.

    The families of a group are its sample, as its runs are without one: a slope over batch sizes is one number per seed.
    """

    statistic: str
    """a function of `analysis.families`"""
    by: tuple[str, ...] = ("seed",)
    options: tuple[tuple[str, Any], ...] = ()
    """what the statistic needs besides the contrast's value, as (name, value) pairs"""
    clusters: tuple[str, ...] = ()
    """with the claim's test `cluster-bootstrap`, and `by` empty: runs of equal fields are alike and are resampled together"""


@dataclass(frozen=True)
class Contrast:
    """sum_g weight_g * mean over seeds of `value` (of its logarithm where `scale` is log) in group g.

    `value` is a column of the runs table (test_accuracy, gap_accuracy, train_loss, distance_from_start, ...) or the
    metric of a measurement (lambda_max, phi_full, ...). `sign` orients the effect: +1 when the paper claims a positive
    contrast, -1 when a negative one. `unit` is what a reader sees.
    """

    value: str
    groups: tuple[Group, ...]
    sign: int
    unit: str
    scale: ValueScale = ValueScale.LINEAR
    family: Family | None = None
    """none: every run is a value of its own"""


@dataclass(frozen=True)
class Gate:
    """A condition without which a comparison says nothing: its failure makes the verdict inconclusive.

    kind: `min_seeds` (runs with a value in every group), `matched` (the groups' geometric means of `value` agree
    within the factor 1 + limit), `status` (at most the fraction
    `limit` of runs is neither done nor diverged), `converged` (at most the fraction `limit` of the measurements of
    `value` is not converged), `edge_lr` (the tuned LR of no group stands on the edge of its grid).
    """

    kind: str
    limit: float
    value: str | None = None


@dataclass(frozen=True)
class Power:
    """What the number of seeds was chosen for: a two-sided test at 5% sees `effect` with probability at least 80%."""

    effect: float
    """the stated effect, in effect units"""
    sd: float
    """larger of the groups' standard deviations over pilot seeds"""
    pilot: str
    """which pilots: seeds from 1000 up, never used for a verdict"""
    seeds: int
    """runs per group"""


@dataclass(frozen=True)
class Claim:
    """One sentence, its contrast and its test. `hash` changes with any of it, so a verdict names what it answers."""

    id: str
    sentence: str
    kind: Kind
    contrast: Contrast
    margin: float
    """d in effect units: an effect within +-d is no effect; at most half the paper's (ratios: ln 1.25)"""
    primary: bool = False
    gates: tuple[Gate, ...] = ()
    scales: tuple[str, ...] = ()
    """the scales this wording is for (default: all of the study's)"""
    paper_value: float | None = None
    """the paper's effect in effect units, oriented by `sign`"""
    paper_source: str = "unchecked"
    """how the paper's number is known: read, secondary or unchecked, and where in the paper"""
    diverged_as: float | None = None
    """value that a diverged run counts with (default: such runs make the claim inconclusive through the status gate)"""
    power: Power | None = None
    """for the primary claim; `analysis.stats.power` and a test hold it to 80%"""
    test: str = "welch"
    """welch: Welch's t on the contrast, a permutation test is reported beside it; cluster-bootstrap: one number of each group's
    whole population of runs, see `analysis.cluster`"""

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the claim's canonical JSON, without families and clusters that it lacks."""
        fields = dataclasses.asdict(self)
        if self.contrast.family is None:
            del fields["contrast"]["family"]
        elif not self.contrast.family.clusters:
            del fields["contrast"]["family"]["clusters"]
        text = json.dumps(fields, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def at(self, scale: str) -> bool:
        return not self.scales or scale in self.scales
