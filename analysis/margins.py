"""At which margins a verdict would be another one.

A margin is a choice: what nobody would call an effect. The intervals do not depend on it, so that the margins for which the
verdict stays as it is are known without another run (at the level of its interval; another margin of an equivalence could change
Holm's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from analysis.verdicts import decide
from experiments.lab.declare.claims import Kind
from experiments.lab.sweep.board import number


def at(verdict: Mapping[str, Any], margin: float) -> str | None:
    """What `verdict` (a mapping, see `analysis.verdicts.Verdict`) would be at this margin, in effect units; itself where a gate
    decided, None where there is none."""
    if not _open(verdict):
        return verdict["verdict"]
    ci90, ci = (verdict["ci90_low"], verdict["ci90_high"]), (verdict["ci_low"], verdict["ci_high"])
    return decide(Kind(verdict["kind"]), margin, ci90, ci, float(verdict["level"]))[0]


def _open(verdict: Mapping[str, Any]) -> bool:
    """Whether an interval decides it."""
    return verdict["verdict"] is not None and verdict["effect"] is not None and not str(verdict["decided_by"]).startswith("gate")


def holding(verdict: Mapping[str, Any]) -> tuple[float, float] | None:
    """The margins (low, high), in effect units, between which `verdict` (a mapping, see `analysis.verdicts.Verdict`) is the same
    as at its own; high may be infinite. None without a verdict, or where a gate decided, which no margin changes.

    The verdict can change where the margin meets the end of an interval, and nowhere else.
    """
    if not _open(verdict):
        return None
    ends = (verdict[name] for name in ("ci90_low", "ci90_high", "ci_low", "ci_high"))
    meets = sorted({0.0, math.inf, *(abs(float(end)) for end in ends)})
    own = float(verdict["margin"])
    pieces = list(pairwise(meets))
    middles = [low + 1.0 if high == math.inf else (low + high) / 2 for low, high in pieces]
    same = [at(verdict, middle) == verdict["verdict"] for middle in middles]
    first = last = next(i for i, (low, high) in enumerate(pieces) if low <= own <= high and (same[i] or own < high))
    while first > 0 and same[first - 1]:
        first -= 1
    while last + 1 < len(pieces) and same[last + 1]:
        last += 1
    return pieces[first][0], pieces[last][1]


def words(verdict: Mapping[str, Any]) -> str:
    """The margin and the range in which the verdict holds: '0.5 (up to 0.52)'; ratios as factors."""
    ratio = verdict["ratio"] is not None

    def shown(margin: float) -> str:
        return f"{number(math.exp(margin))}×" if ratio else number(margin)

    found = holding(verdict)
    if found is None:
        return shown(verdict["margin"])
    low, high = found
    if low == 0.0 and high == math.inf:
        return f"{shown(verdict['margin'])} (any)"
    if high == math.inf:
        return f"{shown(verdict['margin'])} (from {shown(low)})"
    return f"{shown(verdict['margin'])} ({'up to ' if low == 0.0 else shown(low) + ' to '}{shown(high)})"
