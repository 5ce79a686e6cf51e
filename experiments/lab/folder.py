"""The traces of one run on disk, written by the process that holds its lease."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.lab.config import SCIENCE_VERSION, Machine, RunConfig
from experiments.lab.lease import Lease, acquire
from experiments.lab.provenance import commit, hardware, provenance
from experiments.lab.store import Store, StoreError, append, sync_folder, to_json, write_atomic, writing
from experiments.lab.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint, save_tensors
from experiments.lab.training.state import Checkpoint
from experiments.lab.training.train import Outcome

CHECKPOINT_SECONDS = 30.0


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


class LeaseLost(Exception):
    """This process stood still for so long that another one took the run over."""


class RunFolder:
    """The `Log` of a run. Use `open_run`, which takes the lease.

    Everything is written inside `_owned`: a process that lost its lease changes nothing. Rows of the history wait in
    memory for the next checkpoint, which they belong to.
    """

    def __init__(self, store: Store, config: RunConfig, machine: Machine, lease: Lease, stop: Callable[[], bool],
                 report: Callable[[int], None]) -> None:  # fmt: skip
        self.path: Path = store.folder(config.run_id)
        self.config, self.machine, self.lease = config, machine, lease
        self.stop, self.report = stop, report
        self.rows: list[bytes] = []
        self.length = 0
        self.processes = [provenance(machine)]
        self.started = self.saved = time.monotonic()
        self.end_warmth = lease.keep_warm()

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @contextlib.contextmanager
    def _owned(self) -> Iterator[None]:
        """What is written in the block is the owner's; raises `LeaseLost` for anybody else."""
        with writing(self.path), self.lease.keep() as held:
            if not held:
                raise LeaseLost(self.config.run_id)
            yield

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint; the history is cut back to it."""
        with self._owned():
            for torn in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                torn.unlink(missing_ok=True)
            config = {"science_version": SCIENCE_VERSION, **self.config.to_dict()}
            write_atomic(self.path / "config.json", to_json(config))
            if (checkpoint := load_checkpoint(self.path)) is not None:
                self.processes = [*_processes(self.path), *self.processes]
                self.length = checkpoint.history_bytes
            self._write_provenance()
            if (self.history.stat().st_size if self.history.exists() else 0) < self.length:
                raise StoreError(f"{self.history} is shorter than its checkpoint; delete {self.path} and run again")
            if self.history.exists():
                os.truncate(self.history, self.length)
        return checkpoint

    def _write_provenance(self) -> None:
        """One entry a process that worked on the run, each with the seconds that went into the weights."""
        self.processes[-1]["seconds"] = time.monotonic() - self.started
        write_atomic(self.path / "provenance.json", to_json({"processes": self.processes}))

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(json.dumps(row, allow_nan=False).encode() + b"\n")

    def history_bytes(self) -> int:
        return self.length + sum(len(row) for row in self.rows)

    def _write_rows(self) -> None:
        content = b"".join(self.rows)
        append(self.history, content)
        self.length, self.rows = self.length + len(content), []

    def wants_checkpoint(self, step: int) -> bool:
        """True when the time has come or a stop was asked for; keeps progress flowing."""
        self.report(step)
        return self.stop() or time.monotonic() - self.saved > CHECKPOINT_SECONDS

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; raises `Interrupted` after it when a stop was asked for. Only the lease's owner may."""
        with self._owned():
            self._write_rows()
            save_checkpoint(self.path, checkpoint)
            self._write_provenance()
        self.saved = time.monotonic()
        if self.stop():
            raise Interrupted(self.config.run_id)

    def publish(self, outcome: Outcome) -> bool:
        """Write weights, predictions and, last, the summary. False when the lease went to another owner."""
        with writing(self.path), self.lease.keep() as held:
            if not held or (self.path / "summary.json").exists():
                return False
            self._write_rows()
            self._write_provenance()
            files = {"final.safetensors": save_tensors(self.path / "final.safetensors", outcome.weights)}
            if outcome.predictions:
                predictions = self.path / "predictions.safetensors"
                files[predictions.name] = save_tensors(predictions, outcome.predictions)
            summary = {
                "run_id": self.config.run_id,
                "status": outcome.status,
                "reason": outcome.reason,
                **outcome.values,
                "seconds": sum(process["seconds"] for process in self.processes),
                "commit": commit(),
                "device": self.machine.device,
                "hardware": hardware(self.machine.device),
                "files": files,
            }
            draft = self.path / f".summary.{self.lease.token}.tmp"
            try:
                append(draft, to_json(summary))
                os.link(draft, self.path / "summary.json")  # where the file system has no locks, the first one wins
            except FileExistsError:
                return False
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(self.path)
            clear_checkpoints(self.path)
        return True

    def close(self) -> None:
        self.end_warmth()
        self.lease.release()


def _processes(path: Path) -> list[dict[str, Any]]:
    """Earlier entries of a run's provenance; none where the file is missing or damaged."""
    try:
        return json.loads((path / "provenance.json").read_bytes())["processes"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def open_run(store: Store, config: RunConfig, machine: Machine, stop: Callable[[], bool],
             report: Callable[[int], None]) -> RunFolder | None:  # fmt: skip
    """The folder of `config`, leased; None while another live process computes it."""
    path = store.folder(config.run_id)
    with writing(path):
        if not path.exists():
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)
        lease = acquire(path)
    return None if lease is None else RunFolder(store, config, machine, lease, stop, report)
