"""From tables to verdicts: the effect of each claim, its intervals, and the first row of the decision table that applies.

In this order, with the effect and its margin d oriented so that the paper claims a positive one:

    1. runs or measurements missing                       no verdict (null)
    2. a gate failed                                      inconclusive
    3. 90% CI inside (-d, d)                              directional: no effect, even if it excludes 0
                                                          equivalence, non-inferiority: reproduced
    4. adjusted 95% CI beyond 0 on the paper's side       directional: reproduced
    5. adjusted 95% CI wholly on the other side           directional: contradicted
       adjusted 95% CI wholly beyond d                    equivalence, non-inferiority: contradicted
    6. else                                               inconclusive

Non-inferiority has one margin only: its interval is (-d, infinity). The primary claim is tested at 95%; Holm's step-down
over the other claims of the study at that scale sets the levels of theirs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import Cell, cells
from analysis.cluster import CLUSTER
from analysis.cluster import estimate as cluster_estimate
from analysis.families import columns, statistic
from analysis.gates import failed_gate
from analysis.load import Tables, right
from analysis.stats import ALPHA, Adjusted, Estimate, contrast, crossed_bootstrap, holm, permutation_p
from experiments.lab.declare.claims import Claim, Kind, ValueScale

SEEDS = "seeds on this test set"
REPRODUCED, CONTRADICTED, NO_EFFECT, INCONCLUSIVE = "reproduced", "contradicted", "no effect", "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to one claim. Effects are oriented: positive is the paper's side; with unit `ratio` they are natural
    logarithms, and ratio, ratio_low, ratio_high are their exponentials. What is not known is None."""

    study: str
    scale: str
    claim: str
    claim_hash: str
    sentence: str
    primary: bool
    kind: str
    verdict: str | None
    decided_by: str
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    """of the interval: 0.95 for the primary claim, Holm's for the others"""
    ci90_low: float | None
    ci90_high: float | None
    unit: str
    margin: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    n_seeds: int
    """of the smallest group"""
    n_seeds_by_group: dict[str, int]
    p_value: float | None
    """directional: two-sided against 0; equivalence and non-inferiority: that the effect lies beyond the margin"""
    p_adjusted: float | None
    """Holm; for the primary claim p_value itself; None where a gate failed"""
    p_permutation: float | None
    population: str
    both_low: float | None
    """95% crossed bootstrap over seeds x test examples, where the value is the test accuracy"""
    both_high: float | None
    paper_value: float | None
    paper_source: str
    magnitude_agrees: bool | None
    """whether the interval contains the paper's effect; no part of the verdict"""
    missing: int
    diverged: int
    runs: list[str]
    source: str
    regime: str | None = None
    """own: on a task of the user's, of which no paper speaks; None where no regime is declared"""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Evidence:
    """What the tables say about one claim, before the family of claims is known."""

    claim: Claim
    cells: tuple[Cell, ...]
    missing: int
    estimate: Estimate | None
    """oriented; None while runs are missing or a group has fewer than two usable values"""
    gate: str | None
    """why a gate failed"""

    @property
    def p_value(self) -> float | None:
        return None if self.estimate is None else p_value(self.claim, self.estimate)


def verdicts(tables: Tables) -> list[Verdict]:
    """One verdict for each claim of the study at the tables' scale, in declared order."""
    return judged([(gather(claim, tables), tables) for claim in tables.study.claims_at(tables.scale)])


def judged(found: Sequence[tuple[Evidence, Tables]]) -> list[Verdict]:
    """The verdicts of a whole family of claims, each with the tables that its evidence is from."""
    others = [e for e, _ in found if not e.claim.primary]
    # m counts every declared claim: one that cannot be judged stays in with p = 1, so it never loosens the rest
    adjusted = holm([1.0 if e.p_value is None or e.gate else e.p_value for e in others])
    family = {e.claim.id: a for e, a in zip(others, adjusted, strict=True)}
    return [_verdict(e, family.get(e.claim.id), tables) for e, tables in found]


def gather(claim: Claim, tables: Tables) -> Evidence:
    found = cells(claim, tables)
    missing = sum(cell.missing for cell in found)
    if missing or tables.pending or not all(cell.planned for cell in found):
        return Evidence(claim, found, missing, None, None)
    gate = failed_gate(claim, found, tables)
    weights = [claim.contrast.sign * group.weight for group in claim.contrast.groups]
    if claim.test == CLUSTER:
        estimate = resampled(claim, found, weights)
        undefined = None if estimate else "the statistic is not defined for this population of runs"
        return Evidence(claim, found, 0, estimate, gate or undefined)
    values = [scaled(claim, cell.values) for cell in found]
    if any(len(v) < 2 or not np.isfinite(v).all() for v in values):
        return Evidence(claim, found, 0, None, gate or "a group has fewer than two usable values")
    return Evidence(claim, found, 0, contrast(values, weights), gate)


def resampled(claim: Claim, found: Sequence[Cell], weights: Sequence[float]) -> Estimate | None:
    """The contrast of a statistic of whole populations, by the cluster bootstrap."""
    family = claim.contrast.family
    assert family is not None
    needed = columns(family, claim.contrast.value)  # of dozens, which each replicate would copy
    populations = [replace(p, frame=p.frame[[c for c in p.frame if c in needed]]) for p in (c.population for c in found) if p]
    assert len(populations) == len(found)
    return cluster_estimate(populations, weights, lambda frame: statistic(family, frame, claim.contrast.value))


def p_value(claim: Claim, estimate: Estimate) -> float:
    match claim.kind:
        case Kind.DIRECTIONAL:
            return estimate.p_two_sided()
        case Kind.EQUIVALENCE:
            return estimate.p_equivalent(claim.margin)
        case Kind.NON_INFERIORITY:
            return estimate.p_above(-claim.margin)


def decide(
    kind: Kind, margin: float, ci90: tuple[float, float], ci: tuple[float, float], level: float
) -> tuple[str, str]:
    """Rows 3 to 6 of the table: the verdict and the sentence that says which row decided."""
    low, high = ci
    inside = ci90[0] > -margin and (ci90[1] < margin or kind is Kind.NON_INFERIORITY)
    name = f"{100 * level:.4g}% interval"
    limits = f"above -{margin:.3g}" if kind is Kind.NON_INFERIORITY else f"within ±{margin:.3g}"
    if kind is Kind.DIRECTIONAL:
        if inside:
            return NO_EFFECT, f"the 90% interval lies {limits}"
        if low > 0:
            return REPRODUCED, f"the {name} lies on the paper's side of 0"
        if high < 0:
            return CONTRADICTED, f"the {name} lies on the other side of 0"
        return INCONCLUSIVE, f"the {name} contains 0 and the 90% interval does not lie {limits}"
    if inside:
        return REPRODUCED, f"the 90% interval lies {limits}"
    if high < -margin or (low > margin and kind is Kind.EQUIVALENCE):
        return CONTRADICTED, f"the {name} lies wholly beyond {margin:.3g}"
    return INCONCLUSIVE, f"the 90% interval does not lie {limits} and the {name} does not lie wholly beyond"


def _verdict(evidence: Evidence, adjusted: Adjusted | None, tables: Tables) -> Verdict:
    claim, found, estimate = evidence.claim, evidence.cells, evidence.estimate
    level = adjusted.level if adjusted else 1 - ALPHA
    ci = estimate.interval(level) if estimate else (None, None)
    ci90 = estimate.interval(0.9) if estimate else (None, None)
    if (absent := _absence(evidence, tables)) is not None:
        verdict, reason = None, absent
    elif evidence.gate is not None or estimate is None:
        verdict, reason = INCONCLUSIVE, f"gate: {evidence.gate}"
    else:
        verdict, reason = decide(claim.kind, claim.margin, estimate.interval(0.9), estimate.interval(level), level)
    p = evidence.p_value
    both = _both_populations(evidence, tables)
    logarithmic = claim.contrast.scale is ValueScale.LOG
    ratios = [math.exp(x) if logarithmic and x is not None else None for x in (estimate and estimate.estimate, *ci)]
    seeds = {cell.name: cell.n for cell in found}
    return Verdict(
        study=tables.study.name, scale=tables.scale, claim=claim.id, claim_hash=claim.hash, sentence=claim.sentence,
        primary=claim.primary, kind=claim.kind.value, verdict=verdict, decided_by=reason,
        effect=estimate.estimate if estimate else None, ci_low=ci[0], ci_high=ci[1], level=level,
        ci90_low=ci90[0], ci90_high=ci90[1], unit=claim.contrast.unit, margin=claim.margin,
        ratio=ratios[0], ratio_low=ratios[1], ratio_high=ratios[2],
        n_seeds=min(seeds.values(), default=0), n_seeds_by_group=seeds,
        p_value=p, p_adjusted=None if p is None or evidence.gate else adjusted.p if adjusted else p,
        p_permutation=_permutation(evidence), population=population(claim), both_low=both[0], both_high=both[1],
        paper_value=claim.paper_value, paper_source=claim.paper_source,
        magnitude_agrees=None if estimate is None or claim.paper_value is None or ci[0] is None or ci[1] is None
        else bool(ci[0] <= claim.paper_value <= ci[1]),
        missing=evidence.missing, diverged=sum(cell.diverged for cell in found),
        runs=sorted({run_id for cell in found for run_id in cell.run_ids}), source=tables.source,
        regime="own" if any(scale.own for scale in tables.study.scales if scale.name == tables.scale) else None,
    )


def _absence(evidence: Evidence, tables: Tables) -> str | None:
    """Row 1: what is missing, or None."""
    if empty := [cell.name for cell in evidence.cells if not cell.planned and not tables.pending]:
        return f"the study declares no run for the group {empty[0]}"
    if tables.pending:
        return "earlier stages are not finished, so some runs are not known yet"
    if evidence.missing:
        planned = sum(cell.planned for cell in evidence.cells)
        return f"{evidence.missing} of {planned} values are missing: runs or measurements not made yet"
    return None


def population(claim: Claim) -> str:
    """What the values of a claim are a sample of."""
    family = claim.contrast.family
    if family is None:
        return SEEDS
    of = f"{family.statistic} of {claim.contrast.value}"
    if family.clusters:
        return f"clusters of runs of equal {', '.join(family.clusters)} ({of}), on this test set"
    return f"{of}, one per {' and '.join(family.by) or 'group'}, on this test set"


def scaled(claim: Claim, values: Sequence[float]) -> np.ndarray:
    """Values as the contrast takes them: themselves, or their logarithms."""
    array = np.asarray(values, dtype=np.float64)
    if claim.contrast.scale is ValueScale.LINEAR:
        return array
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(array)


def _permutation(evidence: Evidence) -> float | None:
    """The permutation check, for contrasts that are a difference between two groups."""
    weights = sorted(group.weight for group in evidence.claim.contrast.groups)
    if evidence.estimate is None or evidence.claim.test == CLUSTER or len(weights) != 2 or weights[0] != -weights[1]:
        return None
    first, second = (scaled(evidence.claim, cell.values) for cell in evidence.cells)
    return permutation_p(first, second)


def _both_populations(evidence: Evidence, tables: Tables) -> tuple[float | None, float | None]:
    """The crossed bootstrap of a test accuracy, when it is known of every run which of the same test examples it got right."""
    claim = evidence.claim
    plain = claim.contrast.value == "test_accuracy" and claim.contrast.family is None
    if not plain or evidence.estimate is None:
        return None, None
    parts = [tables.correct[tables.correct["run_id"].isin(cell.run_ids)] for cell in evidence.cells]
    counted = all(len(part) == len(cell.values) for part, cell in zip(parts, evidence.cells, strict=True))
    if not counted or pd.concat(parts)["test_set"].nunique() != 1:
        return None, None
    groups = [100.0 * right(part) for part in parts]
    return crossed_bootstrap(groups, [claim.contrast.sign * g.weight for g in claim.contrast.groups])
