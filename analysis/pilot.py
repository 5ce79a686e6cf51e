"""What pilot runs say about a study before its claims are fixed: spread, effect and power. They decide nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from analysis.cluster import CLUSTER
from analysis.load import Tables
from analysis.stats import power, power_within
from analysis.verdicts import Evidence, gather, scaled
from experiments.lab.declare.claims import Claim, Kind

SEEDS = (8, 10, 12, 16, 20)


def rows(tables: Tables) -> list[dict[str, Any]]:
    """One object a claim: each group's n, mean and SD (of logarithms where the claim takes them), effect, `sd` and power.

    `sd` is what `Power.sd` asks for: with it the contrast's standard error is sd sqrt(2 / seeds); of a difference of two
    groups it is the root mean square of their SDs. Power is that of the claim's test at `SEEDS` seeds per group: to see
    the pilot's effect (directional), or to find an effect of 0 within the margin (equivalence, non-inferiority). Where clusters
    of runs are resampled they are the seeds, and `sd` follows from the bootstrap's standard error.
    """
    return [_row(gather(claim, tables)) for claim in tables.study.claims_at(tables.scale)]


def _row(evidence: Evidence) -> dict[str, Any]:
    claim = evidence.claim
    groups = []
    variance = 0.0
    for cell, group in zip(evidence.cells, claim.contrast.groups, strict=True):
        values = scaled(claim, cell.values)
        sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        variance += group.weight**2 * sd**2
        mean = float(values.mean()) if len(values) else None
        groups.append({"group": group.name, "n": cell.n, "missing": cell.missing, "diverged": cell.diverged,
                       "mean": mean, "sd": None if math.isnan(sd) else sd})
    estimate = evidence.estimate
    if claim.test == CLUSTER and estimate is not None:
        variance = estimate.se**2 * min(cell.n for cell in evidence.cells)
    sd = math.sqrt(variance / 2)
    known = estimate is not None and math.isfinite(sd) and sd > 0
    return {
        "claim": claim.id, "sentence": claim.sentence, "primary": claim.primary, "kind": claim.kind.value,
        "margin": claim.margin, "groups": groups, "gate": evidence.gate,
        "effect": None if estimate is None else estimate.estimate, "sd": sd if known else None,
        "power": {n: _power(claim, estimate.estimate, sd, n) for n in SEEDS} if known and estimate is not None else {},
    }


def _power(claim: Claim, effect: float, sd: float, seeds: int) -> float:
    if claim.kind is Kind.DIRECTIONAL:
        return round(power(effect, sd, seeds), 3)
    return round(power_within(claim.margin, sd, seeds, one_sided=claim.kind is Kind.NON_INFERIORITY), 3)


def text(found: list[dict[str, Any]]) -> str:
    lines = []
    for row in found:
        lines.append(f"{row['sentence']}{' (primary)' if row['primary'] else ''}")
        for g in row["groups"]:
            mean, sd = (f"{g[name]:.4g}" if g[name] is not None and np.isfinite(g[name]) else "-" for name in ("mean", "sd"))
            absent = "".join(f", {g[name]} {name}" for name in ("missing", "diverged") if g[name])
            lines.append(f"    {g['group']}: n {g['n']}{absent}, mean {mean}, SD {sd}")
        if row["effect"] is not None:
            powers = ", ".join(f"{value:.2f} with {n}" for n, value in row["power"].items())
            spread = "" if row["sd"] is None else f", sd {row['sd']:.4g}, power {powers} seeds"
            lines.append(f"    effect {row['effect']:.4g}, margin {row['margin']:.4g}{spread}")
        if row["gate"]:
            lines.append(f"    gate: {row['gate']}")
    return "\n".join(lines)
