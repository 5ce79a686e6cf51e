"""From configurations to records: leases, the execution plan, training, and what to do when memory runs out."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Callable, Sequence

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.fused.autotune import members_that_pay
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.store.checkpoints import final_weights
from experiments.lab.store.data_places import located
from experiments.lab.store.execution_plan import company_of, read_plan
from experiments.lab.store.files import StoreError
from experiments.lab.store.leases import clear_record
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import LeaseLost, RunFolder, Watch, open_run
from experiments.lab.training.data import Data, prepare, read
from experiments.lab.training.loop import train_group
from experiments.lab.training.memory import is_out_of_memory, smaller
from experiments.lab.training.outcome import Outcome
from experiments.lab.training.own_task import splits

BUSY = "busy"


def train_runs(configs: Sequence[RunConfig], store: Store, machine: Machine, stop: Callable[[], bool],
               report: Callable[[int], None], watch: Watch | None = None) -> list[str]:
    """Train and record runs, one or several that can be one program; each one's status, or `busy`: of several all that are
    not recorded where another process holds one. Raises `StoreError` where a parent is missing, and what training raises."""
    statuses: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        folders: list[RunFolder] = []
        for config in configs:
            folder = None if _recorded(config, store, statuses) else open_run(store, config, machine, stop, report, watch)
            if folder is None:
                statuses.setdefault(config.run_id, BUSY)
                continue
            stack.callback(folder.close)
            if not _recorded(config, store, statuses):  # while we waited for the lease
                folders.append(folder)
        if BUSY in statuses.values():
            return [statuses.get(config.run_id, BUSY) for config in configs]
        if folders:
            name = located(folders[0].config, machine.data_dir, store.root)
            data = prepare(folders[0].config, machine, read(name, machine.data_dir))
            ids = [folder.config.run_id for folder in folders]
            begun = len(ids) > 1 and company_of(store, ids[0]) == ids
            size = len(ids) if begun else members_that_pay([folder.config for folder in folders], machine, data)
            for first in range(0, len(folders), size):
                _train(folders[first : first + size], store, machine, data, statuses)
    return [statuses[config.run_id] for config in configs]


def _recorded(config: RunConfig, store: Store, statuses: dict[str, str]) -> bool:
    if (summary := store.summary(config.run_id)) is None:
        return False
    clear_record(store.folder(config.run_id))
    statuses[config.run_id] = summary["status"]
    return True


def _train(folders: list[RunFolder], store: Store, machine: Machine, data: Data, statuses: dict[str, str]) -> None:
    """One program until all its runs are recorded, in smaller micro-batches where memory runs out."""
    parents = {folder.config.run_id: _parent(folder.config, store) for folder in folders}
    members = [folder.config.run_id for folder in folders]
    plan = read_plan(folders[0].path) or {}
    # what was begun in other company, or nobody knows how, begins anew: two roundings would be mixed
    anew = {f.config.run_id: company_of(store, f.config.run_id) != members for f in folders}
    if not any(anew.values()):
        machine = dataclasses.replace(machine, micro_batch=plan.get("micro_batch") or machine.micro_batch)

    def ended(index: int, outcome: Outcome) -> None:
        folder = left[index]
        statuses[folder.config.run_id] = outcome.status if folder.publish(outcome) else BUSY

    while left := [folder for folder in folders if folder.config.run_id not in statuses]:
        ids = [folder.config.run_id for folder in left]
        configs = [folder.config for folder in left]
        try:
            for folder in left:
                folder.machine, folder.members = machine, len(left)
                folder.begin(members, machine.micro_batch, anew=anew.pop(folder.config.run_id, False))
            train_group(configs, machine, data, left, [parents[run_id] for run_id in ids], ended, fused_engine)
        except LeaseLost:
            statuses |= {run_id: BUSY for run_id in ids if run_id not in statuses}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = smaller(configs[0], machine.micro_batch) if splits(configs[0], data) else None
            if size is None:
                raise
            machine = dataclasses.replace(machine, micro_batch=size)
            said = f"out of memory: {', '.join(run_id[:8] for run_id in ids)} goes on in micro-batches of {size}"
            print(said, file=sys.stderr, flush=True)
            gc.collect()


def _parent(config: RunConfig, store: Store) -> dict | None:
    if config.parent is None:
        return None
    if not store.finished(config.parent):
        raise StoreError(f"the parent run {config.parent} has no weights in {store.root}; run it first")
    return final_weights(store, config.parent)
