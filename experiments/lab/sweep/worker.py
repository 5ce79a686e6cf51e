"""A worker: takes tasks from a pipe until it is closed, trains and measures. `pool` starts it, in a process of its own."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import sharpness  # noqa: F401  (now, so that its modules are among what the collector leaves alone)
from experiments.lab.datasets import DataError
from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures.perform import perform
from experiments.lab.store.files import StoreError
from experiments.lab.store.records import Store
from experiments.lab.store.run_folder import Interrupted, Watch
from experiments.lab.sweep import tasks
from experiments.lab.sweep.process import Stopper
from experiments.lab.sweep.runner import BUSY, train_runs
from sharpness.problem.named import brief


def serve(pipe: Connection, root: Path, machine: Machine, stopper: Stopper) -> None:
    """Work until the pipe closes or a signal comes."""
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
        pipe.send(tasks.Signalled())


def run_task(task: tasks.Task, store: Store, machine: Machine, stopper: Stopper, pipe: Connection | None,
             watch: Watch | None = None) -> tasks.Report:
    """One task, whatever comes of it. Only `Interrupted` escapes. `watch` is shown the history as it comes."""
    try:
        match task:
            case tasks.TrainTogether(configs):
                return tasks.Busy() if BUSY in train(configs, store, machine, stopper, pipe) else tasks.Finished()
            case tasks.Train(config, measures):
                (status,) = train([config], store, machine, stopper, pipe, watch)
                run_ids = (config.run_id,)
            case tasks.MeasurePair(wanted, run_ids):
                status, measures = "done", (wanted,)
        if status == BUSY:
            return tasks.Busy()
        if status == "diverged":
            return tasks.Finished(status)
        stopper.measuring = True
        if not stopper.asked:
            if pipe is not None:
                pipe.send(tasks.Underway(None))
            perform(store, machine, measures, run_ids)
        stopper.measuring = False
        return tasks.Finished(status)
    except (ConfigError, StoreError, DataError, OSError) as error:
        return tasks.Failed(str(error) or type(error).__name__)
    except (MemoryError, RuntimeError, ValueError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        # what cannot be computed as one program may be computed run by run
        return tasks.TrainAlone(why) if isinstance(task, tasks.TrainTogether) else tasks.Failed(why)
    except Exception as error:
        if not any(config.has_own_code for config in task.configs):
            raise
        return tasks.Failed(f"{brief(error)}, in code of your own")
    finally:
        stopper.measuring = False


def train(configs: Sequence[RunConfig], store: Store, machine: Machine, stopper: Stopper, pipe: Connection | None,
          watch: Watch | None = None) -> list[str]:
    """Train and record runs; the status of each, or `busy` while another process holds it."""
    told = 0.0

    def report(step: int) -> None:
        nonlocal told
        if pipe is not None and time.monotonic() - told > 0.5:
            told = time.monotonic()
            pipe.send(tasks.Underway(step))

    return train_runs(configs, store, machine, lambda: stopper.asked, report, watch)
