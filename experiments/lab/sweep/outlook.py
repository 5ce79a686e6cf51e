"""What a study's sweep has before it and how it is told: what is there already, what is left, names and kinds of tasks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.lab.declare.config import RunConfig
from experiments.lab.store.records import Store
from experiments.lab.store.underway import begun
from experiments.lab.sweep.plan import PlannedStage, select
from experiments.lab.sweep.progress import LATER, Kind, Names, Sweep, known_steps
from experiments.lab.sweep.tasks import MeasurePair, Task, Train, TrainTogether


@dataclass(frozen=True)
class Part:
    """What a sweep is a part of, and how its runs are called there."""

    whole: Sweep
    """the runs of all stages"""
    label: str
    names: Names
    configs: Mapping[str, RunConfig]
    """the stage's chosen runs by their ids"""
    store: Store


def say_what_is_there(stages: Sequence[PlannedStage], where: Sequence[str], store: Store) -> None:
    """One line on what this call need not do again; none where it is the first."""
    chosen = {config.run_id: config for stage in stages for config in select(stage.runs or (), where)}
    missing = [c.run_id for stage in stages for c in stage.missing() if c.run_id in chosen]
    total = len(chosen) + sum(stage.at_most for stage in stages if stage.runs is None)
    there, bound = len(chosen) - len(missing), "at most " if total > len(chosen) else ""
    found = begun(store, missing)
    steps = [f"step {run.step:,}" + (f" of {of:,}" if (of := known_steps(chosen[run_id])) else "")
             for run_id, run in found.items() if run and run.step is not None and run.state != "running"]
    running = sum(run is not None and run.state == "running" for run in found.values())
    parts = [f"{there:,} of {bound}{total:,} runs {'is' if there == 1 else 'are'} in the store already"]
    if steps:
        shown = ", ".join(steps[:3]) + (", ..." if len(steps) > 3 else "")
        parts.append(f"{len(steps):,} {'goes on from its checkpoint' if len(steps) == 1 else 'go on from their checkpoints'} "
                     f"({shown})")
    if running:
        parts.append(f"{running:,} {'is' if running == 1 else 'are'} being computed by another process")
    if there or len(parts) > 1:
        print("; ".join(parts), file=sys.stderr, flush=True)


def look_ahead(whole: Sweep, ended: int, stage: PlannedStage, later: Sequence[PlannedStage], chosen: Sequence[RunConfig],
               work: Sequence[Task], where: Sequence[str]) -> None:
    """Bring `whole` up to date: of `stage` the tasks `work` are left, of `later` ones their missing runs, or as many as they
    may have at most; `ended` runs belong to earlier stages."""
    whole.pending = Counter(map(kind_of, work))
    whole.total = ended + len(chosen)
    whole.done = whole.total - sum(isinstance(task, Train) for task in work)
    if where and {c.run_id for c in stage.missing()} - {c.run_id for c in chosen}:
        return  # --where leaves runs out that later stages wait for
    for stage in later:
        if stage.runs is None:
            whole.total += stage.at_most
            whole.pending[LATER] += stage.at_most
            continue
        kept = {config.run_id for config in select(stage.runs, where)}
        missing = [config for config in stage.missing() if config.run_id in kept]
        whole.total += len(kept)
        whole.done += len(kept) - len(missing)
        whole.pending.update(kind_of(Train(config, tuple(stage.measures(config)))) for config in missing)


def kind_of(task: Task) -> Kind:
    """Tasks of one kind take about equally long; the first word tells training, measuring and pairs apart."""
    if isinstance(task, MeasurePair):
        return "pair", task.measure.metric
    c = task.configs[0]
    same = (c.dataset, c.n_train, c.model, c.width, c.depth, c.norm, c.batch_size, c.optimizer, c.sam_rho > 0, c.precision)
    budget = (c.epochs, c.steps, c.train_loss, c.patience, c.max_epochs)
    match task:
        case Train(_, measures, trained=True):
            return "measure", len(measures), *same
        case Train(_, measures):
            return "train", len(measures), *same, *budget
        case TrainTogether(configs):
            return "together", len(configs), *same, *budget


def name_of(task: Task, part: Part, *, ids: bool = False) -> str:
    """A task by what tells its runs apart within the sweep; with `ids` also by the first digits of their run ids."""
    run_ids = task.run_ids if isinstance(task, MeasurePair) else [config.run_id for config in task.configs]
    shown = f" ({', '.join(run_id[:8] for run_id in run_ids[:4])}{', ...' * (len(run_ids) > 4)})" if ids else ""
    match task:
        case MeasurePair(measure):
            runs = (part.names.of(part.configs[i]) if i in part.configs else i[:8] for i in run_ids)
            return f"{measure.metric} of {' and '.join(runs)}{shown}"
        case Train(config):
            return part.names.of(config) + shown
        case TrainTogether(configs):
            return f"{len(configs)} runs together {part.names.of(*configs)}{shown}".strip()
