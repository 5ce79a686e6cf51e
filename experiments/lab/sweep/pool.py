"""Worker processes on this machine: started when the first task needs them, heard, and stopped with their checkpoints written.

Nothing here imports torch: that is for the processes that train and measure.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from experiments.lab.declare.config import Machine
from experiments.lab.sweep.process import Stopper, keep_freed_memory, set_blas_threads
from experiments.lab.sweep.tasks import Failed, Report, Task

STOP_SECONDS = 60.0
"""how long workers may take to write their checkpoints"""


@dataclass
class Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None
    since: float = 0.0
    step: int | None = 0
    """of the run it trains; None while it measures"""

    def give(self, task: Task) -> None:
        self.task, self.since, self.step = task, time.monotonic(), 0
        with contextlib.suppress(ConnectionError):  # it died while idle: the next receive says so
            self.pipe.send(task)


class Workers:
    """Up to `count` workers. Leaving stops them, and so does a signal, which `signal_number` remembers."""

    def __init__(self, root: Path, machine: Machine, count: int) -> None:
        self.root, self.machine, self.count = root, machine, count
        self.workers: list[Worker] = []
        self.signal_number: int | None = None

    def __enter__(self) -> Workers:
        self.handlers = {s: signal.signal(s, self._remember) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.workers:
            if worker.task is not None:
                worker.process.terminate()
            else:
                with contextlib.suppress(BrokenPipeError, OSError):
                    worker.pipe.send(None)
        for worker in self.workers:
            while worker.process.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(EOFError, OSError):
                    while worker.pipe.poll(0.05):  # a full pipe would keep the worker from leaving
                        worker.pipe.recv()
                worker.process.join(0.05)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
                said = f"a worker had not stopped after {STOP_SECONDS:.0f} s and was ended: its run has an older checkpoint"
                print(said, file=sys.stderr, flush=True)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number

    def start(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.root, self.machine), daemon=False)
        ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C must not break a worker's start
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, ignored)
        theirs.close()
        worker = Worker(process, ours)
        self.workers.append(worker)
        return worker

    def idle(self, tasks: int) -> Iterator[Worker]:
        """Workers without a task, new ones started up to the number of `tasks`; one that died idle is forgotten."""
        self.workers = [w for w in self.workers if w.task is not None or w.process.is_alive()]
        yield from [worker for worker in self.workers if worker.task is None][:tasks]
        free = sum(worker.task is None for worker in self.workers)
        for _ in range(min(self.count - len(self.workers), tasks - free)):
            yield self.start()

    def reports(self, seconds: float) -> Iterator[tuple[Worker, Task, Report]]:
        """The next report of each worker that says something of its task within `seconds`."""
        busy = {worker.pipe: (worker, worker.task) for worker in self.workers if worker.task is not None}
        if not busy:
            time.sleep(0.1)
        for pipe in wait(list(busy), timeout=seconds):
            assert isinstance(pipe, Connection)
            worker, task = busy[pipe]
            yield worker, task, self._receive(worker)

    def _receive(self, worker: Worker) -> Report:
        try:
            return worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            self.workers.remove(worker)
            code = worker.process.exitcode
            cause = "; out of memory is the usual cause" if code == -signal.SIGKILL else ""
            return Failed(f"its worker process died (exit code {code}{cause})")


def _work(pipe: Connection, root: Path, machine: Machine) -> None:
    """A worker's process. It also ends when its parent dies (checked each second: no orphan keeps a lease)."""
    stopper = Stopper()
    signal.signal(signal.SIGTERM, stopper)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on in order
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    set_blas_threads(machine.threads)
    keep_freed_memory()
    from experiments.lab.sweep.worker import serve

    serve(pipe, root, machine, stopper)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
