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
    """One group of a contrast. `values` are those it is judged by: a run's each, or with a family the statistic of each family
    whose runs are all there. A diverged run counts with the claim's `diverged_as` or with none (a family's statistic decides
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
    """One cell a group, in declared order."""
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


def _cell(group: Group, claim: Claim, tables: Tables, found: Mapping[str, Found], status: Mapping[str, str]) -> Cell:
    declared = members(group, tables.planned)
    finished = [run for run in declared if run.config.run_id in status]
    diverged = [run for run in finished if status[run.config.run_id] == "diverged"]
    lost = {run.config.run_id for run in diverged}
    missing = {
        run_id for run in declared
        if (run_id := run.config.run_id) not in lost
        and (run_id not in status or any(run_id not in known for known in found.values()))
    }
    population = None
    if claim.contrast.family is None:
        known = found[claim.contrast.value]
        ids = [run.config.run_id for run in declared if run.config.run_id not in missing]
        counted = [claim.diverged_as if run_id in lost else known[run_id] for run_id in ids]
        values = [value for value in counted if value is not None]
        expected, unusable = len(declared), sum(value is None and i not in lost for i, value in zip(ids, counted, strict=True))
    elif claim.test == CLUSTER:
        there = [run for run in declared if run.config.run_id not in missing]
        clusters = [config_column(name) for name in claim.contrast.family.clusters]
        population = clustered(_frame(there, claim, tables, found, lost), clusters)
        values, expected, unusable = [], len(declared), 0
    else:
        together = split(declared, claim.contrast.family)
        complete = [runs for runs in together if not missing & {run.config.run_id for run in runs}]
        frames = [_frame(runs, claim, tables, found, lost) for runs in complete]
        numbers = [families.statistic(claim.contrast.family, frame, claim.contrast.value) for frame in frames]
        values = [value for value in numbers if math.isfinite(value)]
        expected, unusable = len(together), len(numbers) - len(values)
    return Cell(
        name=group.name, planned=len(declared), missing=len(missing), expected=expected, values=tuple(values),
        configs=tuple(run.config for run in declared), run_ids=tuple(run.config.run_id for run in finished),
        statuses=tuple(status[run.config.run_id] for run in finished), diverged=len(diverged),
        unusable=unusable, population=population,
    )


def split(runs: Sequence[Planned], family: Family) -> list[list[Planned]]:
    """`runs` apart by equal values of the fields `family.by`, in the order in which they first occur."""
    found: dict[tuple[Any, ...], list[Planned]] = {}
    for run in runs:
        fields = {**run.config.full_dict(), "stage": run.stage}
        found.setdefault(tuple(fields[name] for name in family.by), []).append(run)
    return list(found.values())


def _frame(
    runs: Sequence[Planned], claim: Claim, tables: Tables, found: Mapping[str, Found], lost: set[str]
) -> pd.DataFrame:
    """The runs' rows with a column for every value asked for: NaN where there is none, for diverged runs `diverged_as`."""
    ids = [run.config.run_id for run in runs]
    frame = tables.runs.drop_duplicates("run_id").set_index("run_id").loc[ids].reset_index()
    frame["stage"] = [run.stage for run in runs]
    for name, known in found.items():
        if name in RUNS and name not in SUMMARY:
            continue  # a config field: a diverged run has it too
        absent = claim.diverged_as if name == claim.contrast.value else None
        numbers = [absent if run_id in lost else known[run_id] for run_id in ids]
        frame[name] = [math.nan if number is None else number for number in numbers]
    return frame


def _number(value: Any) -> float | None:
    known = none_if_missing(value)
    return None if known is None else float(known)
