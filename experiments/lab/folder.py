"""The traces of one run on disk, written by the process that holds its lease."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.lab.config import SCIENCE_VERSION, Machine, RunConfig
from experiments.lab.lease import TOUCH, Lease, acquire
from experiments.lab.provenance import commit, hardware, provenance
from experiments.lab.store import Store, StoreError, to_json, write_atomic
from experiments.lab.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint, save_tensors
from experiments.lab.training.state import Checkpoint
from experiments.lab.training.train import Outcome

CHECKPOINT_SECONDS = 30.0


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


class LeaseLost(Exception):
    """This process stood still for so long that another one took the run over."""


class RunFolder:
    """The `Log` of a run. Use `open_run`, which takes the lease."""

    def __init__(self, store: Store, config: RunConfig, machine: Machine, lease: Lease, stop: Callable[[], bool],
                 report: Callable[[int], None]) -> None:  # fmt: skip
        self.path: Path = store.folder(config.run_id)
        self.config, self.machine, self.lease = config, machine, lease
        self.stop, self.report = stop, report
        self.started = self.saved = self.touched = time.monotonic()

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint; the history is cut back to it."""
        for torn in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
            torn.unlink(missing_ok=True)
        config = {"science_version": SCIENCE_VERSION, **self.config.to_dict()}
        write_atomic(self.path / "config.json", to_json(config))
        checkpoint = load_checkpoint(self.path)
        self.processes = [*(_processes(self.path) if checkpoint else []), provenance(self.machine)]
        self._write_provenance()
        length = checkpoint.history_bytes if checkpoint else 0
        self.history = open(self.path / "history.jsonl", "ab")  # noqa: SIM115 - open as long as the run; see close
        if os.fstat(self.history.fileno()).st_size < length:
            raise StoreError(f"{self.history.name} is shorter than its checkpoint; delete {self.path} and run again")
        self.history.truncate(length)
        return checkpoint

    def _write_provenance(self) -> None:
        """One entry a process that worked on the run, each with the seconds that went into the weights."""
        self.processes[-1]["seconds"] = time.monotonic() - self.started
        write_atomic(self.path / "provenance.json", to_json({"processes": self.processes}))

    def row(self, row: dict[str, Any]) -> None:
        self.history.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def history_bytes(self) -> int:
        self.history.flush()
        return self.history.tell()

    def wants_checkpoint(self, step: int) -> bool:
        """True when the time has come or a stop was asked for; keeps the lease warm and progress flowing."""
        now = time.monotonic()
        if now - self.touched > TOUCH:
            self.lease.touch()
            self.touched = now
        self.report(step)
        return self.stop() or now - self.saved > CHECKPOINT_SECONDS

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; raises `Interrupted` after it when a stop was asked for. Only the lease's owner may."""
        if not self.lease.held():
            raise LeaseLost(self.config.run_id)
        self.history.flush()
        os.fsync(self.history.fileno())
        save_checkpoint(self.path, checkpoint)
        self._write_provenance()
        self.saved = time.monotonic()
        if self.stop():
            raise Interrupted(self.config.run_id)

    def publish(self, outcome: Outcome) -> bool:
        """Write weights, predictions and, last, the summary. False when the lease went to another owner."""
        if not self.lease.held() or (self.path / "summary.json").exists():
            return False
        self.history.flush()
        os.fsync(self.history.fileno())
        self._write_provenance()
        files = {"final.safetensors": save_tensors(self.path / "final.safetensors", outcome.weights)}
        if outcome.predictions:
            files["predictions.safetensors"] = save_tensors(self.path / "predictions.safetensors", outcome.predictions)
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
        if not self.lease.held():
            return False
        draft = self.path / f".summary.{self.lease.token}"
        write_atomic(draft, to_json(summary))
        try:
            os.link(draft, self.path / "summary.json")
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        clear_checkpoints(self.path)
        return True

    def close(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # not opened yet; no space for the last rows
            self.history.close()
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
    path.mkdir(exist_ok=True)
    lease = acquire(path)
    return None if lease is None else RunFolder(store, config, machine, lease, stop, report)
