"""The store: one folder per run, shared by many processes, in which only `summary.json` means finished.

    <store>/runs/<run_id>/config.json          canonical JSON of the RunConfig
                          plan.json            which runs it is one program with, if any
                          provenance.json      versions, machine, commit
                          lease.json           who is computing it now
                          history.jsonl        one row per observation; history.safetensors, the same as columns
                          checkpoint.<k>.safetensors   the last two
                          final.safetensors    weights
                          predictions.safetensors      per test example
                          correct.safetensors          of a published record: which test examples it got right
                          measurements/<id>.json
                          summary.json         written last, atomically, with the SHA-256 of the files above
    <store>/measurements/<id>.json             measurements of pairs of runs
    <store>/damaged/                           what `store check --repair` moved aside
    <store>/data.json                          where data of a known content were last seen on this machine

A summary is published by a hard link, so the first owner wins and a stale one cannot replace it. Where the file system has
none it is renamed under the lock of the run's lease.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lab.declare import vocabulary
from experiments.lab.declare.config import SCIENCE_VERSION, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.study import Measure, Record
from experiments.lab.store.checksums import SCHEMA, checksum_holds, config_id, with_checksum
from experiments.lab.store.files import (
    REPAIR,
    StoreError,
    clear_leftovers,
    finite_or_null,
    parse,
    read_document,
    read_file,
    to_json,
    try_out,
    write_atomic,
    writing,
)

FINISHED = ("done", "diverged", "capped")
IN_WORDS = {"capped": "budget exhausted"}
"""what people read in place of a status; every other one is a word of its own"""


def measurement_id(measure: Measure, run_ids: Sequence[str]) -> str:
    """Name of a measurement: a hash of the metric with its version (from 2 on), its options as they are written, and the runs."""
    metric = vocabulary.metrics().get(measure.metric)
    version = [] if metric is None or metric.version == 1 else [metric.version]
    parts = [measure.metric, list(measure.options), list(run_ids), *version]
    text = json.dumps(parts, sort_keys=True)
    return f"{measure.metric}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def measurement_file(measure: Measure, run_ids: Sequence[str], result: Mapping[str, Any]) -> bytes:
    """The content of a measurement's file."""
    head = {"schema": SCHEMA, "metric": measure.metric, "options": dict(measure.options), "runs": list(run_ids)}
    return with_checksum(to_json(finite_or_null({**head, **result})))


class Store:
    """A folder of runs. Opening creates it, and tries out what a run will do to files in it; raises `StoreError` when that
    cannot be done."""

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.root = Path(root)
        self._runs = f"{self.root}/runs"
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"the store {self.root} is no folder; name one with --store")
        if create:
            try:
                for folder in (self.root / "runs", self.root / "measurements"):
                    folder.mkdir(parents=True, exist_ok=True)
                    try_out(folder)
                    clear_leftovers(folder)
            except OSError as error:
                raise StoreError(
                    f"the store {self.root} cannot be written ({error.strerror or error}); choose another with --store"
                ) from error

    def folder(self, run_id: str) -> Path:
        return self.root / "runs" / run_id

    def finished(self, run_id: str) -> bool:
        return (self.folder(run_id) / "summary.json").exists()

    def summary(self, run_id: str) -> dict[str, Any] | None:
        """The summary of a finished run, or None. Raises `StoreError` when it cannot be read back."""
        path = f"{self._runs}/{run_id}/summary.json"
        content = read_file(path)
        return None if content is None else _summary(path, content)

    def config(self, run_id: str) -> RunConfig | None:
        """The configuration of a run; raises `StoreError` where it is damaged, or another batchlab's."""
        path = self.folder(run_id) / "config.json"
        if (document := read_document(path)) is None:
            return None
        own = config_id(document) == run_id
        try:
            config = RunConfig.from_dict({name: value for name, value in document.items() if name != "science_version"})
        except ConfigError as error:
            said = str(error).partition(";")[0]
            why = f"was written by a newer batchlab ({said}); use that one" if own else f"is damaged ({said}); {REPAIR}"
            raise StoreError(f"{path} {why}") from error
        if config.run_id != run_id and own:
            version = document.get("science_version")
            raise StoreError(
                f"{path.parent} was made under science version {version}, and this is version {SCIENCE_VERSION}: it counts "
                "for nothing here; run its study again"
            )
        if config.run_id != run_id:
            raise StoreError(f"{path} is the configuration of another run; {REPAIR}")
        return config

    def recorded(self, run_id: str, name: str, summary: Mapping[str, Any] | None = None) -> bytes | None:
        """The content of a run's file, None where there is none; raises `StoreError` where the summary of a finished
        run (read here, if it is not given) stands for another content."""
        path = f"{self._runs}/{run_id}/{name}"
        content, summary = read_file(path), self.summary(run_id) if summary is None else summary
        if summary is not None and summary.get("schema", 1) > 1:
            if (sha256 := summary["files"].get(name)) is None:
                return None
            if content is None or hashlib.sha256(content).hexdigest() != sha256:
                raise StoreError(f"{path} is missing or altered; {REPAIR}")
        return content

    def record(self, config: RunConfig) -> Record | None:
        """The record of `config`, None where it is not finished; raises `StoreError` where it is damaged.

        A plan of 100,000 runs wants their states alone: of a summary whose checksum holds the values are parsed when the
        first of them is asked for.
        """
        path = f"{self._runs}/{config.run_id}/summary.json"
        content = read_file(path)
        if content is None:
            return None
        values = Summary(path, content)
        return Record(config, _status(content, config.run_id) or values["status"], values)

    def records(self, configs: Sequence[RunConfig]) -> list[Record | None]:
        """`record` of each config; those without a folder cost nothing."""
        started = self._folders()
        return [self.record(config) if config.run_id in started else None for config in configs]

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """Rows of the history in order of step; a torn last line is left out."""
        lines = (self.recorded(run_id, "history.jsonl") or b"").split(b"\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{self.folder(run_id)}/history.jsonl is damaged ({error}); {REPAIR}") from error

    def measurement_path(self, measure: Measure, run_ids: Sequence[str]) -> Path:
        return Path(self._measurement(measure, run_ids))

    def _measurement(self, measure: Measure, run_ids: Sequence[str]) -> str:
        name = f"{measurement_id(measure, run_ids)}.json"
        return f"{self._runs}/{run_ids[0]}/measurements/{name}" if len(run_ids) == 1 else f"{self.root}/measurements/{name}"

    def measured(self, measure: Measure, run_ids: Sequence[str]) -> bool:
        """Whether the measurement exists; it is not read."""
        return os.path.exists(self._measurement(measure, run_ids))

    def measurement(self, measure: Measure, run_ids: Sequence[str]) -> dict[str, Any] | None:
        path = self._measurement(measure, run_ids)
        found = read_document(Path(path))
        if found is None:
            return None
        if (found.get("metric"), found.get("runs")) != (measure.metric, list(run_ids)):
            raise StoreError(f"{path} is the measurement of another run; {REPAIR}")
        return {name: value for name, value in found.items() if name not in ("schema", "seal")}

    def write_measurement(self, measure: Measure, run_ids: Sequence[str], result: Mapping[str, Any]) -> None:
        """Record one measurement: its metric, options and runs, beside `result` (value, residual, products, ...)."""
        path = self.measurement_path(measure, run_ids)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            if len(run_ids) == 1:
                clear_leftovers(path.parent)
        write_atomic(path, measurement_file(measure, run_ids, result))

    def run_ids(self) -> Iterator[str]:
        """Every run with a folder, finished or not."""
        yield from sorted(self._folders())

    def _folders(self) -> set[str]:
        try:
            with os.scandir(self._runs) as entries:
                return {entry.name for entry in entries if entry.is_dir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def resolve(self, prefix: str) -> str:
        """The one run whose id starts with `prefix`; raises `StoreError` when there is none or several."""
        found = [run_id for run_id in self.run_ids() if run_id.startswith(prefix)]
        if len(found) != 1:
            if found:
                raise StoreError(f"in {self.root}, the ids of {len(found)} runs start with {prefix!r}; give one id whole")
            raise StoreError(
                f"no run in {self.root} has an id that starts with {prefix!r}; `python -m experiments plan STUDY --scale S` "
                "lists a study's runs, and `run` makes them"
            )
        return found[0]


class Summary(Mapping[str, Any]):
    """The values of a summary file, parsed when the first is asked for; raises `StoreError` where it is damaged."""

    __slots__ = ("_content", "_path", "_values")

    def __init__(self, path: str, content: bytes) -> None:
        self._path, self._content, self._values = path, content, None

    def _parsed(self) -> dict[str, Any]:
        if self._values is None:
            self._values = _summary(self._path, self._content)
            self._content = b""
        return self._values

    def __getitem__(self, name: str) -> Any:
        return self._parsed()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parsed())

    def __len__(self) -> int:
        return len(self._parsed())


def _summary(path: str, content: bytes) -> dict[str, Any]:
    summary = parse(path, content)
    run_id = path.split("/")[-2]
    if summary.get("status") not in FINISHED:
        raise StoreError(f"{path} is not the summary of a run; {REPAIR}")
    if summary.get("run_id", run_id) != run_id:
        raise StoreError(f"{path} is the summary of another run; {REPAIR}")
    return summary


def _status(content: bytes, run_id: str) -> str | None:
    """Status in the summary of `run_id`, whose checksum holds, found by its place; None where it has to be parsed to tell."""
    begin = content.rfind(_STATUS) + len(_STATUS)
    status = content[begin : content.find(b'"', begin)].decode(errors="replace")
    return status if status in FINISHED and _OWN % run_id.encode() in content and checksum_holds(content) else None


# as `to_json` writes them: one space before a name is the outermost level
_STATUS, _OWN = b'\n "status": "', b'\n "run_id": "%%s",\n "schema": %d,\n' % SCHEMA
