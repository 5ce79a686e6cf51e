"""The traces of one run on disk, written by the process that holds its lease."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.lab.declare.config import SCIENCE_VERSION, Machine, RunConfig
from experiments.lab.store.checkpoints import clear_checkpoints, load_checkpoint, pack_tensors, save_checkpoint
from experiments.lab.store.checksums import SCHEMA, sha256_of, why_broken, with_checksum
from experiments.lab.store.execution_plan import write_plan
from experiments.lab.store.files import (
    StoreError,
    append,
    name_first,
    sync_folder,
    to_json,
    write_atomic,
    write_together,
    writing,
)
from experiments.lab.store.history import COLUMNS, columns_of
from experiments.lab.store.leases import Lease, acquire
from experiments.lab.store.provenance import commit, hardware, provenance
from experiments.lab.store.records import Store
from experiments.lab.store.underway import FAILURE
from experiments.lab.training.outcome import Outcome
from experiments.lab.training.state import Checkpoint

CHECKPOINT_SECONDS = 30.0
Watch = Callable[[dict[str, Any]], None]
"""is shown each row of a history as it comes, as a row of kind `resumed` the checkpoint that a run goes on from, and before each
update one of kind `step`, with a function that tells the loss of the last ones"""


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
                 report: Callable[[int], None], watch: Watch | None = None) -> None:
        self.path: Path = store.folder(config.run_id)
        self.config, self.machine, self.lease = config, machine, lease
        self.stop, self.report, self.watch = stop, report, watch
        self.recent_loss: Callable[[], float | None] = lambda: None
        self.own: dict[str, Any] = {}
        self.members = 1
        self.rows: list[bytes] = []
        self.length, self.digest = 0, hashlib.sha256()
        self.processes: list[dict[str, Any]] = []
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

    def load(self, newest: int | None = None) -> Checkpoint | None:
        """The newest whole checkpoint (of step `newest` at most); the history is cut back to it."""
        with self._owned():
            for torn in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                torn.unlink(missing_ok=True)
            (self.path / FAILURE).unlink(missing_ok=True)  # of an earlier attempt
            config = {"science_version": SCIENCE_VERSION, **self.config.to_dict()}
            self.files = {"config.json": hashlib.sha256(to_json(config)).hexdigest()}
            checkpoint = load_checkpoint(self.path, newest)
            self.length, self.rows = 0 if checkpoint is None else checkpoint.history_bytes, []
            if checkpoint is None:
                self.processes = []  # whatever was done before is not in these weights
            elif not self.processes:
                self.processes = _processes(self.path)
            if not self.processes or self.processes[-1] is not self.own or self.own["micro_batch"] != self.machine.micro_batch:
                self.own = provenance(self.machine) | {"members": self.members} | self._mark()
                self.processes.append(self.own)
                self.started = time.monotonic()
            head = {"config.json": to_json(config), "provenance.json": self._provenance()}
            write_together(self.path, head, also=[self.path.parent], durable=False)
            if self.history.exists():
                os.truncate(self.history, self.length)
                self.digest = hashlib.sha256(self.history.read_bytes())
        if self.watch is not None and checkpoint is not None:
            self.watch({"kind": "resumed", "step": checkpoint.current.step})
        return checkpoint

    def begin(self, members: Sequence[str], micro_batch: int | None, *, anew: bool) -> None:
        """Write the execution plan, before the first update; `anew` drops what was computed under another one."""
        with self._owned():
            if anew:
                clear_checkpoints(self.path)
            if len(members) > 1 or micro_batch is not None:
                write_plan(self.path, members, micro_batch)
            else:
                (self.path / "plan.json").unlink(missing_ok=True)

    def _mark(self) -> dict[str, Any]:
        """What a record says of a run that cannot be repeated, in its provenance and in its summary."""
        return {"repeatable": False} if self.config.allow_random else {}

    def _provenance(self) -> bytes:
        """One entry per process that worked on the run, each with the seconds that went into the weights."""
        self.processes[-1]["seconds"] = time.monotonic() - self.started
        return with_checksum(to_json({"schema": SCHEMA, "processes": self.processes}))

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(json.dumps(row, allow_nan=False).encode() + b"\n")
        if self.watch is not None:
            self.watch(row)

    def history_bytes(self) -> int:
        return self.length + sum(len(row) for row in self.rows)

    def _write_rows(self, *, durable: bool = True) -> None:
        content = b"".join(self.rows)
        append(self.history, content, durable=durable)
        self.length, self.rows = self.length + len(content), []
        self.digest.update(content)

    def wants_checkpoint(self, step: int) -> bool:
        """True when the time has come or a stop was asked for; keeps progress flowing."""
        self.report(step)
        if self.watch is not None:
            self.watch({"kind": "step", "step": step, "recent_loss": self.recent_loss})
        return self.stop() or time.monotonic() - self.saved > CHECKPOINT_SECONDS

    def see(self, recent_loss: Callable[[], float | None]) -> None:
        self.recent_loss = recent_loss

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; raises `Interrupted` after it when a stop was asked for. Only the lease's owner may."""
        with self._owned():
            self._write_rows()
            save_checkpoint(self.path, checkpoint, self.digest.hexdigest())
            write_atomic(self.path / "provenance.json", self._provenance(), durable=False)
        self.saved = time.monotonic()
        if self.stop():
            raise Interrupted(self.config.run_id)

    def publish(self, outcome: Outcome) -> bool:
        """Write weights, predictions and, last, the summary. False when the lease went to another owner."""
        with writing(self.path), self.lease.keep() as held:
            if not held or (self.path / "summary.json").exists():
                return False
            self._write_rows(durable=False)  # with the others, below
            self.files[self.history.name] = self.digest.hexdigest()
            if (plan := sha256_of(self.path / "plan.json")) is not None:
                self.files["plan.json"] = plan
            if sha256_of(self.history) != self.digest.hexdigest():
                raise StoreError(f"{self.history} was altered while its run went on; run the same command again")
            tensors = {"final.safetensors": outcome.weights, "predictions.safetensors": outcome.predictions}
            contents = {"provenance.json": self._provenance(), COLUMNS: columns_of(self.history)}
            contents |= {name: pack_tensors(found) if found else None for name, found in tensors.items()}
            written = {name: content for name, content in contents.items() if content is not None}
            self.files |= {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
            seconds = [process["seconds"] for process in self.processes]
            summary = {
                "schema": SCHEMA,
                "run_id": self.config.run_id,
                "status": outcome.status,
                "reason": outcome.reason,
                **outcome.values,
                **self._mark(),
                "seconds": None if None in seconds else sum(seconds),
                "commit": commit(),
                "device": self.machine.device,
                "hardware": hardware(self.machine.device),
                "files": self.files,
            }
            draft = self.path / f".summary.{self.lease.token}.tmp"
            try:
                write_together(self.path, {**written, draft.name: with_checksum(to_json(summary))}, also=[self.history])
                if not name_first(draft, self.path / "summary.json"):  # where the file system has no locks
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
    """Earlier entries of a run's provenance; where it is missing or damaged, one that says that they are lost."""
    try:
        content = (path / "provenance.json").read_bytes()
        document = json.loads(content)
        if why_broken(content, document) is None and all("seconds" in process for process in document["processes"]):
            return document["processes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return [{"lost": True, "seconds": None}]


def open_run(store: Store, config: RunConfig, machine: Machine, stop: Callable[[], bool],
             report: Callable[[int], None], watch: Watch | None = None) -> RunFolder | None:
    """The folder of `config`, leased; None while another live process computes it."""
    path = store.folder(config.run_id)
    with writing(path):
        path.mkdir(exist_ok=True)
        lease = acquire(path)
    return None if lease is None else RunFolder(store, config, machine, lease, stop, report, watch)
