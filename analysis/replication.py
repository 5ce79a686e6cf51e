"""Further seeds as a replication: runs beyond the declared seeds answer a claim once more, by the same rule and on their own.

The verdict of a claim is of the declared seeds, whose number was fixed before the runs. Seeds that `run STUDY --seeds N` adds
are never pooled with them. A seed counts once every group of the claim has it, whole; seeds that choose settings do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.cells import members, values_of
from analysis.families import other_values
from analysis.load import Planned, Tables, from_store
from analysis.verdicts import Evidence, Verdict, gather, judged
from experiments.lab.declare.claims import Claim
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import PILOT, Request
from experiments.lab.declare.tuning import TUNING
from experiments.lab.store.records import Store


@dataclass(frozen=True)
class Replication:
    """A claim answered by further seeds alone."""

    seeds: tuple[int, ...]
    incomplete: tuple[int, ...]
    """further seeds that some group of the claim lacks, and that do not count yet"""
    verdict: Verdict

    def words(self) -> str:
        left = f" ({listed(self.incomplete)} incomplete)" if self.incomplete else ""
        return f"{listed(self.seeds)}{left}"

    def to_dict(self) -> dict[str, Any]:
        return {"seeds": list(self.seeds), "incomplete_seeds": list(self.incomplete), **self.verdict.to_dict()}


@dataclass(frozen=True)
class Replications:
    """By claim; `refused` says in a sentence why there are none though further seeds are there."""

    of_claims: Mapping[str, Replication] = dataclasses.field(default_factory=dict)
    refused: str | None = None


def replications(tables: Tables, store: Store) -> Replications:
    """What the further seeds that `store` holds of the study say of its claims; `tables` are its declared runs."""
    seeds = further_seeds(tables.planned, store)
    if seeds is None:
        return Replications()
    extended = from_store(tables.study, tables.scale, store, Request(tables.scale, seeds))
    if (stage := _other_choice(tables.planned, extended.planned, seeds)) is not None:
        return Replications(refused=(
            f"the further seeds in {store.root} are no replication of {tables.study.name}: with {seeds} seeds its stage "
            f"{stage} has other runs than declared"
        ))
    return of(tables, extended)


def of(tables: Tables, extended: Tables) -> Replications:
    """The claims answered by those runs of `extended` that `tables` does not declare."""
    parts = {c.id: (c, *_further(c, tables.planned, extended)) for c in tables.study.claims_at(tables.scale)}
    evidence = [
        (gather(claim, own) if seeds else Evidence(claim, (), 0, None, None), own) for claim, seeds, _, own in parts.values()
    ]
    found = {verdict.claim: verdict for verdict in judged(evidence)}
    begun = {seed for _, _, incomplete, _ in parts.values() for seed in incomplete}
    if begun and not any(seeds for _, seeds, _, _ in parts.values()):
        return Replications(refused=f"{listed(begun)} do not count yet: some group of each claim has no whole run of them")
    return Replications({
        id: Replication(seeds, incomplete, found[id]) for id, (_, seeds, incomplete, _) in parts.items() if seeds
    })


def further_seeds(planned: Sequence[Planned], store: Store) -> int | None:
    """Seeds per cell, counted from 0, up to the last in a row that the store holds for a cell; None where none is beyond the
    declared ones. Cells with equally many declared seeds count together, for one of them may lack a run."""
    known = {run.config.run_id for run in planned}
    if known.issuperset(store.run_ids()):
        return None
    cells: dict[tuple[Any, ...], list[RunConfig]] = {}
    for config in {run.config.run_id: run.config for run in planned if run.config.parent is None}.values():
        cells.setdefault(tuple((config.full_dict() | {"seed": 0}).values()), []).append(config)
    by_count: dict[int, list[RunConfig]] = {}
    for configs in cells.values():
        if {config.seed for config in configs} == set(range(len(configs))):
            by_count.setdefault(len(configs), []).append(configs[0])
    most = 0
    for count, alike in by_count.items():
        seed = count
        while seed < PILOT and any(store.finished(config.replace(seed=seed).run_id) for config in alike):
            seed += 1
        most = max(most, seed if seed > count else 0)
    return most or None


def listed(seeds: Iterable[int]) -> str:
    """Seeds in words: `seeds 12 to 19`, `seed 7`."""
    known = sorted(seeds)
    if len(known) == 1:
        return f"seed {known[0]}"
    if known == list(range(known[0], known[-1] + 1)):
        return f"seeds {known[0]} to {known[-1]}"
    return f"seeds {', '.join(map(str, known))}"


def _other_choice(declared: Sequence[Planned], extended: Sequence[Planned], seeds: int) -> str | None:
    """The first stage that lacks a declared run which `seeds` seeds do not leave out: an earlier stage chose otherwise."""
    there = {(run.stage, run.config.run_id) for run in extended}
    known = {stage for stage, _ in there}
    return next((run.stage for run in declared if run.stage in known and (run.config.seed < seeds or run.config.seed in TUNING)
                 and (run.stage, run.config.run_id) not in there), None)


def _further(claim: Claim, declared: Sequence[Planned], extended: Tables) -> tuple[tuple[int, ...], tuple[int, ...], Tables]:
    """The claim's further seeds, whole and incomplete, and `extended` with these runs alone in the claim's groups."""
    own = [members(group, tuple(declared)) for group in claim.contrast.groups]
    last = max((run.config.seed for group in own for run in group), default=0)
    wider = [members(group, extended.planned) for group in claim.contrast.groups]
    more = [[run for run in group if last < run.config.seed < PILOT and run.config.seed not in TUNING] for group in wider]
    whole = _whole(claim, extended)
    begun = {run.config.seed for group in more for run in group if run.config.run_id in whole}
    seeds = {
        seed for seed in begun
        if all(ids and ids <= whole for group in more for ids in [{r.config.run_id for r in group if r.config.seed == seed}])
    }
    chosen = {run.config.run_id for group in more for run in group if run.config.seed in seeds}
    others = {run.config.run_id for group in (*own, *wider) for run in group} - chosen
    planned = tuple(run for run in extended.planned if run.config.run_id not in others)
    tables = dataclasses.replace(extended, planned=planned, pending=0)
    return tuple(sorted(seeds)), tuple(sorted(begun - seeds)), tables


def _whole(claim: Claim, tables: Tables) -> set[str]:
    """Runs that have every value which the claim takes of one; a diverged run has what it can have."""
    family = claim.contrast.family
    names = [claim.contrast.value, *(other_values(family) if family else ())]
    valued = set.intersection(*(set(values_of(name, tables)) for name in names))
    return valued | set(tables.runs.loc[tables.runs["status"] == "diverged", "run_id"])
