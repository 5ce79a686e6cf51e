"""The groups of a claim's contrast, filled with the values of their runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import families
from analysis.cluster import CLUSTER, Population, clustered
from analysis.load import RUNS, SUMMARY, Planned, Tables, config_column, none_if_missing
from experiments.lab.declare.claims import Claim, Family, Group
from experiments.lab.declare.config import RunConfig


@dataclass(frozen=True)
class Cell:
    """One group of a contrast. `values` are those it is judged by: one per run, or with a family one per family whose runs
    are all there. A diverged run counts with the claim's `diverged_as` or with none (a family's statistic decides
    what that means); `unusable` are finished runs, or whole families, without a finite value."""

    name: str
    planned: int
    """runs"""
    missing: int
    """runs"""
    expected: int
    """values once nothing is missing: runs, or families"""
    values: tuple[float, ...]
    configs: tuple[RunConfig, ...]
    run_ids: tuple[str, ...]
    statuses: tuple[str, ...]
    diverged: int
    unusable: int
    population: Population | None = None
    """all runs at once, where the claim's test resamples clusters of them"""

    @property
    def n(self) -> int:
        """Independent values: runs, families or clusters."""
        return len(self.values) if self.population is None else self.population.clusters


Found = Mapping[str, float | None]


def cells(claim: Claim, tables: Tables) -> tuple[Cell, ...]:
    """One cell per group, in declared order."""
    family = claim.contrast.family
    names = [claim.contrast.value, *(families.other_values(family) if family else ())]
    found = {name: values_of(name, tables) for name in names}
    status = dict(zip(tables.runs["run_id"], tables.runs["status"], strict=True))
    return tuple(_cell(group, claim, tables, found, status) for group in claim.contrast.groups)


def values_of(value: str, tables: Tables) -> dict[str, float | None]:
    """run_id -> a column of the runs table, a measurement, or (as metric.detail) one of its details.

    Runs that lack the row lack the key; a null value is None. Raises ValueError where a metric was measured with two sets
    of options: the claim does not say which it means.
    """
    if RUNS.get(value, "str") != "str":
        column = tables.runs[["run_id", value]]
        return {str(run): _number(x) for run, x in column.itertuples(index=False)}
    metric, _, detail = value.partition(".")
    rows = tables.measurements[(tables.measurements["metric"] == metric) & tables.measurements["run_id_b"].isna()]
    if rows["options"].nunique() > 1:
        raise ValueError(f"{value} is measured with several options ({', '.join(sorted(set(rows['options'])))})")
    if detail:
        texts = rows[["run_id", "details"]].itertuples(index=False)
        return {str(run): _number(json.loads(text).get(detail)) for run, text in texts}
    return {str(run): _number(x) for run, x in rows[["run_id", "value"]].itertuples(index=False)}


def members(group: Group, planned: tuple[Planned, ...]) -> list[Planned]:
    """Declared runs of a group, each once; `where` may name a config field or `stage`."""
    found = {p.config.run_id: p for p in planned if group.holds({**p.config.full_dict(), "stage": p.stage})}
    return list(found.values())


@dataclass(frozen=True)
class _Group:
    """The declared runs of a group, and what the tables know of them."""

    claim: Claim
    tables: Tables
    found: Mapping[str, Found]
    declared: list[Planned]
    diverged: set[str]
    missing: set[str]
    """runs that are not finished, or lack a value although they did not diverge"""

    def there(self) -> list[Planned]:
        return [run for run in self.declared if run.config.run_id not in self.missing]

    def frame(self, runs: Sequence[Planned]) -> pd.DataFrame:
        """The runs' rows with a column for every value asked for: NaN where there is none, for diverged runs `diverged_as`."""
        ids = [run.config.run_id for run in runs]
        frame = self.tables.runs.drop_duplicates("run_id").set_index("run_id").loc[ids].reset_index()
        frame["stage"] = [run.stage for run in runs]
        for name, known in self.found.items():
            if name in RUNS and name not in SUMMARY:
                continue  # a config field: a diverged run has it too
            absent = self.claim.diverged_as if name == self.claim.contrast.value else None
            numbers = [absent if run_id in self.diverged else known[run_id] for run_id in ids]
            frame[name] = [math.nan if number is None else number for number in numbers]
        return frame


@dataclass(frozen=True)
class _Judged:
    """The part of a `Cell` that depends on what the claim compares."""

    values: tuple[float, ...]
    expected: int
    unusable: int
    population: Population | None = None


def _cell(group: Group, claim: Claim, tables: Tables, found: Mapping[str, Found], status: Mapping[str, str]) -> Cell:
    declared = members(group, tables.planned)
    finished = [run.config.run_id for run in declared if run.config.run_id in status]
    diverged = {run_id for run_id in finished if status[run_id] == "diverged"}
    missing = {
        run_id for run in declared
        if (run_id := run.config.run_id) not in diverged
        and (run_id not in status or any(run_id not in known for known in found.values()))
    }
    runs, family = _Group(claim, tables, found, declared, diverged, missing), claim.contrast.family
    if family is None:
        judged = _by_run(runs)
    elif claim.test == CLUSTER:
        judged = _by_cluster(runs, family)
    else:
        judged = _by_family(runs, family)
    return Cell(
        name=group.name, planned=len(declared), missing=len(missing), configs=tuple(run.config for run in declared),
        run_ids=tuple(finished), statuses=tuple(status[run_id] for run_id in finished), diverged=len(diverged), **vars(judged),
    )


def _by_run(runs: _Group) -> _Judged:
    """One value per run."""
    known, absent = runs.found[runs.claim.contrast.value], runs.claim.diverged_as
    ids = [run.config.run_id for run in runs.there()]
    values = tuple(value for i in ids if (value := absent if i in runs.diverged else known[i]) is not None)
    return _Judged(values, len(runs.declared), sum(i not in runs.diverged and known[i] is None for i in ids))


def _by_family(runs: _Group, family: Family) -> _Judged:
    """One statistic per family whose runs are all there."""
    together = split(runs.declared, family)
    complete = [each for each in together if not runs.missing & {run.config.run_id for run in each}]
    numbers = [families.statistic(family, runs.frame(each), runs.claim.contrast.value) for each in complete]
    values = tuple(value for value in numbers if math.isfinite(value))
    return _Judged(values, len(together), len(numbers) - len(values))


def _by_cluster(runs: _Group, family: Family) -> _Judged:
    """No values: the test resamples clusters of all runs at once."""
    population = clustered(runs.frame(runs.there()), [config_column(name) for name in family.clusters])
    return _Judged((), len(runs.declared), 0, population)


def split(runs: Sequence[Planned], family: Family) -> list[list[Planned]]:
    """`runs` apart by equal values of the fields `family.by`, in the order in which they first occur."""
    found: dict[tuple[Any, ...], list[Planned]] = {}
    for run in runs:
        fields = {**run.config.full_dict(), "stage": run.stage}
        found.setdefault(tuple(fields[name] for name in family.by), []).append(run)
    return list(found.values())


def _number(value: Any) -> float | None:
    known = none_if_missing(value)
    return None if known is None else float(known)
