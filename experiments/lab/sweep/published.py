"""Published records as runs of a store, so that a study goes on from them.

figures/<study>/<scale>/ holds what every verdict, table and figure is made of, and no weights. A run taken from there counts
as finished; it cannot be measured again or be continued, and its summary, provenance and measurements say where it is from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.declare.config import SCIENCE_VERSION, RunConfig
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.study import Measure
from experiments.lab.declare.vocabulary import SUMMARY
from experiments.lab.store import published_settings as settings
from experiments.lab.store.check import Findings, check_run
from experiments.lab.store.checksums import BITS, LIGHT, PUBLISHED, SCHEMA, sha256_of, with_checksum
from experiments.lab.store.files import StoreError, finite_or_null, to_json, writing
from experiments.lab.store.history import COLUMNS, columns, pack
from experiments.lab.store.records import Store, measurement_file
from experiments.lab.store.transfer import adopt

TABLES = ("runs", "history", "measurements", "correct")
HISTORY = ("kind", "step", "examples", "epoch", "loss", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
MEASURED = ("value", "standard_error", "residual", "products", "examples", "bn_mode", "dtype", "seed", "status")

Row = dict[str, Any]


def import_published(store: Store, figures: Path, study: str | None = None, scale: str | None = None) -> tuple[int, int]:
    """Take the runs published below `figures`, of one study or of all, that `store` has not begun.

    Returns how many were taken, and how many were left as they are: runs that are finished or begun here. Raises
    `UsageError` where nothing is published under these names, and `StoreError` for records that are damaged or another
    batchlab's: nothing of such a scale is taken.
    """
    folders = [path.parent for path in sorted(figures.glob(f"*/*/{settings.FILE}"))]
    chosen = [f for f in folders if study in (None, f.parent.name) and scale in (None, f.name)]
    if not chosen:
        of = "" if study is None else f" of {study}"
        known = ", ".join(f"{f.parent.name} {f.name}" for f in folders) or "none, a clone of the project has them"
        raise UsageError(f"nothing{of} is published{'' if scale is None else f' at scale {scale}'}; published are {known}")
    counts = [_import(store, folder) for folder in chosen]
    return sum(taken for taken, _ in counts), sum(there - taken for taken, there in counts)


def bits_of(content: bytes) -> Row:
    """What `BITS` says: a row of the table `correct` without its run. Raises KeyError or SafetensorError for anything else."""
    from safetensors.numpy import load

    arrays = load(content)
    return {"test_set": bytes(arrays["test_set"]).decode(), "examples": int(arrays["examples"][0]), "bits": bytes(arrays["bits"])}


def _import(store: Store, folder: Path) -> tuple[int, int]:
    """How many of the published runs were taken, and how many there are."""
    root = store.root / f".import.{secrets.token_hex(8)}"
    try:
        with writing(root):
            staged = Store(root)
            there = _stage(staged, store, folder)
            return adopt(staged, store), there
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _stage(staged: Store, store: Store, folder: Path) -> int:
    """Write the records of `folder` that `store` lacks into `staged`, and check them there; returns how many there are."""
    configs = {config.run_id: config for _, config in settings.read(folder)}
    if other := [i for i, config in configs.items() if RunConfig.from_dict(config.full_dict()).run_id != i]:
        raise StoreError(f"run {other[0]} of {folder} is of another batchlab, where its settings have another id; use that one")
    runs, history, measurements, correct = (_rows(folder / f"{name}.parquet") for name in TABLES)
    source = {"study": folder.parent.name, "scale": folder.name, "runs_sha256": sha256_of(folder / "runs.parquet")}
    finished = {row["run_id"]: row for row in runs if row["run_id"] in configs}
    wanted = {run_id for run_id in finished if not store.folder(run_id).exists()}
    _refuse_half_pairs(measurements, finished.keys() - wanted, store, folder)
    rows_of: dict[str, list[Row]] = {}
    for row in history:
        rows_of.setdefault(row["run_id"], []).append({name: row[name] for name in HISTORY if row[name] is not None})
    bits = {row["run_id"]: row for row in correct}
    for run_id in sorted(wanted):
        (staged.folder(run_id) / "measurements").mkdir(parents=True)
        contents = _contents(configs[run_id], finished[run_id], rows_of.get(run_id, []), bits.get(run_id), source)
        for name, content in contents.items():
            (staged.folder(run_id) / name).write_bytes(content)
    for row in measurements:
        ids = [run_id for run_id in (row["run_id"], row["run_id_b"]) if run_id is not None]
        if _theirs(ids, wanted, store):
            options = json.loads(row["options"])
            result = {name: row[name] for name in MEASURED} | {"details": json.loads(row["details"]), PUBLISHED: source}
            measure = Measure(row["metric"], tuple(sorted(options.items())))
            staged.measurement_path(measure, ids).write_bytes(measurement_file(measure, ids, result))
    os.sync()  # all files in one go, before any has its place: a thousand of them one by one take ten times as long
    found = Findings()
    for run_id in sorted(wanted):
        check_run(staged, run_id, found)
    if found.damaged:
        raise StoreError(f"{folder} is damaged ({found.damaged[0][1]}); fetch it again")
    return len(finished)


def _refuse_half_pairs(measurements: list[Row], here: Collection[str], store: Store, folder: Path) -> None:
    """Raise `StoreError` where a pair would be of a run of this store and of a published one, which has no weights to measure."""
    own = {run_id for run_id in here if not (store.summary(run_id) or {}).get(PUBLISHED)}
    for row in measurements:
        if row["run_id_b"] is not None and len(own & {row["run_id"], row["run_id_b"]}) == 1:
            raise StoreError(
                f"{folder.parent.name} {folder.name} measures pairs of runs, and {store.root} has a run of its own in one: "
                "import into a new store"
            )


def _theirs(ids: Collection[str], wanted: Collection[str], store: Store) -> bool:
    """Whether a measurement is of published weights alone: one of a pair may have been trained here."""
    new = [run_id in wanted for run_id in ids]
    return any(new) and all(now or (store.summary(i) or {}).get(PUBLISHED) for i, now in zip(ids, new, strict=True))


def _contents(config: RunConfig, row: Row, rows: list[Row], bits: Row | None, source: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of one run, by name; the summary stands for the others."""
    process = {name: row[name] for name in ("commit", "device", "hardware", "seconds")}
    contents = {
        "config.json": to_json({"science_version": SCIENCE_VERSION, **config.to_dict()}),
        "provenance.json": with_checksum(to_json(finite_or_null({"schema": SCHEMA, PUBLISHED: source, "processes": [process]}))),
        "history.jsonl": b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in rows),
        COLUMNS: pack(columns(rows)),
    }
    if bits is not None:
        from safetensors.numpy import save

        texts = {"bits": bits["bits"], "test_set": bits["test_set"].encode()}
        arrays = {name: np.frombuffer(content, np.uint8) for name, content in texts.items()}
        contents[BITS] = save(arrays | {"examples": np.array([bits["examples"]])})
    summary = {"schema": SCHEMA, "run_id": config.run_id, **{name: row[name] for name in SUMMARY},
               LIGHT: True, PUBLISHED: source, "files": {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()}}
    return contents | {"summary.json": with_checksum(to_json(finite_or_null(summary)))}


def _rows(path: Path) -> list[Row]:
    """Rows of a Parquet file, missing values as None."""
    try:
        import pyarrow.parquet as pq
        from pyarrow import ArrowException
    except ImportError as error:
        install = "python -m pip install 'batchlab[analysis]'"
        raise StoreError(f"published records are Parquet, which needs pyarrow: {install}") from error
    try:
        rows = pq.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise StoreError(f"{path} cannot be read ({str(error).splitlines()[0]}); fetch it again") from error
    return [{name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()} for row in rows]
