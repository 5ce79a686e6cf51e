"""The groups of a claim's contrast, filled with the values of their runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from analysis.load import SUMMARY, Planned, Tables, none_if_missing
from experiments.lab.claims import Claim, Group
from experiments.lab.config import RunConfig


@dataclass(frozen=True)
class Cell:
    """One group of a contrast. `values` are those it is judged by; a diverged run counts with the claim's
    `diverged_as` or with none; `unusable` are finished runs without a finite value."""

    name: str
    planned: int
    missing: int
    values: tuple[float, ...]
    configs: tuple[RunConfig, ...]
    run_ids: tuple[str, ...]
    statuses: tuple[str, ...]
    diverged: int
    unusable: int


def cells(claim: Claim, tables: Tables) -> tuple[Cell, ...]:
    """One cell a group, in declared order."""
    found = values_of(claim.contrast.value, tables)
    status = dict(zip(tables.runs["run_id"], tables.runs["status"], strict=True))
    return tuple(_cell(group, claim, tables, found, status) for group in claim.contrast.groups)


def values_of(value: str, tables: Tables) -> dict[str, float | None]:
    """run_id -> a summary column, a measurement, or (as metric.detail) one of its details.

    Runs that lack the row lack the key; a null value is None. Raises ValueError where a metric was measured with two sets
    of options: the claim does not say which it means.
    """
    if value in SUMMARY:
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


def _cell(
    group: Group, claim: Claim, tables: Tables, found: dict[str, float | None], status: dict[str, str]
) -> Cell:
    declared = members(group, tables.planned)
    values: list[float] = []
    missing = diverged = unusable = 0
    for run in declared:
        run_id = run.config.run_id
        if status.get(run_id) == "diverged":
            diverged += 1
            if claim.diverged_as is not None:
                values.append(claim.diverged_as)
        elif run_id not in status or run_id not in found:
            missing += 1
        elif (value := found[run_id]) is None:
            unusable += 1
        else:
            values.append(value)
    finished = [run for run in declared if run.config.run_id in status]
    return Cell(
        name=group.name, planned=len(declared), missing=missing, values=tuple(values),
        configs=tuple(run.config for run in declared), run_ids=tuple(run.config.run_id for run in finished),
        statuses=tuple(status[run.config.run_id] for run in finished), diverged=diverged, unusable=unusable,
    )  # fmt: skip


def _number(value: Any) -> float | None:
    known = none_if_missing(value)
    return None if known is None else float(known)
