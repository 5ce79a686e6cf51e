"""Runs a study: workers on this machine take its missing runs and measurements, stage by stage."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from experiments.lab.datasets import load
from experiments.lab.declare.config import OWN, Machine, RunConfig, check_fits
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.session_code import in_session
from experiments.lab.declare.study import Request, Study
from experiments.lab.fused.groups import MOST, begun_together, groups
from experiments.lab.store.data_places import located
from experiments.lab.store.leases import clear_record
from experiments.lab.store.records import Store
from experiments.lab.store.underway import note_failure
from experiments.lab.sweep import tasks
from experiments.lab.sweep.outlook import Part, kind_of, look_ahead, name_of, say_what_is_there
from experiments.lab.sweep.plan import PlannedStage, measurements_due, plan, select
from experiments.lab.sweep.pool import Worker, Workers
from experiments.lab.sweep.progress import Screen, Sweep, headline, known_steps, names_among

BUSY_SECONDS = 2.0
"""pause before a run that another process holds is asked for again"""


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


def run_study(study: Study, request: Request, store: Store, machine: Machine, *, workers: int, where: Sequence[str] = (),
              quiet: bool = False, known: Mapping[str, str | None] | None = None) -> Result:
    """Train and measure what `study` still lacks at `request.scale`; returns how it ended. `known` is as `plan` takes it.

    Raises `UsageError`, `ConfigError` or `DataError` before anything is started, and `Stopped` after a signal, once
    every worker has written its checkpoint.
    """
    check_device(machine.device)
    result = Result()
    with Workers(store.root, machine, workers) as pool:
        try:
            _run_stages(pool, study, request, store, machine, result, where=where, quiet=quiet, known=known)
        except Stopped:
            if not quiet and (busy := sum(worker.task is not None for worker in pool.workers)):
                print(f"stopping: {busy} at work, checkpoints are being written", file=sys.stderr, flush=True)
            raise
    return result


def _run_stages(pool: Workers, study: Study, request: Request, store: Store, machine: Machine, result: Result, *,
                where: Sequence[str], quiet: bool, known: Mapping[str, str | None] | None) -> None:
    whole = Sweep(0, pool.count)
    for index in range(len(study.stages)):
        stage, *later = plan(study, request, store, machine.data_dir, known)[index:]
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
        work = _tasks(stage, chosen, request, store)
        _check_importable([task.config for task in work])
        check_data([task.config for task in work], machine, store.root)
        if index == 0 and not quiet:
            say_what_is_there([stage, *later], where, store)
        ahead = [tasks.MeasurePair(pair.measure, (pair.first.run_id, pair.second.run_id)) for pair in stage.pairs(request)]
        ahead = [task for task in ahead if part.configs.keys() >= set(task.run_ids)]
        ahead = [task for task in ahead if not store.measured(task.measure, task.run_ids)]
        if programs := _programs(stage, chosen, store, machine, pool.count):
            together = {config.run_id for program in programs for config in program.configs}
            after = [replace(task, trained=task.trained or task.config.run_id in together) for task in work]
            look_ahead(whole, result.chosen, stage, later, chosen, [*programs, *after, *ahead], where)
            execute(pool, programs, f"together, stage {stage.stage.name}", result, quiet=quiet, part=part)
            work = [replace(task, trained=store.finished(task.config.run_id)) for task in work
                     if task.config.run_id not in result.kept]
        look_ahead(whole, result.chosen, stage, later, chosen, [*work, *ahead], where)
        execute(pool, work, f"stage {stage.stage.name}", result, quiet=quiet, part=part)
        stage, *later = plan(study, request, store, machine.data_dir, known)[index:]
        due = [tasks.MeasurePair(measure, run_ids)
               for measure, run_ids in measurements_due(stage, request, store)
               if len(run_ids) > 1 and part.configs.keys() >= set(run_ids)]
        look_ahead(whole, result.chosen, stage, later, chosen, due, where)
        execute(pool, due, "pairs of runs", result, quiet=quiet, part=part)
        result.planned += len(chosen)
        result.chosen += len(chosen)
        for record in stage.records:
            if record is not None and record.config.run_id in part.configs:
                result.counts[record.status] = result.counts.get(record.status, 0) + 1


def _check_importable(configs: Sequence[RunConfig]) -> None:
    """Raise `UsageError` for a run of a notebook's or a script's own function, which no worker could import."""
    for config in configs:
        if of := [name for part in OWN if in_session(name := getattr(config, part))]:
            raise UsageError(f"run {config.run_id} is of {of[0]}, a function of a notebook or script, which only that can "
                             "train and measure; call its sweep there again")


def check_data(configs: Sequence[RunConfig], machine: Machine, root: Path) -> None:
    """Read every data set once, here, so that a damaged or missing file stops the sweep before any training."""
    found: dict[tuple[str, str | None], tuple[int, int | None]] = {}
    for config in configs:
        if (key := (config.dataset, config.data_sha256)) not in found:
            dataset = load(located(config, machine.data_dir, root), machine.data_dir)
            apart = None if dataset.validation is None else len(dataset.validation.targets)
            found[key] = len(dataset.train.targets), apart
        check_fits(config, *found[key])
        machine.check(config)


def _tasks(stage: PlannedStage, chosen: Sequence[RunConfig], request: Request, store: Store) -> list[tasks.Train]:
    unmeasured = {runs[0] for _, runs in measurements_due(stage, request, store) if len(runs) == 1}
    missing = {config.run_id for config in stage.missing()}
    return [tasks.Train(config, tuple(stage.measures(config)), trained=config.run_id not in missing)
            for config in chosen
            if config.run_id in missing or config.run_id in unmeasured]


def _programs(stage: PlannedStage, chosen: Sequence[RunConfig], store: Store, machine: Machine,
              workers: int) -> list[tasks.TrainTogether]:
    """Missing runs to train as one program first; where runs are trained alone, those that were begun as one."""
    wanted = {config.run_id for config in chosen}
    missing = [config for config in stage.missing() if config.run_id in wanted]
    if machine.fused == 1 or (machine.fused is None and not machine.device.startswith("cuda")):
        return [tasks.TrainTogether(group) for group in begun_together(missing, store)]
    most = min(machine.fused or MOST, max(2, -(-len(missing) // workers)))
    return [tasks.TrainTogether(group) for group in groups(missing, store, most)]


def execute(pool: Workers, work: Sequence[tasks.Task], label: str, result: Result, *, quiet: bool,
            part: Part | None = None) -> None:
    """Give `work` to the workers until all are finished; failures become sentences in `result`."""
    if not work:
        return
    waiting = deque((0.0, task) for task in work)  # in order of the time from which each may be given out
    sweep = Sweep(len(work), pool.count, pending=Counter(map(kind_of, work)))
    if part is None:
        configs = [config for task in work for config in task.configs]
        part = Part(sweep, label, names_among(configs), {c.run_id: c for c in configs}, Store(pool.root, create=False))
    sweep.seconds = part.whole.seconds
    with Screen(quiet=quiet) as screen:
        while sweep.done < len(work):
            if pool.signal_number is not None:
                raise Stopped(pool.signal_number)
            now = time.monotonic()
            for worker in pool.idle(sum(since <= now for since, _ in islice(waiting, pool.count))):
                worker.give(waiting.popleft()[1])
            for worker, task, report in pool.reports(0.25):
                match report:
                    case tasks.Underway(step):
                        worker.step = step
                    case tasks.Busy():
                        waiting.append((time.monotonic() + BUSY_SECONDS, task))
                        worker.task = None
                    case tasks.Signalled() if pool.signal_number is not None:  # the last task's, too
                        raise Stopped(pool.signal_number)
                    case tasks.Finished() | tasks.TrainAlone() | tasks.Failed() | tasks.Signalled():
                        _count(worker, task, report, sweep, part, result)
                        worker.task = None
                        if isinstance(report, tasks.Signalled):
                            pool.workers.remove(worker)
            if screen.due():
                screen.show(*_status(pool, sweep, label, part))
        if not quiet:
            screen.show(*_status(pool, sweep, label, part))


def _count(worker: Worker, task: tasks.Task, report: tasks.Report, sweep: Sweep, part: Part, result: Result) -> None:
    """A task has ended: count it in its sweep and in its study, and keep the sentence of a failure."""
    kind, trains, failed = kind_of(task), isinstance(task, tasks.Train), isinstance(report, tasks.Failed | tasks.Signalled)
    sweep.finish(kind, failed=failed)
    if part.whole is not sweep:
        part.whole.finish(kind, failed=failed and trains, counts=int(trains))
    match report:
        case tasks.Finished():
            sweep.measured(kind, time.monotonic() - worker.since)
            result.trained += trains
            result.measured += isinstance(task, tasks.MeasurePair)
        case tasks.TrainAlone(why):
            print(f"{name_of(task, part)}: {why}; they are trained alone", file=sys.stderr)
        case tasks.Failed(why) | tasks.Signalled(why):
            result.failures.append(f"{name_of(task, part, ids=True)}: {why}")
            if isinstance(task, tasks.TrainTogether):
                result.kept |= {config.run_id for config in task.configs}
                if part.whole is not sweep:
                    part.whole.failed += len(task.configs)
            for config in task.configs:
                note_failure(part.store, config.run_id, why)


def _status(pool: Workers, sweep: Sweep, label: str, part: Part) -> tuple[str, list[str]]:
    """How far the study and its sweep are, and a line per busy worker."""
    now, lines, spent = time.monotonic(), [], 0.0
    for worker in pool.workers:
        if worker.task is not None:
            spent += now - worker.since
            lines.append(f"{name_of(worker.task, part)}{_fraction(worker, sweep)}, {now - worker.since:.0f} s")
    return headline(sweep, label, part.whole, part.label, spent), lines


def _fraction(worker: Worker, sweep: Sweep) -> str:
    if worker.step is None:
        return ", measuring"
    if worker.task is None or not worker.task.configs or not worker.step:
        return ""
    total = known_steps(worker.task.configs[0])
    if total is None:  # only training can tell; runs of the same kind took about as long
        eta = sweep.typical(kind_of(worker.task))
        left = "" if eta is None else f", ETA {max(0.0, eta - (time.monotonic() - worker.since)):.0f} s"
        return f", step {worker.step}{left}"
    left = (total - worker.step) * (time.monotonic() - worker.since) / worker.step
    return f", step {worker.step} of {total}, ETA {left:.0f} s"
