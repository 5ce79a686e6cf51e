"""From a study to the runs it needs: stages resolved as far as the store's records allow."""

from __future__ import annotations

import contextlib
import gc
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import experiments
from experiments.lab.config import ConfigError, RunConfig, TrainDraw
from experiments.lab.datasets import FOLDER_PREFIX, IN_FILE_ORDER
from experiments.lab.moved import content_of
from experiments.lab.store import Store
from experiments.lab.study import Measure, Pair, Record, Request, Stage, Study


class UsageError(Exception):
    """The command asks for something that does not exist; the message is one sentence with the remedy."""


def studies() -> dict[str, Study]:
    """Every study, by name: each module of `experiments` that declares a `STUDY`."""
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(experiments.__path__) if not info.ispkg):
        if module != "__main__":
            study = getattr(importlib.import_module(f"experiments.{module}"), "STUDY", None)
            if study is not None:
                found[study.name] = study
    return found


def find_study(name: str) -> Study:
    known = studies()
    if name not in known:
        raise UsageError(f"there is no study {name!r}; the studies are {', '.join(known)}")
    return known[name]


def check_scale(study: Study, scale: str) -> None:
    names = [s.name for s in study.scales]
    if scale not in names:
        raise UsageError(f"study {study.name} has no scale {scale!r}; its scales are {', '.join(names)}")


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan. `runs` is None while it waits for records of earlier stages."""

    stage: Stage
    runs: tuple[RunConfig, ...] | None
    records: tuple[Record | None, ...]
    """one per run, None where it is not finished"""
    at_most: int

    @property
    def complete(self) -> bool:
        return self.runs is not None and all(record is not None for record in self.records)

    def missing(self) -> tuple[RunConfig, ...]:
        return tuple(c for c, record in zip(self.runs or (), self.records, strict=True) if record is None)

    def pairs(self, request: Request) -> Sequence[Pair]:
        return self.stage.pairs(request, self.runs) if self.runs is not None else ()


def plan(study: Study, request: Request, store: Store, data_dir: Path | None = None) -> tuple[PlannedStage, ...]:
    """Every stage of `study`, each resolved once all stages before it are complete. Torch-free and without side effects.

    Raises `ConfigError` where a stage declares a run that cannot exist, and `UsageError` for an unknown scale.
    """
    check_scale(study, request.scale)
    earlier: list[Record] = []
    hashes: dict[str, str | None] = {}
    ids: dict[str, str] = {}
    stages: list[PlannedStage] = []
    for stage in study.stages:
        if stages and not stages[-1].complete:
            bound = stage.at_most(request) if stage.at_most else len(stage.runs(request, ()))
            stages.append(PlannedStage(stage, None, (), bound))
            continue
        with _no_collections():
            declared = stage.runs(request, tuple(earlier))
            runs = tuple(dict.fromkeys(_recorded_as(c, data_dir, store, hashes, ids) for c in declared))
            records = tuple(store.records(runs))
        stages.append(PlannedStage(stage, runs, records, len(runs)))
        earlier += [record for record in records if record is not None]
    return tuple(stages)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Configs and records hold no cycles, and looking for some in 100,000 of them takes a fifth of a plan's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _recorded_as(config: RunConfig, data_dir: Path | None, store: Store, hashes: dict[str, str | None],
                 ids: dict[str, str]) -> RunConfig:  # fmt: skip
    """`identified`, of a declared parent's run too; `ids` remembers as what each declared run is recorded, by their ids."""
    found = identified(config, data_dir, store, hashes)
    if found.parent in ids:
        found = found.replace(parent=ids[found.parent])
    if found is not config:
        ids[config.run_id] = found.run_id
    return found


def identified(config: RunConfig, data_dir: Path | None, store: Store, hashes: dict[str, str | None]) -> RunConfig:
    """The config as it is recorded: with the content hash of an unnamed data set, and with examples in random order except in
    data sets whose published results are otherwise. `hashes` remembers those read already."""
    if config.dataset in IN_FILE_ORDER:
        return config
    config = config if config.train_draw is TrainDraw.FIXED else config.replace(train_draw=TrainDraw.FIXED)
    if not config.dataset.startswith(FOLDER_PREFIX) or config.data_sha256 is not None:
        return config
    if config.dataset not in hashes:
        hashes[config.dataset] = content_of(config.dataset, data_dir, store.root)
    return config.replace(data_sha256=hashes[config.dataset])


def check_fits(config: RunConfig, available: int) -> int:
    """Training examples of `config` in a data set with `available` of them; raises `ConfigError` where it is too small."""
    n_train = available - config.n_validation if config.n_train is None else config.n_train
    if not 0 < n_train <= available - config.n_validation:
        raise ConfigError(
            f"n_train {n_train} and n_validation {config.n_validation} exceed the {available} training examples of "
            f"{config.dataset}; choose smaller ones"
        )
    if config.batch_size > n_train:
        raise ConfigError(
            f"batch_size {config.batch_size} exceeds the {n_train} training examples; choose at most {n_train}"
        )
    if (largest := config.batch_size * config.batch_growth**2) > n_train:
        raise ConfigError(
            f"batch_size {config.batch_size} grows to {largest}, more than the {n_train} training examples; choose a smaller one"
        )
    return n_train


def measurements_due(stage: PlannedStage, request: Request, store: Store) -> list[tuple[Measure, tuple[str, ...]]]:
    """Measurements declared for finished, not diverged runs of `stage` and not yet in the store."""
    due = [
        (measure, (config.run_id,))
        for config, record in zip(stage.runs or (), stage.records, strict=True)
        if record is not None and record.status != "diverged"
        for measure in stage.stage.measures(config)
    ]
    diverged = {
        c.run_id for c, r in zip(stage.runs or (), stage.records, strict=True) if r is None or r.status == "diverged"
    }
    due += [
        (pair.measure, (pair.first.run_id, pair.second.run_id))
        for pair in stage.pairs(request)
        if not diverged & {pair.first.run_id, pair.second.run_id}
    ]
    return [(measure, runs) for measure, runs in due if not store.measured(measure, runs)]


def select(configs: Sequence[RunConfig], where: Sequence[str]) -> tuple[RunConfig, ...]:
    """The configs whose fields equal every FIELD=VALUE of `where`; raises `ConfigError` for an unknown field."""
    kept = list(configs)
    for condition in where:
        name, separator, value = condition.partition("=")
        if not separator:
            raise ConfigError(f"--where takes FIELD=VALUE, not {condition!r}; for example batch_size=500")
        if name not in {field.name for field in fields(RunConfig)}:
            raise ConfigError(f"--where names {name!r}, which is no field of a run; see train --help for the fields")
        kept = [c for c in kept if _same(getattr(c, name), value)]
    return tuple(kept)


def _same(value: object, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return str(value).lower() == text.lower()
    if isinstance(value, (int, float)):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    return str(value) == text
