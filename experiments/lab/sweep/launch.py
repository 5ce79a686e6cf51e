"""Runs a study: workers on this machine take its missing runs and measurements, stage by stage."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from experiments.lab.declare.config import Machine, RunConfig, check_fits
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.study import Request, Study
from experiments.lab.fused.groups import MOST, begun_together, groups
from experiments.lab.store.data_places import located
from experiments.lab.store.leases import clear_record
from experiments.lab.store.records import Store
from experiments.lab.store.underway import note_failure
from experiments.lab.sweep.outlook import Part, configs_of, kind_of, look_ahead, name_of, say_what_is_there
from experiments.lab.sweep.plan import PlannedStage, check_runs, measurements_due, plan, select
from experiments.lab.sweep.progress import Progress, Sweep, known_steps, names_among
from experiments.lab.sweep.worker import Fuse, Observe, Report, Task, Train, serve

BUSY_SECONDS = 2.0
"""pause before a run that another process holds is asked for again"""
STOP_SECONDS = 60.0
"""how long workers may take to write their checkpoints"""


class Stopped(Exception):
    """The user asked to stop; `signal_number` says how."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


@dataclass
class Result:
    """How a sweep ended: runs by status, one sentence a failure."""

    planned: int = 0
    chosen: int = 0
    """runs that were kept, of the stages that are known"""
    counts: dict[str, int] = field(default_factory=dict)
    trained: int = 0
    measured: int = 0
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """stages whose runs are not known yet, and that `where` therefore does not reach"""
    kept: set[str] = field(default_factory=set)
    """runs that were begun together and failed together: they go on together at the next call, none begins anew alone"""

    @property
    def complete(self) -> bool:
        return not self.failures and sum(self.counts.values()) == self.planned


def check_device(device: str) -> None:
    """Raise `UsageError` for a device this machine does not have."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UsageError(f"there is no device {device!r}; use cpu, cuda or cuda:N")
    if kind == "cuda":
        import torch

        if int(index or 0) >= torch.cuda.device_count():
            raise UsageError(f"device {device} is not on this machine, which has {torch.cuda.device_count()} GPUs; use cpu")


def run_study(study: Study, request: Request, store: Store, machine: Machine, *, workers: int,
              where: Sequence[str] = (), quiet: bool = False) -> Result:
    """Train and measure what `study` still lacks at `request.scale`; returns how it ended.

    Raises `UsageError`, `ConfigError` or `DataError` before anything is started, and `Stopped` after a signal, once
    every worker has written its checkpoint.
    """
    check_device(machine.device)
    result = Result()
    with Workers(store.root, machine, workers) as pool:
        try:
            _run_stages(pool, study, request, store, machine, result, where=where, quiet=quiet)
        except Stopped:
            if not quiet and (busy := sum(worker.task is not None for worker in pool.workers)):
                print(f"stopping: {busy} at work, checkpoints are being written", file=sys.stderr, flush=True)
            raise
    return result


def _run_stages(pool: Workers, study: Study, request: Request, store: Store, machine: Machine, result: Result, *,
                where: Sequence[str], quiet: bool) -> None:
    whole = Sweep(0, pool.count)
    for index in range(len(study.stages)):
        planned = plan(study, request, store, machine.data_path)
        check_runs(study, request, planned)
        stages = planned[index:]
        stage = stages[0]
        if stage.runs is None:
            if where:  # it may need what was left out
                result.left_out.append(stage.stage.name)
                continue
            result.planned += stage.at_most
            if not result.failures:
                result.failures.append(f"stage {stage.stage.name} waits for runs of earlier stages")
            continue
        chosen = select(stage.runs, where)
        for config in chosen:  # a killed process may have recorded a run and left its lease
            if (folder := store.folder(config.run_id)).joinpath("lease.json").exists() and store.finished(config.run_id):
                clear_record(folder)
        part = Part(whole, f"{study.name} {request.scale}", names_among(chosen), {c.run_id: c for c in chosen}, store)
        tasks = _tasks(stage, chosen, request, store)
        check_data([task.config for task in tasks], machine, store.root)
        if index == 0 and not quiet:
            say_what_is_there(stages, where, store)
        pairs = [pair for pair in stage.pairs(request) if {pair.first.run_id, pair.second.run_id} <= part.configs.keys()]
        ahead = [Observe(pair.measure, (pair.first.run_id, pair.second.run_id)) for pair in pairs]
        ahead = [task for task in ahead if not store.measured(task.measure, task.run_ids)]
        if programs := _programs(stage, chosen, store, machine, pool.count):
            together = {config.run_id for program in programs for config in program.configs}
            after = [replace(task, trained=task.trained or task.config.run_id in together) for task in tasks]
            look_ahead(whole, result.chosen, stages, chosen, [*programs, *after, *ahead], where)
            execute(pool, programs, f"together, stage {stage.stage.name}", result, quiet=quiet, part=part)
            tasks = [replace(task, trained=store.finished(task.config.run_id)) for task in tasks
                     if task.config.run_id not in result.kept]
        look_ahead(whole, result.chosen, stages, chosen, [*tasks, *ahead], where)
        execute(pool, tasks, f"stage {stage.stage.name}", result, quiet=quiet, part=part)
        planned = plan(study, request, store, machine.data_path)
        check_runs(study, request, planned)
        stages = planned[index:]
        stage = stages[0]
        due = [
            Observe(measure, run_ids)
            for measure, run_ids in measurements_due(stage, request, store)
            if len(run_ids) > 1 and part.configs.keys() >= set(run_ids)
        ]
        look_ahead(whole, result.chosen, stages, chosen, due, where)
        execute(pool, due, "pairs of runs", result, quiet=quiet, part=part)
        result.planned += len(chosen)
        result.chosen += len(chosen)
        for record in stage.records:
            if record is not None and record.config.run_id in part.configs:
                result.counts[record.status] = result.counts.get(record.status, 0) + 1


def check_data(configs: Sequence[RunConfig], machine: Machine, root: Path) -> dict[str, int]:
    """Read every data set once, here, so that a damaged or missing file stops the sweep before any training. The training
    examples of each run, by its id."""
    from experiments.lab.datasets import load

    found: dict[tuple[str, str | None], int] = {}
    sizes = {}
    for config in configs:
        if (key := (config.dataset, config.data_sha256)) not in found:
            found[key] = len(load(located(config, machine.data_path, root), machine.data_path).train.labels)
        sizes[config.run_id] = check_fits(config, found[key])
        machine.check(config)
    return sizes


def _tasks(stage: PlannedStage, chosen: Sequence[RunConfig], request: Request, store: Store) -> list[Train]:
    unmeasured = {runs[0] for _, runs in measurements_due(stage, request, store) if len(runs) == 1}
    missing = {config.run_id for config in stage.missing()}
    return [
        Train(config, tuple(stage.measures(config)), trained=config.run_id not in missing)
        for config in chosen
        if config.run_id in missing or config.run_id in unmeasured
    ]


def _programs(stage: PlannedStage, chosen: Sequence[RunConfig], store: Store, machine: Machine, workers: int) -> list[Fuse]:
    """Missing runs to train as one program first; where runs are trained alone, those that were begun as one."""
    wanted = {config.run_id for config in chosen}
    missing = [config for config in stage.missing() if config.run_id in wanted]
    if machine.fused == 1 or (machine.fused is None and not machine.device.startswith("cuda")):
        return [Fuse(group) for group in begun_together(missing, store)]
    most = min(machine.fused or MOST, max(2, -(-len(missing) // workers)))
    return [Fuse(group) for group in groups(missing, store, most)]


@dataclass
class Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None
    since: float = 0.0
    step: int | None = 0
    """of the run it trains; None while it measures"""


class Workers:
    """Local worker processes, started when the first task needs them and stopped on leaving, checkpoints written."""

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
        process = context.Process(target=serve, args=(theirs, self.root, self.machine), daemon=False)
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


def execute(pool: Workers, tasks: Sequence[Task], label: str, result: Result, *, quiet: bool,
            part: Part | None = None) -> None:
    """Give `tasks` to the workers until all are finished; failures become sentences in `result`."""
    if not tasks:
        return
    waiting = deque((0.0, task) for task in tasks)  # in order of the time from which each may be given out
    sweep = Sweep(len(tasks), pool.count, pending=Counter(map(kind_of, tasks)))
    if part is None:
        configs = [config for task in tasks for config in configs_of(task)]
        part = Part(sweep, label, names_among(configs), {c.run_id: c for c in configs}, Store(pool.root, create=False))
    sweep.seconds = part.whole.seconds
    with Progress(sweep, label, study=part.whole, study_label=part.label, quiet=quiet) as progress:
        while sweep.done < len(tasks):
            if pool.signal_number is not None:
                raise Stopped(pool.signal_number)
            now = time.monotonic()
            for worker in pool.idle(sum(since <= now for since, _ in islice(waiting, pool.count))):
                worker.task, worker.since, worker.step = waiting.popleft()[1], time.monotonic(), 0
                with contextlib.suppress(ConnectionError):  # a worker that died while idle: the next receive says so
                    worker.pipe.send(worker.task)
            busy = {worker.pipe: worker for worker in pool.workers if worker.task is not None}
            if not busy:
                time.sleep(0.1)
            for pipe in wait(list(busy), timeout=0.25):
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                assert worker.task is not None
                report = _receive(worker, pool)
                if report.kind == "step":
                    worker.step = report.detail
                elif report.kind == "measuring":
                    worker.step = None
                elif report.kind == "busy":
                    waiting.append((time.monotonic() + BUSY_SECONDS, worker.task))
                    worker.task = None
                else:
                    if report.kind == "stopped" and pool.signal_number is not None:  # the last task's, too
                        raise Stopped(pool.signal_number)
                    kind, failed = kind_of(worker.task), report.kind in ("failed", "stopped")
                    if not failed and report.kind != "alone":
                        sweep.measured(kind, time.monotonic() - worker.since)
                    sweep.finish(kind, failed=failed)
                    if part.whole is not sweep:
                        runs = isinstance(worker.task, Train)
                        part.whole.finish(kind, failed=failed and runs, counts=int(runs))
                    if report.kind == "stopped":
                        pool.workers.remove(worker)
                    if isinstance(worker.task, Fuse) and report.kind == "alone":
                        print(f"{name_of(worker.task, part)}: {report.detail}; they are trained alone", file=sys.stderr)
                    elif isinstance(worker.task, Fuse) and report.kind == "done":
                        pass
                    elif failed:
                        sentence = report.detail or "stopped from outside"
                        result.failures.append(f"{name_of(worker.task, part, ids=True)}: {sentence}")
                        if isinstance(worker.task, Fuse):
                            result.kept |= {config.run_id for config in worker.task.configs}
                            if part.whole is not sweep:
                                part.whole.failed += len(worker.task.configs)
                        for config in configs_of(worker.task):
                            note_failure(part.store, config.run_id, sentence)
                    elif isinstance(worker.task, Train):
                        result.trained += 1
                    else:
                        result.measured += 1
                    worker.task = None
            if progress.due():
                progress.update(*_status(pool, sweep, part))
        progress.update(*_status(pool, sweep, part))


def _how(code: int | None) -> str:
    """How a process ended, and the usual cause of it."""
    return f"exit code {code}; out of memory is the usual cause" if code == -signal.SIGKILL else f"exit code {code}"


def _receive(worker: Worker, pool: Workers) -> Report:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(5)
        pool.workers.remove(worker)
        code = worker.process.exitcode
        return Report("failed", f"its worker process died ({_how(code)})")


def _status(pool: Workers, sweep: Sweep, part: Part) -> tuple[dict[int, str], float]:
    now, lines, spent = time.monotonic(), {}, 0.0
    for number, worker in enumerate(pool.workers):
        if worker.task is not None:
            spent += now - worker.since
            lines[number] = f"{name_of(worker.task, part)}{_fraction(worker, sweep)}, {now - worker.since:.0f} s"
    return lines, spent


def _fraction(worker: Worker, sweep: Sweep) -> str:
    if worker.step is None:
        return ", measuring"
    if isinstance(worker.task, Observe) or worker.task is None or not worker.step:
        return ""
    total = known_steps(configs_of(worker.task)[0])
    if total is None:  # only training can tell; runs of the same kind took about as long
        eta = sweep.typical(kind_of(worker.task))
        left = "" if eta is None else f", ETA {max(0.0, eta - (time.monotonic() - worker.since)):.0f} s"
        return f", step {worker.step}{left}"
    left = (total - worker.step) * (time.monotonic() - worker.since) / worker.step
    return f", step {worker.step} of {total}, ETA {left:.0f} s"
