"""The store: one folder a run, shared by many processes, in which only `summary.json` means finished.

    <store>/runs/<run_id>/config.json          canonical JSON of the RunConfig
                          provenance.json      versions, machine, commit
                          lease.json           who is computing it now
                          history.jsonl        one row an observation
                          checkpoint.<k>.safetensors   the last two
                          final.safetensors    weights
                          predictions.safetensors      per test example
                          measurements/<id>.json
                          summary.json         written last, atomically
    <store>/measurements/<id>.json             measurements of pairs of runs

Files appear whole or not at all: written beside their place, synced, renamed. A summary is published by a hard link, so
the first owner wins and a stale one cannot replace it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lab.config import RunConfig
from experiments.lab.study import Measure, Record

FINISHED = ("done", "diverged", "capped")
BLOCK = 1 << 16
"""bytes read at once"""
LEFTOVER_SECONDS = 3600.0
"""age of a file under way after which nobody writes it any more"""


class StoreError(Exception):
    """The store cannot be used as asked; the message is one sentence with the remedy."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says while `path` is written into a `StoreError` with the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk")
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); {remedy} and run the same command again: "
            "finished runs and checkpoints are kept"
        ) from error


_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there") | {
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable or choose another folder"),
}


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, sync, rename: after a crash at any instant the old or the new file is whole.

    Raises `StoreError` where that fails; then the old file is there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            append(temporary, content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add `content` to the file `path`, made if missing, and wait for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in `path` are on the disk, where the file system can be asked for that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def clear_leftovers(folder: Path) -> None:
    """Remove old halves of JSON files from `folder`: processes that were killed while they wrote left them."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another one was faster
                if _HALF.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > LEFTOVER_SECONDS:
                    os.unlink(entry)


_HALF = re.compile(r"\..+\.json\.\d+\.[0-9a-f]{8}\.tmp")


def to_json(document: Any) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def finite_or_null(document: Any) -> Any:
    """`document` with every number that is not finite as null: JSON has no other honest word for it."""
    match document:
        case float():
            return document if math.isfinite(document) else None
        case dict():
            return {name: finite_or_null(value) for name, value in document.items()}
        case list() | tuple():
            return [finite_or_null(value) for value in document]
        case _:
            return document


METRIC_VERSIONS = {"phi_full": 2, "phi_full_5e-4": 2, "phi_subspace": 2}
"""raised when a metric's definition changes its values, so that an old store's are measured again, never mixed in:
2 searches from other points, and draws A in the precision of the weights"""


def measurement_id(measure: Measure, run_ids: Sequence[str]) -> str:
    """Name of a measurement: a hash of the metric with its version, its options and the runs, in order."""
    version = METRIC_VERSIONS.get(measure.metric)
    parts = [measure.metric, list(measure.options), list(run_ids), *([version] if version else [])]
    text = json.dumps(parts, sort_keys=True)
    return f"{measure.metric}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Store:
    """A folder of runs. Opening creates it; raises `StoreError` when it cannot be written."""

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.root = Path(root)
        self._runs = f"{self.root}/runs"
        if create:
            try:
                for folder in (self.root / "runs", self.root / "measurements"):
                    folder.mkdir(parents=True, exist_ok=True)
                probe = self.root / f".probe.{os.getpid()}.{secrets.token_hex(4)}"
                probe.touch()
                probe.unlink()
                clear_leftovers(self.root / "measurements")
            except OSError as error:
                raise StoreError(
                    f"the store {self.root} cannot be written ({error.strerror}); choose another with --store"
                ) from error

    def folder(self, run_id: str) -> Path:
        return self.root / "runs" / run_id

    def finished(self, run_id: str) -> bool:
        return (self.folder(run_id) / "summary.json").exists()

    def summary(self, run_id: str) -> dict[str, Any] | None:
        """The summary of a finished run, or None. Raises `StoreError` when it cannot be read back."""
        path = f"{self._runs}/{run_id}/summary.json"
        content = _read(path)
        return None if content is None else _summary(path, content)

    def config(self, run_id: str) -> RunConfig | None:
        document = _read_json(self.folder(run_id) / "config.json")
        return None if document is None else RunConfig.from_dict(_without_version(document))

    def record(self, config: RunConfig) -> Record | None:
        """The record of `config`, None where it is not finished. Its values are parsed, and damage to them is noticed,
        when the first of them is asked for: a plan of 100,000 runs wants their states alone."""
        path = f"{self._runs}/{config.run_id}/summary.json"
        content = _read(path)
        if content is None:
            return None
        values = Summary(path, content)
        # as `to_json` writes it; anything else is parsed at once
        found = _STATUS.search(content) if content.endswith(b"\n}\n") else None
        return Record(config, found[1].decode() if found else values["status"], values)

    def records(self, configs: Sequence[RunConfig]) -> list[Record | None]:
        """`record` of each config; those without a folder cost nothing."""
        started = self._folders()
        return [self.record(config) if config.run_id in started else None for config in configs]

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """Rows of the history in order of step; a torn last line is left out."""
        path = self.folder(run_id) / "history.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); delete {path.parent} and run again") from error

    def measurement_path(self, measure: Measure, run_ids: Sequence[str]) -> Path:
        return Path(self._measurement(measure, run_ids))

    def _measurement(self, measure: Measure, run_ids: Sequence[str]) -> str:
        name = f"{measurement_id(measure, run_ids)}.json"
        return f"{self._runs}/{run_ids[0]}/measurements/{name}" if len(run_ids) == 1 else f"{self.root}/measurements/{name}"

    def measured(self, measure: Measure, run_ids: Sequence[str]) -> bool:
        """Whether the measurement exists; it is not read."""
        return os.path.exists(self._measurement(measure, run_ids))

    def measurement(self, measure: Measure, run_ids: Sequence[str]) -> dict[str, Any] | None:
        return _read_json(self.measurement_path(measure, run_ids))

    def write_measurement(self, measure: Measure, run_ids: Sequence[str], result: Mapping[str, Any]) -> None:
        """Record one measurement: its metric, options and runs, beside `result` (value, residual, products, ...)."""
        path = self.measurement_path(measure, run_ids)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            if len(run_ids) == 1:
                clear_leftovers(path.parent)
        head = {"metric": measure.metric, "options": dict(measure.options), "runs": list(run_ids)}
        write_atomic(path, to_json(finite_or_null({**head, **result})))

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
            state = "no run" if not found else f"{len(found)} runs"
            raise StoreError(f"the store {self.root} has {state} whose id starts with {prefix!r}; give one id whole")
        return found[0]


class Summary(Mapping[str, Any]):
    """The values of a summary file, parsed when the first is asked for; raises `StoreError` then where it is damaged."""

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
    summary = _parse(path, content)
    if not (isinstance(summary, dict) and summary.get("status") in FINISHED):
        raise StoreError(f"{path} is not the summary of a run; delete it and run the same command again")
    return summary


_STATUS = re.compile(rb'\n "status": "(done|diverged|capped)",?\n')


def _without_version(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "science_version"}


def _read_json(path: Path) -> dict[str, Any] | None:
    content = _read(str(path))
    return None if content is None else _parse(str(path), content)


def _parse(path: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); delete it and run the same command again") from error


def _read(path: str) -> bytes | None:
    """The content of a file, None where it is missing; raises `StoreError` where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a fifth of the time of Path.read_bytes
        try:
            parts = [os.read(descriptor, BLOCK)]
            while len(parts[-1]) == BLOCK:
                parts.append(os.read(descriptor, BLOCK))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); check the folder's permissions") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)
