"""Which runs are trained as one program, and the plan that says so: `plan.json` in the folder of each.

Fused gradients equal single ones up to rounding only, so a run that was begun with others is continued with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.config import RunConfig, program
from experiments.lab.files import to_json, write_atomic
from experiments.lab.seal import SCHEMA, seal, why_broken
from experiments.lab.store import Store

MOST = 64
"""runs in one program at most"""


def begun_together(configs: Sequence[RunConfig], store: Store) -> list[tuple[RunConfig, ...]]:
    """Of runs that are not finished, those that were begun as one program, as their plans say: they go on as one."""
    known, found, taken = {config.run_id: config for config in configs}, [], set()
    for config in configs:
        if config.run_id not in taken and (store.folder(config.run_id) / "plan.json").exists():
            company = company_of(store, config.run_id)
            if len(company) > 1 and known.keys() >= set(company):
                found.append(tuple(known[run_id] for run_id in company))
                taken |= set(company)
    return found


def groups(configs: Sequence[RunConfig], store: Store, most: int) -> list[tuple[RunConfig, ...]]:
    """What to train together of runs that are not finished: those begun together as they were, new ones as siblings."""
    found = begun_together(configs, store)
    taken = {config.run_id for group in found for config in group}
    fresh = [c for c in configs if c.run_id not in taken and not any(store.folder(c.run_id).glob("checkpoint.*"))]
    return found + siblings(fresh, most)


def company_of(store: Store, run_id: str) -> list[str]:
    """The members of the program that a run was begun in which are not finished; itself alone where it has no plan.

    None at all where the company broke up: a member was begun, or has ended, under another plan.
    """
    plan = read_plan(store.folder(run_id))
    if plan is None:
        return [] if plan_is_damaged(store.folder(run_id)) else [run_id]
    members = plan["members"]
    if any((read_plan(store.folder(member)) or {}).get("members") != members for member in members):
        return []
    return [member for member in members if not store.finished(member)]


def siblings(configs: Sequence[RunConfig], most: int) -> list[tuple[RunConfig, ...]]:
    """Groups of two to `most` runs that can be one program, each run once, in their order; runs without siblings are left."""
    alike: dict[Any, list[RunConfig]] = {}
    for config in configs:
        alike.setdefault(program(config), []).append(config)
    found = []
    for group in alike.values():
        count = -(-len(group) // most)
        size = -(-len(group) // count)
        found += [tuple(group[i : i + size]) for i in range(0, len(group), size)]
    return [group for group in found if len(group) > 1]


def write_plan(folder: Path, members: Sequence[str], micro_batch: int | None) -> None:
    """Record how a run is computed, before its first update."""
    write_atomic(folder / "plan.json", seal(to_json({"schema": SCHEMA, "members": list(members), "micro_batch": micro_batch})))


def plan_is_damaged(folder: Path) -> bool:
    """Whether nobody knows any more how the run in `folder` was begun."""
    return (folder / "plan.json").exists() and read_plan(folder) is None


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a run, None where it has none (alone, in whole batches) or where it is damaged."""
    try:
        content = (folder / "plan.json").read_bytes()
        document = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and why_broken(content, document) is None else None
