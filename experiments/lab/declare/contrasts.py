"""Claims and figures in few words: groups of runs, contrasts of them, sentences about these, and figures with options by name."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from experiments.lab.declare.claims import Claim, Contrast, Family, Gate, Group, Kind, ValueScale
from experiments.lab.declare.study import Figure, PaperRow, Scale

GATES = (Gate("min_seeds", 8), Gate("status", 0.1))
"""of a claim that names no others"""
MARGIN = math.log(1.25)
"""of a log ratio that names no other"""


def group(name: str, **where: Any) -> Group:
    """The runs whose config fields (or `stage`) equal those given."""
    return Group(name, 1.0, tuple((field, getattr(value, "value", value)) for field, value in where.items()))


def weighted(value: str, *groups: tuple[float, Group], unit: str = "percentage points", sign: int = 1, log: bool = False,
             family: Family | None = None) -> Contrast:
    """The sum of the groups' means of `value` (of its logarithm with `log`), each times its weight."""
    scale = ValueScale.LOG if log else ValueScale.LINEAR
    return Contrast(value, tuple(dataclasses.replace(g, weight=w) for w, g in groups), sign, unit, scale, family)


def difference(value: str, first: Group, second: Group, *, unit: str = "percentage points", sign: int = 1,
               family: Family | None = None) -> Contrast:
    """First minus second; `sign` is -1 where the paper claims that the first is smaller."""
    return weighted(value, (1.0, first), (-1.0, second), unit=unit, sign=sign, family=family)


def log_ratio(value: str, first: Group, second: Group, *, sign: int = 1) -> Contrast:
    """The logarithm of first over second."""
    return weighted(value, (1.0, first), (-1.0, second), unit="log ratio", sign=sign, log=True)


def minus(first: Contrast, second: Contrast) -> Contrast:
    """First minus second, both of one value: a difference of differences, or the logarithm of a ratio of ratios."""
    return dataclasses.replace(first, groups=(*first.groups, *(dataclasses.replace(g, weight=-g.weight) for g in second.groups)))


def claim(kind: Kind, id: str, sentence: str, contrast: Contrast, margin: float | None = None, **fields: Any) -> Claim:
    """A claim of one kind; `fields` are its others."""
    if margin is None and contrast.scale is not ValueScale.LOG:
        raise ValueError(f"the claim {id!r} is of no log ratio, so it needs a margin")
    own: dict[str, Any] = {"gates": GATES, **fields}
    return Claim(id, sentence, kind, contrast, MARGIN if margin is None else margin, **own)


directional = functools.partial(claim, Kind.DIRECTIONAL)
"""the effect lies on the paper's side of 0"""
equivalent = functools.partial(claim, Kind.EQUIVALENCE)
"""the effect lies within +-margin"""
non_inferior = functools.partial(claim, Kind.NON_INFERIORITY)
"""the effect lies above -margin"""


def at_scale(scale: Scale, *claims: Claim, gates: tuple[Gate, ...] = GATES, source: str = "unchecked",
             diverged_as: float | None = None) -> tuple[Claim, ...]:
    """`claims` as those of one scale, with its name before each id and its power in the primary one.

    `gates` are those of every claim, before what a claim names itself; `source` is that of a claim which names none;
    `diverged_as` is the test accuracy that a diverged run counts with where a claim names no other.
    """
    words = "analogue: " if scale.analogue else ""
    return tuple(
        dataclasses.replace(
            claim, id=f"{scale.name}-{claim.id}", sentence=words + claim.sentence, scales=(scale.name,),
            gates=gates if claim.gates is GATES else (*gates, *claim.gates),
            paper_source=source if claim.paper_source == "unchecked" else claim.paper_source,
            power=scale.power if claim.primary else None,
            diverged_as=diverged_as if claim.diverged_as is None and claim.contrast.value == "test_accuracy"
            else claim.diverged_as,
        )
        for claim in claims
    )


def figure(kind: str, *, name: str | None = None, scales: tuple[str, ...] = (), **options: Any) -> Figure:
    """A figure of `kind` with its options by name; (name, value) pairs may be written as a dict, conditions as a group."""
    return Figure(name or kind, kind, tuple((key, _paired(value)) for key, value in options.items()), scales)


def _paired(value: Any) -> Any:
    """Dicts, and dicts within, as (name, value) pairs; a group as its conditions."""
    if isinstance(value, Group):
        return value.where
    return tuple((key, _paired(of)) for key, of in value.items()) if isinstance(value, dict) else value


def paper_rows(table: str, quantity: str, value: str, **printed: tuple[float, ...]) -> tuple[PaperRow, ...]:
    """Rows of one quantity: network -> the numbers under both conditions, and their standard deviations where printed."""
    names = ("first", "second", "first_sd", "second_sd")
    given: dict[str, dict[str, Any]] = {network: dict(zip(names, of, strict=False)) for network, of in printed.items()}
    return tuple(PaperRow(table, network, quantity, value, **numbers) for network, numbers in given.items())


def of_paper(row: PaperRow | None, *, log: bool = False) -> dict[str, Any]:
    """What a claim says of its printed effect: first minus second, or with `log` the logarithm of second over first."""
    if row is None:
        return {}
    effect = math.log(row.second / row.first) if log else row.first - row.second
    return {"paper_value": round(effect, 4), "paper_source": f"{row.source}: {row.table}, {row.network}"}
