"""Which runs are trained as one program: those begun together, and new ones that differ in scalars alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.lab.declare.config import RunConfig, program
from experiments.lab.store.execution_plan import company_of
from experiments.lab.store.records import Store

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


def siblings(configs: Sequence[RunConfig], most: int) -> list[tuple[RunConfig, ...]]:
    """Groups of two to `most` runs that can be one program, each run once, in their order; runs without siblings are left."""
    alike: dict[Any, list[RunConfig]] = {}
    for config in configs:
        if config.fusible:
            alike.setdefault(program(config), []).append(config)
    found = []
    for group in alike.values():
        count = -(-len(group) // most)
        size = -(-len(group) // count)
        found += [tuple(group[i : i + size]) for i in range(0, len(group), size)]
    return [group for group in found if len(group) > 1]
