"""The parts of a GPU visit. Each runs in a process of its own that `visit.py` may end at any time, and writes as it goes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.lab.declare.config import Machine, RunConfig, program
from experiments.lab.store.files import finite_or_null, to_json, write_atomic

HERE = Path(__file__).resolve().parent
TOGETHER = 3
"""seeds trained as one program at most: half of the declared ones, so that half of a visit still compares both batch sizes"""
MEASURING = 7
"""processes that measure while the next program trains: much of a measurement is the CPU's"""
TIME_IS_UP = 143


@dataclass(frozen=True)
class Job:
    """What a part is told."""

    out: Path
    store: Path
    device: str
    rehearsal: bool
    data: Path | None
    records: Path | None

    @property
    def mark(self) -> str | None:
        """What every output of a rehearsal says."""
        where = "GPU" if self.device.startswith("cuda") else "CPU"
        return f"rehearsal on {where}: these numbers are no results" if self.rehearsal else None

    def write(self, part: str, document: dict[str, Any]) -> None:
        content = {"part": part, "rehearsal": self.mark, **document}
        write_atomic(self.out / f"{part}.json", to_json(finite_or_null(content)))


def machine(job: Job) -> int:
    """What is here: a process of its own, because a driver may hang when it is first asked."""
    import torch

    from experiments.lab.store.provenance import hardware

    facts: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "cuda available": torch.cuda.is_available(),
        "cores": os.cpu_count(), "hardware": hardware("cpu"),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        torch.ones(1, device="cuda").sum().item()
        facts |= {"hardware": hardware("cuda"), "memory, GiB": round(properties.total_memory / 2**30, 1),
                  "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda,
                  "cudnn": torch.backends.cudnn.version(), "driver": driver()}
    job.write("machine", facts)
    return 0


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def correctness(job: Job) -> int:
    import torch
    from gpu.checks import CHECKS, run_all

    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    job.write("correctness", {"checks": found, "not run": list(CHECKS)})
    for check in run_all(job.device):
        found.append(check.to_dict())
        job.write("correctness", {"checks": found, "not run": list(CHECKS)[len(found) :]})
    return int(any(check["status"] == "failed" for check in found))


def speed(job: Job) -> int:
    import bench_gpu

    words = ["--device", job.device, "--json", str(job.out / "speed.json"), "--parts", "small batches,large batch,determinism",
             "--tiny" if job.rehearsal else "--short"]
    if job.data is not None and not job.rehearsal:
        words += ["--dataset", "cifar10-jpeg", "--data-dir", str(job.data)]
    return bench_gpu.main(words)


def study(job: Job) -> int:
    """Train and measure scale `gpu`, program by program; what is finished is exported after each."""
    from experiments.lab.declare.study import Request
    from experiments.lab.store import transfer
    from experiments.lab.store.records import Store
    from experiments.lab.sweep import launch, pool
    from experiments.lab.sweep.plan import find_study, plan
    from experiments.lab.sweep.tasks import Train, TrainTogether

    if job.rehearsal:
        import experiments

        experiments.__path__.append(str(HERE / "studies"))
    wanted, request = find_study("rehearsal" if job.rehearsal else "keskar2017"), Request("gpu")
    store = Store(job.store)
    if job.records is not None:
        print(f"{transfer.import_runs(store, job.records)} runs taken from {job.records}", flush=True)
    settings = Machine(device=job.device, data_dir=job.data, fused=2 if job.rehearsal else None)
    stage = plan(wanted, request, store, settings.data_dir)[0]
    launch.check_data(stage.runs or (), settings, store.root)
    waiting = [Train(record.config, tuple(stage.measures(record.config))) for record in stage.records if record is not None]
    result, said = launch.Result(), "running"
    measuring = 1 if job.rehearsal else max(1, min(MEASURING, (os.cpu_count() or 1) - 2))

    pool.STOP_SECONDS = 8.0  # less than a visit waits for this part, so that it still exports

    def tell() -> None:
        document = {"study": wanted.name, "scale": request.scale, "said": said, "failures": result.failures,
                    "exported": export(job, wanted, request, store), **progress(wanted, request, store)}
        job.write("study", document)
        job.write("study", document | answers(wanted, store))

    tell()
    try:
        with pool.Workers(store.root, settings, 1 + measuring) as workers:
            for group in rounds(stage.missing(), 2 if job.rehearsal else TOGETHER):
                fused = [TrainTogether(group)] if len(group) > 1 else []
                launch.execute(workers, [*fused, *waiting], f"{wanted.name} gpu", result, quiet=False)
                waiting = [Train(config, tuple(stage.measures(config))) for config in group]
                tell()
            launch.execute(workers, waiting, f"{wanted.name} gpu, measuring", result, quiet=False)
        said = "failed" if result.failures else "finished"
    except launch.Stopped:
        said = "time was up"
        return TIME_IS_UP
    finally:
        tell()
    if job.rehearsal and said == "finished":
        document = json.loads((job.out / "study.json").read_bytes())
        job.write("study", document | {"published": published(job, wanted)})
    return int(said == "failed")


def missing(names: Sequence[str]) -> list[str]:
    """Packages that are not installed here."""
    found = []
    for name in names:
        try:
            if importlib.util.find_spec(name) is None:
                found.append(name)
        except ImportError:
            found.append(name)
    return found


def rounds(missing: Sequence[RunConfig], seeds: int) -> list[tuple[RunConfig, ...]]:
    """Programs in the order of their seeds, so many seeds at a time: an early end leaves a balanced comparison."""
    every = sorted({config.seed for config in missing})
    found = []
    for first in range(0, len(every), seeds):
        alike: dict[Any, list[RunConfig]] = {}
        for config in missing:
            if config.seed in every[first : first + seeds]:
                alike.setdefault(program(config), []).append(config)
        found += [tuple(group) for group in alike.values()]
    return found


def export(job: Job, wanted: Any, request: Any, store: Any) -> dict[str, Any] | None:
    """Every finished run as an archive for `store import`, without the weights of those that are measured."""
    from experiments.lab.store import transfer
    from experiments.lab.sweep.plan import measurements_due, plan

    stage = plan(wanted, request, store)[0]
    due = {run_ids[0] for _, run_ids in measurements_due(stage, request, store)}
    finished = [record.config.run_id for record in stage.records if record is not None]
    if not finished:
        return None
    archive = job.out / ("rehearsal.tar" if job.rehearsal else "runs.tar")
    count = transfer.export_runs(store, archive, light=[run_id for run_id in finished if run_id not in due])
    return {"file": archive.name, "runs": count, "bytes": archive.stat().st_size, "with weights": len(due)}


def progress(wanted: Any, request: Any, store: Any) -> dict[str, Any]:
    """What is finished of each batch size."""
    from experiments.lab.sweep.plan import measurements_due, plan

    stage = plan(wanted, request, store)[0]
    due = {run_ids[0] for _, run_ids in measurements_due(stage, request, store)}
    cells: dict[int, dict[str, Any]] = {}
    for config, record in zip(stage.runs or (), stage.records, strict=True):
        cell = cells.setdefault(config.batch_size, {"declared": 0, "finished": 0, "measured": 0, "runs": []})
        cell["declared"] += 1
        if record is not None:
            cell["finished"] += 1
            cell["measured"] += config.run_id not in due
            names = ("epochs", "steps", "train_loss", "test_accuracy", "seconds", "hardware")
            cell["runs"].append({"seed": config.seed, "status": record.status, **{n: record.values.get(n) for n in names}})
    return {"batch sizes": {str(size): cell for size, cell in sorted(cells.items())}}


def answers(wanted: Any, store: Any) -> dict[str, Any]:
    """The verdicts as they stand: null until every declared run is there."""
    if lacking := missing(("pandas", "pyarrow")):
        return {"verdicts": None, "why no verdicts": f"{lacking[0]} is missing here; the imported records give them elsewhere"}
    from analysis.load import from_store
    from analysis.verdicts import verdicts

    names = ("claim", "claim_hash", "sentence", "primary", "verdict", "effect", "ci_low", "ci_high", "unit", "n_seeds",
             "decided_by")
    found = [verdict.to_dict() for verdict in verdicts(from_store(wanted, "gpu", store))]
    return {"verdicts": [{name: verdict[name] for name in names} for verdict in found]}


def published(job: Job, wanted: Any) -> dict[str, Any]:
    """Take the exported records into another store and publish them, both in a temporary folder."""
    if lacking := missing(("pandas", "pyarrow", "matplotlib", "seaborn")):
        return {"skipped": f"{lacking[0]} is missing here"}
    from analysis.load import from_store
    from analysis.publish import write
    from experiments.lab.store.records import Store
    from experiments.lab.store.transfer import import_runs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder / "store")
        imported = import_runs(store, job.out / "rehearsal.tar")
        (folder / "README.md").write_text("<!-- begin:board -->\n<!-- end:board -->\n")
        written = write(from_store(wanted, "gpu", store), folder / "figures", folder / "README.md")
        page = next(path for path in written if path.parts[-2:] == ("gpu", "README.md"))
        return {"imported": imported, "files": len(written), "page begins": page.read_text()[:200]}


PARTS: dict[str, Callable[[Job], int]] = {"machine": machine, "correctness": correctness, "speed": speed, "study": study}


def perform(part: str, job: Job) -> int:
    """Run a part in this process, which ends with its parent, whatever ends that."""
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    return PARTS[part](job)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


