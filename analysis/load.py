"""Records as tidy tables, from a store or from what the project publishes; everything after this file is the same for both.

runs           one row a finished run of the study: study, scale, stage, run_id, every field of its RunConfig, every
               scalar of its summary. A config field that shares its name with a summary value (train_loss, steps,
               epochs) is called target_train_loss, target_steps, target_epochs: there it is what was asked for.
history        one row per observation, up to the step the run ended at
measurements   one row per measurement that the study declares; run_id_b is the second run of a pair, else missing
correct        one row per run that left predictions: `test_set` is a hash of the labels, `bits` holds a bit per test example, in
               their order, 1 where the run was right. Published only of runs that a verdict resamples over test examples
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load

from analysis import families
from analysis.cluster import CLUSTER
from analysis.history import frame
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.study import Measure, Record, Request, Stage, Study
from experiments.lab.declare.vocabulary import SUMMARY
from experiments.lab.store import published_settings as settings
from experiments.lab.store.checksums import BITS, PUBLISHED
from experiments.lab.store.files import REPAIR, StoreError
from experiments.lab.store.records import Store
from experiments.lab.store.sweeps import SCALE
from experiments.lab.sweep.own_tasks import Noted
from experiments.lab.sweep.plan import PlannedStage, check_scale, find_study, plan
from experiments.lab.sweep.published import bits_of

if TYPE_CHECKING:
    from experiments.lab.sweep.in_process import Runs

TABLES = ("runs", "history", "measurements", "correct")

_DTYPES = {"int": "int64", "int | None": "Int64", "float": "float64", "float | None": "float64", "bool": "bool"}


def config_column(field: str) -> str:
    """Column of a config field in the runs table."""
    return f"target_{field}" if field in SUMMARY else field


RUNS = {
    "study": "str", "scale": "str", "stage": "str", "run_id": "str",
    **{config_column(f.name): _DTYPES.get(str(f.type), "str") for f in dataclasses.fields(RunConfig)},
    **SUMMARY,
}
DEFAULTS = {
    config_column(f.name): str(f.default) if isinstance(f.default, str) else f.default
    for f in dataclasses.fields(RunConfig) if f.default is not dataclasses.MISSING
}
"""what a config column holds in tables made before the field existed"""
HISTORY = {
    "run_id": "str", "kind": "str", "step": "int64", "examples": "int64", "epoch": "float64", "loss": "float64",
    "lr": "float64", "train_loss": "float64", "train_accuracy": "float64", "test_loss": "float64",
    "test_accuracy": "float64",
}
MEASUREMENTS = {
    "run_id": "str", "run_id_b": "str", "metric": "str", "options": "str", "value": "float64",
    "standard_error": "float64", "residual": "float64", "products": "Int64", "examples": "Int64", "bn_mode": "str",
    "dtype": "str", "seed": "Int64", "status": "str", "details": "str",
}
CORRECT = {"run_id": "str", "test_set": "str", "examples": "int64", "bits": "object"}


@dataclass(frozen=True)
class Planned:
    """A run that the study declares, finished or not, with the measurements it is to have."""

    stage: str
    config: RunConfig
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Tables:
    """The records of one study at one scale, and what the study declares of it."""

    study: Study
    scale: str
    source: str
    """`store` or `published`"""
    planned: tuple[Planned, ...]
    pending: int
    """upper bound of the runs in stages that wait for earlier ones"""
    missing_measurements: int
    runs: pd.DataFrame
    history: pd.DataFrame
    measurements: pd.DataFrame
    correct: pd.DataFrame
    imported: frozenset[str] = frozenset()
    """of a store: the runs that are published records, imported and not computed there"""

    @property
    def imported_words(self) -> str:
        """How many runs were not computed in the store, in a sentence."""
        return f"{len(self.imported)} of {self.runs['run_id'].nunique()} runs are published records, not computed in this store."

    @property
    def missing_runs(self) -> int:
        """Declared runs that are not finished, those of waiting stages included."""
        return len(self.planned) - len(self.runs) + self.pending

    @property
    def digest(self) -> str:
        """SHA-256 over the runs, history and measurements: what tables, verdicts and figures are made of.

        Config fields at their default in every run do not count, so that a new field leaves it as it was.
        """
        idle = [name for name, default in DEFAULTS.items() if _all_equal(self.runs[name], default)]
        sha = hashlib.sha256()
        for table in (self.runs.drop(columns=idle), self.history, self.measurements):
            sha.update(table.to_csv(index=False).encode())
        return sha.hexdigest()


def find(study: str, scale: str) -> Study:
    """The study by name; raises `UsageError` for an unknown study or scale."""
    found = find_study(study)
    check_scale(found, scale)
    check_families(found)
    return found


def check_families(study: Study) -> None:
    """Raise `UsageError` for a claim whose family of runs has no such statistic."""
    for claim in study.claims:
        try:
            family = claim.contrast.family
            if family is not None:
                families.check(family)
            clustered = family is not None and bool(family.clusters)
            if clustered != (claim.test == CLUSTER) or (family is not None and clustered and family.by):
                raise ValueError(f"clusters belong to the test {CLUSTER} of one family, by nothing: give both or neither")
        except ValueError as error:
            raise UsageError(f"claim {claim.id} of {study.name}: {error}") from error


def stages_in(study: Study, request: Request, store: Store) -> tuple[PlannedStage, ...]:
    """What `study` declares for `request`, with the records that `store` has of it; raises `UsageError` where there is none."""
    if not (store.root / "runs").is_dir():
        asked = study.scale(request.scale).asked
        raise UsageError(
            f"there is no store at {store.root}; train with `python -m experiments run {study.name} --scale {asked} "
            f"--store {store.root}`, or read the published results with --published"
        )
    return plan(study, request, store, known=Noted(store).hashes)


def from_store(study: Study, scale: str, store: Store, request: Request | None = None) -> Tables:
    """The finished runs and measurements that `study` declares at `scale`; others in the store are not looked at.

    `request` asks for other runs than those that verdicts are made of: pilots.
    """
    request = request or Request(scale)
    stages = stages_in(study, request, store)
    records = [(stage.stage.name, c, r) for stage in stages for c, r in _cells(stage) if r is not None]
    once = {c.run_id: r for _, c, r in records}  # two stages may declare one run
    measured = [(m, ids, store.measurement(m, ids)) for m, ids in _declared(stages, request)]
    tables = _assemble(
        study, scale, "store", stages, sum(found is None for _, _, found in measured),
        runs=[_run_row(study, scale, stage, config, record) for stage, config, record in records],
        history=frame(store, list(once.values())),
        measurements=[_measurement_row(ids, found) for _, ids, found in measured if found is not None],
        correct=_correct(store, list(once.values())),
    )
    return dataclasses.replace(tables, imported=frozenset(i for i, record in once.items() if record.values.get(PUBLISHED)))


def of_sweep(runs: Runs) -> Tables:
    """The records of a sweep that was trained from Python: `runs`, `history` and the rest as pandas frames."""
    return from_store(runs.study, SCALE, Store(runs.store, create=False))


def from_published(folder: Path, study: Study | None = None) -> Tables:
    """The published tables of `folder` (figures/<study>/<scale>); raises `UsageError` where there are none.

    `study` is theirs (default: the project's own of that name).
    """
    folder = Path(folder)
    if absent := [name for name in TABLES if not (folder / f"{name}.parquet").is_file()]:
        raise UsageError(f"{folder} has no {absent[0]}.parquet; `python -m analysis publish` writes it")
    try:
        frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise UsageError(f"{folder} is damaged ({error}); `python -m analysis publish` writes it again") from error
    names = frames["runs"][["study", "scale"]].drop_duplicates()
    if len(names) != 1:
        raise UsageError(f"{folder}/runs.parquet holds {len(names)} studies and scales instead of one; publish it again")
    scale = str(names["scale"].iloc[0])
    name = str(names["study"].iloc[0])
    if study is not None and study.name != name:
        raise UsageError(f"{folder} holds the study {name} instead of {study.name}; publish {study.name} again")
    study = study or find(name, scale)
    request = Request(scale)
    stages = _published_stages(study, folder, request, Published(frames["runs"]))
    have = {(row["metric"], row["run_id"], row["run_id_b"]) for row in _rows(frames["measurements"])}
    declared = [(m.metric, ids[0], ids[1] if len(ids) > 1 else None) for m, ids in _declared(stages, request)]
    return _assemble(study, scale, "published", stages, sum(key not in have for key in declared), **frames)


def _published_stages(study: Study, folder: Path, request: Request, records: Published) -> tuple[PlannedStage, ...]:
    """The stages as they were planned when `folder` was published, not as `study` would plan them today."""
    runs: dict[str, list[RunConfig]] = {}
    for name, config in settings.read(folder):
        runs.setdefault(name, []).append(config)
    declared = {stage.name: stage for stage in study.stages}
    return tuple(
        PlannedStage(declared.get(name) or Stage(name, lambda: ()), request, tuple(of), tuple(records.records(of)), len(of))
        for name, of in runs.items()
    )


class Published:
    """Answers `plan` from the runs table as a store answers from its folders."""

    def __init__(self, runs: pd.DataFrame) -> None:
        self._rows = {row["run_id"]: row for row in _rows(runs)}

    def records(self, configs: Sequence[RunConfig]) -> list[Record | None]:
        rows = [(config, self._rows.get(config.run_id)) for config in configs]
        return [
            None if row is None else Record(config, row["status"], {name: row[name] for name in SUMMARY})
            for config, row in rows
        ]


def _assemble(
    study: Study, scale: str, source: str, stages: Sequence[PlannedStage], missing_measurements: int, *,
    runs: Any, history: Any, measurements: Any, correct: Any,
) -> Tables:
    planned = tuple(
        Planned(stage.stage.name, config, tuple(m.metric for m in stage.measures(config)))
        for stage in stages
        for config in stage.runs or ()
    )
    known = {p.config.run_id for p in planned}
    runs = pd.DataFrame(runs)
    runs = _tidy(runs.assign(**{name: DEFAULTS[name] for name in DEFAULTS if name not in runs}), RUNS, ["stage", "run_id"])
    return Tables(
        study=study, scale=scale, source=source, planned=planned,
        pending=sum(stage.at_most for stage in stages if stage.runs is None),
        missing_measurements=missing_measurements,
        runs=runs[runs["run_id"].isin(known)].reset_index(drop=True),
        history=_tidy(history, HISTORY, ["run_id", "step", "kind"]),
        measurements=_tidy(measurements, MEASUREMENTS, ["metric", "run_id", "run_id_b", "options"]),
        correct=_tidy(correct, CORRECT, ["run_id"]),
    )


def _tidy(rows: Any, dtypes: dict[str, str], order: list[str]) -> pd.DataFrame:
    """Rows as a frame with exactly these columns and types in one order, so that both sources give equal tables."""
    frame = pd.DataFrame(rows).reindex(columns=list(dtypes)).astype(cast(Any, dtypes))
    return frame.sort_values(order, kind="stable").reset_index(drop=True)


def _all_equal(column: pd.Series, value: Any) -> bool:
    return bool(column.isna().all() if value is None else (column == value).all())


def _cells(stage: PlannedStage) -> Iterator[tuple[RunConfig, Record | None]]:
    return zip(stage.runs or (), stage.records, strict=True)


def _declared(stages: Sequence[PlannedStage], request: Request) -> list[tuple[Measure, tuple[str, ...]]]:
    """Measurements due for the finished, not diverged runs, made or not, each once."""
    found: dict[tuple[Measure, tuple[str, ...]], None] = {}
    for stage in stages:
        usable = {c.run_id for c, record in _cells(stage) if record is not None and record.status != "diverged"}
        for config in stage.runs or ():
            if config.run_id in usable:
                found |= dict.fromkeys((measure, (config.run_id,)) for measure in stage.measures(config))
        for pair in stage.pairs(request):
            if {pair.first.run_id, pair.second.run_id} <= usable:
                found[pair.measure, (pair.first.run_id, pair.second.run_id)] = None
    return list(found)


def _run_row(study: Study, scale: str, stage: str, config: RunConfig, record: Record) -> dict[str, Any]:
    fields = {config_column(name): _plain(value) for name, value in config.full_dict().items()}
    values = {name: record.values.get(name) for name in SUMMARY}
    head = {"study": study.name, "scale": scale, "stage": stage, "run_id": config.run_id}
    return {**head, **fields, **values}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _measurement_row(ids: tuple[str, ...], found: dict[str, Any]) -> dict[str, Any]:
    texts = {name: json.dumps(found.get(name) or {}, sort_keys=True) for name in ("options", "details")}
    return {**found, **texts, "run_id": ids[0], "run_id_b": ids[1] if len(ids) > 1 else None}


def right(correct: pd.DataFrame) -> np.ndarray:
    """Rows of one test set as an array [runs, examples] of 0 and 1."""
    bits = np.array([np.frombuffer(row, np.uint8) for row in correct["bits"]])
    return np.unpackbits(bits, axis=1, count=int(correct["examples"].iloc[0]))


def _correct(store: Store, records: Sequence[Record]) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        run_id = record.config.run_id
        name, read = (BITS, bits_of) if record.values.get(PUBLISHED) else ("predictions.safetensors", _bits)
        if (content := store.recorded(run_id, name, record.values)) is not None:
            try:
                if (bits := read(content)) is not None:
                    rows.append({"run_id": run_id, **bits})
            except (SafetensorError, KeyError) as error:
                raise StoreError(f"{store.folder(run_id)}/{name} is damaged ({error}); {REPAIR}") from error
    return rows


def _bits(predictions: bytes) -> dict[str, Any] | None:
    """None where an example has no one class: of numbers, and of tokens."""
    arrays = load(predictions)
    if arrays.keys() == {"test_loss"} or ("test_label" in arrays and arrays["test_label"].ndim > 1):
        return None
    prediction, label = arrays["test_prediction"], arrays["test_label"]
    test_set = hashlib.sha256(label.astype("<i4").tobytes()).hexdigest()[:16]
    return {"test_set": test_set, "examples": len(label), "bits": np.packbits(prediction == label).tobytes()}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain dicts with missing values as None."""
    return [{str(k): none_if_missing(v) for k, v in row.items()} for row in frame.to_dict("records")]


def none_if_missing(value: Any) -> Any:
    """None for NaN and NA; everything else as it is. Missing is null, never 0."""
    return None if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) else value
