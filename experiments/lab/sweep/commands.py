"""What each command does: options in, (exit status, document) out. Printing is the caller's."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from experiments.lab.datasets import NAMES, OWN_FORMS, DataError
from experiments.lab.declare.checkout import FIGURES
from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.finding import Broken, file_of, search
from experiments.lab.declare.grid import grid
from experiments.lab.declare.own_code import is_own_data
from experiments.lab.declare.settings import listed
from experiments.lab.declare.study import Request, Study
from experiments.lab.declare.tuning import TUNING
from experiments.lab.store import check, sweeps, transfer
from experiments.lab.store.data_places import located
from experiments.lab.store.files import StoreError
from experiments.lab.store.records import Store
from experiments.lab.store.underway import Begun, begun
from experiments.lab.sweep import board, launch, terminal
from experiments.lab.sweep.changed import changed
from experiments.lab.sweep.own_tasks import Looked
from experiments.lab.sweep.plan import (
    BrokenStudyError,
    PlannedStage,
    asked_for,
    check_names,
    find_study,
    folder_of_studies,
    identified,
    scale_of,
    select,
)
from experiments.lab.sweep.plan import plan as make_plan
from experiments.lab.sweep.process import Stopper, keep_freed_memory, set_blas_threads
from experiments.lab.sweep.progress import Training, duration, known_steps, names_among
from experiments.lab.sweep.tasks import Busy, Failed, Finished, Train


def overview(options: Any) -> tuple[int, Any]:
    """Every study with its claims, how many runs of each scale the store has, and the files that give no study."""
    store = Store(options.store, create=False)
    found = search(folder_of_studies(options.studies))
    shown, broken = [], list(found.broken)
    for study in found.studies.values():
        try:
            check_names(study)
            shown.append(_listed(study, store))
        except BrokenStudyError as error:
            broken.append(error.broken)
        except DataError as error:
            broken.append(Broken(study.name, str(file_of(study) or study.module), None, str(error)))
    return 0, {"store": str(options.store), "studies": shown, "broken": [vars(b) for b in broken],
               "sweeps": sweeps.names(options.store), "board": board.published()}


def _listed(study: Study, store: Store) -> dict[str, Any]:
    scales = []
    for scale in study.scales:
        request = Request(scale.name)
        stages = make_plan(study, request, store)
        claims = [{"id": c.id, "sentence": c.sentence, "primary": c.primary, "hash": c.hash} for c in study.claims_at(scale.name)]
        scales.append({"scale": scale.name, "about": scale.about, "cost": scale.cost, "claims": claims,
                       "finished": sum(record is not None for stage in stages for record in stage.records),
                       "runs": sum(stage.at_most for stage in stages)})
    return {"study": study.name, "title": study.title, "citation": study.citation, "scales": scales}


MAX_SEEDS, MAX_THREADS = 1000, 1024


def overview_text(document: Any) -> str:
    """The studies and the board of published primary verdicts as a person reads them."""
    lines = [f"The studies, and their runs in the store {document['store']}:"]
    for study in document["studies"]:
        lines += ["", f"{study['study']}: {study['title']}", f"  {study['citation']}"]
        for scale in study["scales"]:
            lines.append(f"  {scale['scale']}: {scale['finished']} of {scale['runs']} runs, {len(scale['claims'])} claims; "
                         f"{scale['about']}; {scale['cost']}")
    if document["sweeps"]:
        lines += ["", f"Sweeps in this store: {', '.join(document['sweeps'])}"]
    if document["broken"]:
        lines += ["", "Broken, and left out:", *(f"  {Broken(**broken).sentence}" for broken in document["broken"])]
    primary = [verdict for verdict in document["board"] if verdict["primary"]]
    if primary:
        lines += ["", "What was found (primary claims; all of them: figures/README.md, or --json):", "", board.text(primary), ""]
        lines.append(f"{len(document['board'])} published claims: {board.tally(document['board'])}.")
    return "\n".join([*lines, "", "Next: `python -m experiments plan STUDY --scale SCALE`; --help lists the commands."])


def plan(options: Any) -> tuple[int, Any]:
    """Every run of a study with its state; later stages as an upper bound."""
    document = _planned(options)
    missing = [config for stage in document["stages"] for config, state, _ in stage["runs"] if state in UNDER_WAY]
    if sentences := changed(missing, Store(options.store, create=False)):
        document["changed"] = sentences
    for stage in document["stages"]:
        stage["runs"] = [
            {"run_id": config.run_id, "state": "missing" if state == "waiting" else state, "config": config.to_dict()}
            for config, state, _ in stage["runs"]
        ]
    return 0, document


def status(options: Any) -> tuple[int, Any]:
    """Counts by stage and status, and what is under way. Exit status 1 while runs are missing."""
    code, document, lists = 0, _planned(options), {name: [] for name in UNDER_WAY}
    for stage in document["stages"]:
        runs = stage.pop("runs")
        stage["states"] = dict(Counter(state for _, state, _ in runs))
        stage["counts"] = dict(Counter("missing" if state in UNDER_WAY else state for _, state, _ in runs))
        names = names_among([config for config, _, _ in runs])
        for config, state, found in runs:
            if state in UNDER_WAY and (state != "waiting" or len(lists[state]) < FIRST_WAITING):
                lists[state].append(_under_way(stage["stage"], config, names.of(config), found))
        code = max(code, int(not stage["known"] or "missing" in stage["counts"]))
    return code, document | lists | {"store": str(options.store)}


UNDER_WAY = ("running", "interrupted", "failed", "waiting")
FIRST_WAITING = 10
"""waiting runs that `status` names: nobody began them, and `plan` lists all"""


def _under_way(stage: str, config: RunConfig, name: str, found: Begun | None) -> dict[str, Any]:
    """A run without a record as `status` shows it; what is not known is null."""
    found = found or Begun("waiting")
    since = None if found.since is None else datetime.fromtimestamp(found.since, UTC).isoformat(timespec="seconds")
    machine = None if found.here is None else "this" if found.here else "another"
    return {"run_id": config.run_id, "stage": stage, "name": name, "step": found.step, "of_steps": known_steps(config),
            "machine": machine, "pid": found.pid, "since": since, "failure": found.failure}


def _planned(options: Any) -> dict[str, Any]:
    """A study's stages with the chosen runs, each with its state and what is known of it where it is not finished."""
    study, request, store, look = _study(options)
    stages, planned = [], make_plan(study, request, store, options.data_dir, look.hashes)
    _note(look, planned)
    for stage in planned:
        known = stage.runs is not None
        records = {config.run_id: record for config, record in zip(stage.runs or (), stage.records, strict=True)}
        chosen = select(stage.runs or (), options.where)
        found = begun(store, [config.run_id for config in chosen if records[config.run_id] is None])
        runs: list[tuple[RunConfig, str, Begun | None]] = []
        for config in chosen:
            record, way = records[config.run_id], found.get(config.run_id)
            if record is None and way is None and config.run_id in found:  # recorded meanwhile
                record = store.record(config)
            runs.append((config, record.status if record else way.state if way else "waiting", way))
        stages.append({"stage": stage.stage.name, "known": known, "at_most": len(runs) if known else stage.at_most, "runs": runs})
    if options.where and not any(stage["runs"] or not stage["known"] for stage in stages):
        raise UsageError(f"--where {' '.join(options.where)} keeps no run of {study.name} at scale {request.scale}")
    scale = study.scale(request.scale)
    settings = listed(scale.settings)
    fit = {"fitted": {name: settings[name] for name in scale.fitted}} if scale.own else {}
    return {"study": study.name, "scale": scale.name, "cost": scale.cost, "settings": settings, **fit, "stages": stages}


def run(options: Any) -> tuple[int, Any]:
    """Train and measure what is missing."""
    study, request, store, look = _study(options, create=True)
    _note(look, make_plan(study, request, store, options.data_dir, look.hashes))
    cuda = options.device.startswith("cuda")
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers is {options.workers}, but must be at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = options.workers or (1 if cuda else cores)
    machine = Machine(device=options.device, fused=options.fused, micro_batch=options.micro_batch, data_dir=options.data_dir)
    result = launch.run_study(study, request, store, machine, workers=workers, where=options.where, quiet=options.json,
                              known=look.hashes)
    if result.chosen == 0 and options.where:
        asked = f"plan {study.name} --scale {study.scale(request.scale).asked}"
        raise UsageError(f"--where {' '.join(options.where)} keeps no known run; see {asked}")
    for sentence in result.failures:
        print(f"failed: {sentence}", file=sys.stderr)
    if result.left_out:
        stages = ", ".join(result.left_out)
        print(f"note: stage {stages} needs all runs of the stages before; run without --where", file=sys.stderr)
    return 0 if result.complete else 1, {
        "study": study.name, "scale": request.scale, "store": str(options.store), "planned": result.planned,
        "counts": result.counts, "trained_or_measured_now": result.trained, "pairs_measured_now": result.measured,
        "failures": result.failures, "complete": result.complete,
        "next": _next(options, complete=result.complete, left_out=result.left_out),
    }


def sweep(options: Any) -> str:
    """Keep the sweep that `options` ask for in the store; returns its name."""
    if not 1 <= options.seeds <= MAX_SEEDS:
        raise UsageError(f"--seeds is {str(options.seeds)[:20]}, but must be from 1 to {MAX_SEEDS}: pilots have the seeds above")
    launch.check_device(options.device)
    hashes: dict[str, str | None] = {}
    found = Store(options.store, create=False)
    cells = [identified(cell, options.data_dir, found, hashes) for cell in grid(options.fields)]
    Store(options.store)
    return sweeps.kept(options.store, cells, options.seeds, options.name).name


def _next(options: Any, *, complete: bool, left_out: Sequence[str]) -> str | None:
    """The command for what comes after `run`, None where the same one goes on."""
    if not complete:
        return None
    seeds = [f"--seeds={options.seeds}"] if options.seeds is not None and (options.pilot or left_out) else []
    command = "run" if left_out else "pilot" if options.pilot else "report"
    pilot = ["--pilot"] if left_out and options.pilot else []
    return terminal.command_line(command, options.study, options, *seeds, *pilot)


def train(options: Any) -> tuple[int, Any]:
    """Train one run in this process."""
    launch.check_device(options.device)
    _limit_threads(options.threads)
    from experiments.lab.store.run_folder import Interrupted
    from experiments.lab.sweep.worker import run_task
    from experiments.lab.training.data import prepare, read

    config = identified(options.config, options.data_dir, Store(options.store, create=False), {})
    machine = Machine(device=options.device, threads=options.threads, micro_batch=options.micro_batch, data_dir=options.data_dir)
    machine.check(config)
    data = prepare(config, machine, read(located(config, machine.data_dir, options.store), machine.data_dir))
    store, stopper, asked = Store(options.store), Stopper(), []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: (asked.append(n), stopper(n, frame)))
    if store.finished(config.run_id) and not options.json:
        print(f"run {config.run_id} is finished already: this is its record", file=sys.stderr, flush=True)
    for sentence in changed([config], store):
        print(f"note: {sentence}", file=sys.stderr, flush=True)
    try:
        with Training(config, len(data.train), quiet=options.json) as watch:
            report = run_task(Train(config), store, machine, stopper, None, watch)
    except Interrupted:
        raise launch.Stopped(asked[0]) from None
    match report:
        case Failed(why):
            raise StoreError(why)
        case Busy():
            raise StoreError(f"another process is training run {config.run_id}; wait for it or use another --store")
    return int(report == Finished("diverged")), store.summary(config.run_id)


def measure(options: Any) -> tuple[int, Any]:
    """Measure a stored run; what is measured already is only printed."""
    launch.check_device(options.device)
    _limit_threads(options.threads)
    from experiments.lab.measures.perform import performing
    from experiments.lab.measures.registry import names_of_one_run, standard

    known = names_of_one_run()
    if unknown := [metric for metric in options.metrics if metric != "all" and metric not in known]:
        raise UsageError(f"there is no metric {unknown[0]!r} of one run; the metrics are all, {', '.join(known)}")
    if options.examples is not None and options.examples < 1:
        raise UsageError(f"--examples is {options.examples}, but must be at least 1")
    store = Store(options.store, create=False)
    run_id = store.resolve(options.run)
    machine = Machine(device=options.device, data_dir=options.data_dir)
    measures = [standard(metric, options.examples) for metric in (known if "all" in options.metrics else options.metrics)]
    if not all(store.measured(asked, [run_id]) for asked in measures):
        store = Store(options.store)
    started = time.monotonic()
    for number, total, made in performing(store, machine, measures, [run_id]):
        elapsed = duration(time.monotonic() - started)
        print(f"{number} of {total} measured: {made.metric}, {elapsed} elapsed", file=sys.stderr, flush=True)
    return 0, {"run_id": run_id, "measurements": [store.measurement(measure, [run_id]) for measure in measures]}


def store(options: Any) -> tuple[int, Any]:
    """Check, export or import records."""
    if (options.published and options.action != "import") or (options.scale and not options.published):
        raise UsageError("--published belongs to store import, and --scale to store import --published")
    if options.published:
        from experiments.lab.sweep.published import import_published  # numpy takes a tenth of a second

        study = None if options.file is None else str(options.file)
        taken, left = import_published(Store(options.store), FIGURES, study, options.scale)
        return 0, {"imported": taken, "left_as_they_are": left}
    if options.action != "check" and options.file is None:
        raise UsageError(f"store {options.action} needs the archive's name, for example runs.tar")
    if options.action in ("check", "export") and not (options.store / "runs").is_dir():
        raise StoreError(f"there is no store at {options.store}; name one with --store")
    if options.repair and options.action != "check":
        raise UsageError(f"--repair belongs to store check, not to store {options.action}")
    if options.action == "check":
        return _check(Store(options.store, create=False), repair=options.repair)
    if options.action == "export":
        return 0, {"exported": transfer.export_runs(Store(options.store, create=False), options.file)}
    return 0, {"imported": transfer.import_runs(Store(options.store), options.file)}


def _check(store: Store, *, repair: bool) -> tuple[int, Any]:
    found = check.check(store)
    moved = check.repair(store, found) if repair else []
    notes = []
    if found.unchecked:
        notes.append(
            f"{len(found.unchecked)} runs and measurements are of an older batchlab and carry no digests of their numbers, "
            "which cannot be checked; run them again into a new store to have them checked"
        )
    if found.foreign:
        notes.append(f"{len(found.foreign)} runs were made under another science version; they are kept and never used")
    document = {"store": str(store.root), "damaged": [sentence for _, sentence in found.damaged], "moved": moved,
                "unreadable": [sentence for _, sentence in found.unreadable],
                "unchecked": found.unchecked, "of_another_science_version": found.foreign, "notes": notes}
    return int((len(found.damaged) > 0 and not repair) or len(found.unreadable) > 0), document


def readable(document: Any, indent: int = 0) -> str:
    """A document as indented text: what a person reads where a program would ask for --json."""
    pad = "  " * indent
    if isinstance(document, dict):
        if "config" in document and "run_id" in document:
            fields = " ".join(f"{k}={v}" for k, v in document["config"].items())
            return f"{pad}{document['run_id']}  {document.get('state', ''):11s} {fields}"
        lines = []
        for name, value in document.items():
            if isinstance(value, (dict, list)) and value:
                lines += [f"{pad}{name}:", readable(value, indent + 1)]
            else:
                shown = "none" if value in ({}, []) else f"{value:.6g}" if isinstance(value, float) else value
                lines.append(f"{pad}{name}: {shown}")
        return "\n".join(lines)
    if isinstance(document, list):
        return "\n".join(readable(item, indent) for item in document)
    return f"{pad}{document}"


def _note(look: Looked, stages: Sequence[PlannedStage]) -> None:
    """Keep what an own task is made of, for commands that only read results, and say what has changed."""
    for part in look.note([config for stage in stages for config in stage.runs or ()]):
        print(f"note: {part} has changed since it was last planned, so that these are other runs", file=sys.stderr)


def _study(options: Any, *, create: bool = False) -> tuple[Study, Request, Store, Looked]:
    study = find_study(options.study, folder_of_studies(options.studies), options.store)
    if options.seeds is not None and not 1 <= options.seeds <= MAX_SEEDS:
        raise UsageError(f"--seeds is {str(options.seeds)[:20]}, but must be from 1 to {MAX_SEEDS}: pilots have the seeds above")
    for name in [text for name, _, text in (words.partition("=") for words in options.set) if name == "dataset"]:
        if name not in NAMES and not is_own_data(name):
            raise UsageError(f"there is no data set {name!r}; use {', '.join(NAMES)}, or {OWN_FORMS}")
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise DataError(f"the data folder {options.data_dir} does not exist; create it or give another --data-dir")
    look = Looked(Store(options.store, create=False), options.data_dir)
    study, scale = asked_for(study, scale_of(study, options.scale), options.set, look)
    seeds = options.seeds or getattr(study.scale(scale).settings, "seeds", 0)
    if seeds > TUNING.start and not options.pilot and _tunes(study, scale):
        raise UsageError(
            f"seeds is {seeds}, but must be at most {TUNING.start}: {study.name} chooses its settings with the seeds "
            f"from {TUNING.start} to {TUNING.stop - 1}"
        )
    return study, Request(scale, options.seeds, options.pilot), Store(options.store, create=create), look


def _tunes(study: Any, scale: str) -> bool:
    """Whether the first stage trains on the seeds that settings are chosen with."""
    return any(config.seed in TUNING for config in study.stages[0].runs_of(Request(scale), ()))


def _limit_threads(threads: int) -> None:
    """For this process to compute in: threads of numpy's BLAS, which reads its number once, and of torch; memory kept."""
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"--threads is {str(threads)[:20]}, but must be from 1 to {MAX_THREADS}")
    set_blas_threads(threads)
    keep_freed_memory()
    import torch

    torch.set_num_threads(threads)
