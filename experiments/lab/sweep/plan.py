"""From a study to the runs it needs: stages resolved as far as the store's records allow."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

from experiments.lab.datasets import IN_FILE_ORDER
from experiments.lab.declare.config import OWN, RunConfig, TrainDraw
from experiments.lab.declare.config_checks import shown
from experiments.lab.declare.errors import ConfigError, UsageError
from experiments.lab.declare.finding import Broken, broken_by, file_of, line_of, search
from experiments.lab.declare.own_code import is_own, is_own_data, source_sha256
from experiments.lab.declare.own_settings import Known
from experiments.lab.declare.settings import with_settings
from experiments.lab.declare.study import Measure, Pair, Record, Request, Stage, Study
from experiments.lab.declare.study_checks import Wrong, wrong_names, wrong_runs
from experiments.lab.declare.vocabulary import unknown
from experiments.lab.store import sweeps
from experiments.lab.store.data_places import content_of
from experiments.lab.store.records import Store


class BrokenStudyError(UsageError):
    """A study cannot be used; the message is one sentence with its file, the line and the reason."""

    def __init__(self, broken: Broken) -> None:
        super().__init__(broken.sentence)
        self.broken = broken


def folder_of_studies(given: Path | None) -> Path | None:
    """The user's folder of studies, as given or as BATCHLAB_STUDIES says; raises `UsageError` where it does not exist."""
    named = os.environ.get("BATCHLAB_STUDIES", "") if given is None else str(given)
    if not named:
        return None
    folder = Path(os.path.expanduser(named))
    if not folder.is_dir():
        raise UsageError(f"the folder of studies {folder} does not exist; give another --studies")
    return folder.resolve()


def find_study(name: str, folder: Path | None = None, root: Path | None = None) -> Study:
    """The study of that name, or the sweep that the store at `root` keeps under it.

    Raises `UsageError` where there is none, `BrokenStudyError` where it declares what does not exist.
    """
    found = search(folder)
    if name not in found.studies:
        if root is not None and (sweep := sweeps.read(root, name)) is not None:
            return sweep.study()
        for broken in found.broken:
            if name in (broken.study, Path(broken.file).stem):
                raise BrokenStudyError(broken)
        unread = "".join(f"; {broken.sentence}" for broken in found.broken)
        known = [*found.studies, *(() if root is None else sweeps.names(root))]
        raise UsageError(f"{unknown('study', name, known)}; `python -m experiments` lists the studies{unread}")
    check_names(found.studies[name])
    return found.studies[name]


def check_names(study: Study) -> None:
    """Raise `BrokenStudyError` where `study` names what does not exist."""
    _refuse(study, wrong_names(study))


def _refuse(study: Study, found: Iterator[Wrong]) -> None:
    with declared_by(study):
        wrong = next(found, None)
    if wrong is not None:
        file = file_of(study)
        raise BrokenStudyError(Broken(study.name, str(file or study.name), line_of(file, wrong.word), wrong.sentence))


@contextlib.contextmanager
def declared_by(study: Study) -> Iterator[None]:
    """What a function of the study raises becomes `BrokenStudyError`: it is the study's fault, and no other's."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise BrokenStudyError(broken_by(error, file_of(study), study.name)) from error


def check_scale(study: Study, scale: str) -> None:
    names = [s.name for s in study.scales]
    if scale not in names:
        near = "".join(f", did you mean {name!r}?" for name in get_close_matches(scale, names, 1))
        raise UsageError(f"study {study.name} has no scale {scale!r}{near}; its scales are {', '.join(names)}")


def scale_of(study: Study, scale: str | None) -> str:
    """The scale asked for, or the study's only one; raises `UsageError` where nothing says which."""
    names = [s.name for s in study.scales]
    if scale is None and len(names) > 1:
        raise UsageError(f"study {study.name} has several scales; name one with --scale: {', '.join(names)}")
    return names[0] if scale is None else scale


def asked_for(study: Study, scale: str, given: Sequence[str], known: Known | None = None) -> tuple[Study, str]:
    """`study` with the settings of `scale` except for every FIELD=VALUE given, and the name that these have."""
    check_scale(study, scale)
    found = with_settings(study, scale, given, known)
    if found is study:
        return study, scale
    check_names(found)
    return found, found.scales[0].name


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan. `runs` is None while it waits for records of earlier stages."""

    stage: Stage
    request: Request
    runs: tuple[RunConfig, ...] | None
    records: tuple[Record | None, ...]
    """one per run, None where it is not finished"""
    at_most: int

    @property
    def complete(self) -> bool:
        return self.runs is not None and all(record is not None for record in self.records)

    def missing(self) -> tuple[RunConfig, ...]:
        return tuple(c for c, record in zip(self.runs or (), self.records, strict=True) if record is None)

    def measures(self, config: RunConfig) -> Sequence[Measure]:
        return self.stage.measures_of(self.request, config)

    def pairs(self, request: Request) -> Sequence[Pair]:
        return self.stage.pairs_of(request, self.runs) if self.runs is not None else ()


def plan(study: Study, request: Request, store: Store, data_dir: Path | None = None,
         known: Mapping[str, str | None] | None = None) -> tuple[PlannedStage, ...]:
    """Every stage of `study`, each resolved once all stages before it are complete. Torch-free and without side effects.

    `known` are hashes of the user's code and data, by `PART NAME`, that need not be read.
    Raises `BrokenStudyError` where a function of the study fails, as by declaring a run that cannot exist (`ConfigError` where
    the settings are the user's), and where the runs known so far could not be measured, or would leave a claim without an
    answer; `UsageError` for an unknown scale.
    """
    check_scale(study, request.scale)
    earlier: list[Record] = []
    hashes = dict(known or {})
    ids: dict[str, str] = {}
    stages: list[PlannedStage] = []
    for stage in study.stages:
        if stages and not stages[-1].complete:
            with _asked_of(study, request):
                bound = stage.bound(request)
            stages.append(PlannedStage(stage, request, None, (), bound))
            continue
        with _no_collections():
            declared = _declared(study, stage, request, earlier)
            runs = tuple(dict.fromkeys(_recorded_as(c, data_dir, store, hashes, ids) for c in declared))
            records = tuple(store.records(runs))
        stages.append(PlannedStage(stage, request, runs, records, len(runs)))
        earlier += [record for record in records if record is not None]
    _refuse(study, wrong_runs(study, request, [(stage.stage, stage.runs) for stage in stages if stage.runs is not None]))
    return tuple(stages)


@contextlib.contextmanager
def _asked_of(study: Study, request: Request) -> Iterator[None]:
    """As `declared_by`, except for a `ConfigError` where settings are the user's choice, not the study's."""
    try:
        with declared_by(study):
            yield
    except BrokenStudyError as broken:
        if study.scale(request.scale).of and isinstance(broken.__cause__, ConfigError):
            raise broken.__cause__ from None
        raise


def _declared(study: Study, stage: Stage, request: Request, earlier: Sequence[Record]) -> list[RunConfig]:
    with _asked_of(study, request):
        runs = list(stage.runs_of(request, tuple(earlier)))
    if stray := [run for run in runs if not isinstance(run, RunConfig)]:
        _refuse(study, iter([Wrong(f"stage {stage.name}: runs gives {shown(stray[0])}, but must give a list of RunConfig")]))
    return runs


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
                 ids: dict[str, str]) -> RunConfig:
    """`identified`, of a declared parent's run too; `ids` remembers as what each declared run is recorded, by their ids."""
    found = identified(config, data_dir, store, hashes)
    if found.parent in ids:
        found = found.replace(parent=ids[found.parent])
    if found is not config:
        ids[config.run_id] = found.run_id
    return found


def identified(config: RunConfig, data_dir: Path | None, store: Store, hashes: dict[str, str | None]) -> RunConfig:
    """The config as it is recorded: with the hashes of a user's own code and data, and with examples in random order except in
    data sets whose published results are otherwise. `hashes` remembers those read already."""
    for part in OWN:
        name, key = getattr(config, part), f"{part}_sha256"
        if is_own(name) and getattr(config, key) is None:
            if f"{part} {name}" not in hashes:
                hashes[f"{part} {name}"] = source_sha256(name, f"--{part}")
            config = config.replace(**{key: hashes[f"{part} {name}"]})
    if config.dataset in IN_FILE_ORDER:
        return config
    config = config if config.train_draw is TrainDraw.FIXED else config.replace(train_draw=TrainDraw.FIXED)
    if not is_own_data(config.dataset) or config.data_sha256 is not None:
        return config
    if f"data {config.dataset}" not in hashes:
        hashes[f"data {config.dataset}"] = content_of(config.dataset, data_dir, store.root)
    return config.replace(data_sha256=hashes[f"data {config.dataset}"])


def measurements_due(stage: PlannedStage, request: Request, store: Store) -> list[tuple[Measure, tuple[str, ...]]]:
    """Measurements declared for finished, not diverged runs of `stage` and not yet in the store."""
    due = [(measure, (config.run_id,))
           for config, record in zip(stage.runs or (), stage.records, strict=True)
           if record is not None and record.status != "diverged"
           for measure in stage.measures(config)]
    diverged = {c.run_id for c, r in zip(stage.runs or (), stage.records, strict=True) if r is None or r.status == "diverged"}
    due += [(pair.measure, (pair.first.run_id, pair.second.run_id))
            for pair in stage.pairs(request)
            if not diverged & {pair.first.run_id, pair.second.run_id}]
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
