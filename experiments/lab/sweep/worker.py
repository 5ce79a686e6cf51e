"""The process that trains and measures: takes tasks from a pipe until it is closed."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.study import Measure
from experiments.lab.sweep.allocator import keep_freed_memory

if TYPE_CHECKING:
    from experiments.lab.store.run_folder import Watch


@dataclass(frozen=True)
class Train:
    """Train `config` if nobody did, then make `measures` of it."""

    config: RunConfig
    measures: tuple[Measure, ...] = ()
    trained: bool = False
    """whether only measurements were missing when the task was made"""


@dataclass(frozen=True)
class Observe:
    """Make one measurement of finished runs."""

    measure: Measure
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Fuse:
    """Train runs that can be one program, as far as that pays. What cannot be fused is trained alone afterwards."""

    configs: tuple[RunConfig, ...]


Task = Train | Observe | Fuse


@dataclass(frozen=True)
class Report:
    """What a worker tells: `step` (with the step), `measuring`, a status, `busy`, `stopped`, or with a sentence `failed` or
    `alone` (these runs cannot be one program)."""

    kind: str
    detail: Any = None


class Stopper:
    """Remembers a signal. A training run looks at `asked`; a measurement is cut short, because it leaves nothing half done."""

    def __init__(self) -> None:
        self.asked = False
        self.measuring = False

    def __call__(self, number: int, frame: object) -> None:
        self.asked = True
        if self.measuring:  # not before: an import here could break off the one that the signal interrupted
            from experiments.lab.store.run_folder import Interrupted

            raise Interrupted("measurement")


def serve(pipe: Connection, root: Path, machine: Machine) -> None:
    """Work until the pipe closes, a signal comes, or the parent dies (checked each second: no orphan keeps a lease)."""
    stopper = Stopper()
    signal.signal(signal.SIGTERM, stopper)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on in order
    parent = os.getppid()
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()

    set_blas_threads(machine.threads)
    keep_freed_memory()
    import torch

    import sharpness  # noqa: F401  (now, so that its modules are among what the collector leaves alone)
    from experiments.lab.store.records import Store
    from experiments.lab.store.run_folder import Interrupted

    torch.set_num_threads(machine.threads)
    gc.freeze()  # imports leave 300,000 objects that each full collection would walk through
    store = Store(root, create=False)
    try:
        while not stopper.asked:
            if not pipe.poll(0.2):
                continue
            task = pipe.recv()
            if task is None:
                return
            pipe.send(run_task(task, store, machine, stopper, pipe))
    except (EOFError, ConnectionError):
        return
    except Interrupted:
        pass
    with contextlib.suppress(ConnectionError):
        pipe.send(Report("stopped"))


def run_task(task: Task, store: Any, machine: Machine, stopper: Stopper, pipe: Connection | None,
             watch: Watch | None = None) -> Report:
    """One task, whatever comes of it. Only `Interrupted` escapes. `watch` is shown the history as it comes."""
    from experiments.lab.datasets import DataError
    from experiments.lab.measures.perform import perform
    from experiments.lab.store.files import StoreError

    try:
        status = "done"
        if isinstance(task, Fuse):
            return Report("busy" if "busy" in train(task.configs, store, machine, stopper, pipe) else status)
        measures = (task.measure,) if isinstance(task, Observe) else task.measures
        run_ids = task.run_ids if isinstance(task, Observe) else (task.config.run_id,)
        if isinstance(task, Train):
            (status,) = train([task.config], store, machine, stopper, pipe, watch)
        if status in ("busy", "diverged"):
            return Report(status)
        stopper.measuring = True
        if not stopper.asked:
            if pipe is not None:
                pipe.send(Report("measuring"))
            perform(store, machine, measures, run_ids)
        stopper.measuring = False
        return Report(status)
    except (ConfigError, StoreError, DataError, OSError) as error:
        return Report("failed", str(error))
    except (MemoryError, RuntimeError, ValueError, ArithmeticError) as error:
        # what cannot be computed as one program may be computed run by run
        kind = "alone" if isinstance(task, Fuse) else "failed"
        return Report(kind, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    finally:
        stopper.measuring = False


def train(configs: Sequence[RunConfig], store: Any, machine: Machine, stopper: Stopper, pipe: Connection | None,
          watch: Watch | None = None) -> list[str]:
    """Train and record runs; the status of each, or `busy` while another process holds it."""
    from experiments.lab.sweep.runner import train_runs

    told = 0.0

    def report(step: int) -> None:
        nonlocal told
        if pipe is not None and time.monotonic() - told > 0.5:
            told = time.monotonic()
            pipe.send(Report("step", step))

    return train_runs(configs, store, machine, lambda: stopper.asked, report, watch)


def set_blas_threads(threads: int) -> None:
    """numpy's BLAS has threads of its own, read once at its import: two workers' would fight for the same cores."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
