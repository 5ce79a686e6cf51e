"""What a user's own task is like. `Looked` runs their code and notes what it found in the store; `Noted`, for commands that only
read results, takes the notes, and reads data files where the store has none of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.lab.datasets import DataError, Kind, in_files, load
from experiments.lab.declare.config import Budget, Machine, RunConfig
from experiments.lab.declare.own_code import is_own_data
from experiments.lab.declare.own_settings import Facts
from experiments.lab.store.data_places import content_of, located
from experiments.lab.store.records import Store
from experiments.lab.store.task_notes import BUILT_IN, PARTS_OF_TASK, Notes
from experiments.lab.sweep.plan import identified


class Looked:
    """What a task is now."""

    def __init__(self, store: Store, data_dir: Path | None = None) -> None:
        self.store, self.data_dir = store, data_dir
        self.notes = Notes.read(store.root)
        self.hashes: dict[str, str | None] = {}
        """for `plan`"""

    def facts(self, dataset: str) -> Facts:
        if not is_own_data(dataset):
            return BUILT_IN
        sha256 = content_of(dataset, self.data_dir, self.store.root) if in_files(dataset) else None
        here = RunConfig(dataset=dataset, data_sha256=sha256, batch_size=1, lr=1.0, budget=Budget.STEPS, steps=1)
        try:
            found = load(located(here, self.data_dir, self.store.root), self.data_dir)
        except DataError:
            if sha256 is None or self.notes.hashes.get(f"data {dataset}") != sha256:
                raise
            return self.notes.facts(dataset)  # the files are elsewhere, and what they hold is known
        apart = found.validation
        facts = Facts(kind=str(Kind(found.kind)), images=found.train.inputs.ndim == 4, outputs=found.outputs,
                      train=len(found.train.targets), validation=None if apart is None else len(apart.targets))
        self.hashes[f"data {dataset}"] = found.sha256
        self.notes.data[dataset] = dataclasses.asdict(facts)
        return facts

    def initial_loss(self, config: RunConfig) -> float:
        """Measured once: a store keeps it by the id of the run."""
        config = identified(config, self.data_dir, self.store, self.hashes)
        if config.run_id not in self.notes.losses:
            self.notes.losses[config.run_id] = _measured(config, self.data_dir, self.store.root)
        return self.notes.losses[config.run_id]

    def note(self, configs: Sequence[RunConfig]) -> list[str]:
        """Keep in the store what these runs are made of; returns the parts that have changed since it was last kept."""
        changed = []
        for part, field in PARTS_OF_TASK:
            for name, sha256 in {(getattr(config, field), getattr(config, f"{part}_sha256")) for config in configs}:
                if sha256 is not None:
                    before = self.notes.hashes.get(f"{part} {name}")
                    changed += [f"{part} {name}"] if before not in (None, sha256) else []
                    self.notes.hashes[f"{part} {name}"] = self.hashes[f"{part} {name}"] = sha256
        if self.hashes:
            self.notes.write()
        return changed


class Noted(Looked):
    """What a task was when it was last planned."""

    def __init__(self, store: Store, data_dir: Path | None = None) -> None:
        super().__init__(store, data_dir)
        self.hashes |= self.notes.hashes

    def facts(self, dataset: str) -> Facts:
        return super().facts(dataset) if in_files(dataset) and dataset not in self.notes.data else self.notes.facts(dataset)

    def initial_loss(self, config: RunConfig) -> float:
        self.notes.check(config)
        return self.notes.initial_loss(identified(config, self.data_dir, self.store, self.hashes).run_id)


def _measured(config: RunConfig, data_dir: Path | None, root: Path) -> float:
    from experiments.lab.training.data import prepare  # torch
    from experiments.lab.training.initial import initial_model
    from experiments.lab.training.stop_rule import checked_loss

    machine = Machine()
    data = prepare(config, machine, load(located(config, data_dir, root), data_dir))
    return checked_loss(initial_model(config, machine, data), data)
