"""What the harness itself costs, at the size of Shallue et al. 2019's published data: 168,160 runs, 71 million rows.

    make benchmark-scale
    python tests/benchmarks/bench_scale.py [--share 50] [--json FILE] [--folder DIR]

Three parts, each in a process of its own: planning (the median of three times) with a store where half, then all of the
runs are finished; the histories of all of them from the store to Parquet, with mean and spread over seeds; a sweep of
runs that train nothing, by two workers. Needs 10 GB below the folder, which are freed at the end. `--share 50` takes a
fiftieth of everything.
Seconds are wall-clock; processor seconds stand beside them, because a busy machine makes the former longer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from grid import ROWS, RUNS, configs, fill, study  # noqa: E402

from experiments.lab.declare.config import Machine  # noqa: E402
from experiments.lab.declare.study import Request, measure  # noqa: E402
from experiments.lab.store.files import append  # noqa: E402
from experiments.lab.store.records import Store  # noqa: E402
from experiments.lab.sweep.tasks import Train  # noqa: E402

GOALS = {"plan, s": 5.0, "histories, s": 60.0, "histories, GB": 2.0, "scheduler, ms per run": 5.0}
TASKS = 1000
QUICK = Request("quick")


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return {"seconds": time.perf_counter() - wall, "processor seconds": time.process_time() - cpu}, made


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e9


def planning(root: Path, share: int) -> dict[str, Any]:
    """Configs, ids, what is finished, what is missing, one --where, and measurements due; then the commands."""
    from experiments.lab.sweep.plan import measurements_due, plan, select

    runs = RUNS // share
    store = Store(root, create=False)

    def whole() -> int:
        (stage,) = plan(study(runs), QUICK, store)
        assert stage.runs is not None and len(select(stage.runs, ["batch_size=32"])) > 0
        assert not measurements_due(stage, QUICK, store)
        return len(stage.missing())

    rounds = [timed(whole) for _ in range(3)]
    times = {name: median(found[name] for found, _ in rounds) for name in rounds[0][0]}
    missing = rounds[0][1]
    measured = study(runs, lambda config: (measure("lambda_max", examples=100),))
    (stage,) = plan(measured, QUICK, store)
    due, found = timed(lambda: len(measurements_due(stage, QUICK, store)))
    assert found == runs - missing
    return {"runs": runs, "missing": missing, "plan": times, "rounds": [found["seconds"] for found, _ in rounds],
            "one measurement per run": due, "GB": peak_gb()}


def commands(root: Path, share: int) -> dict[str, Any]:
    """`python -m experiments status|plan` and the list of studies, printing included."""
    import experiments.lab.sweep.commands as command
    import experiments.lab.sweep.plan as plan
    from experiments.__main__ import main
    from experiments.lab.declare.finding import Found

    found = Found({"grid": study(RUNS // share)}, ())
    plan.search = command.search = lambda folder: found
    os.environ["BATCHLAB_STORE"] = str(root)
    here = ["grid", "--scale", "quick", "--store", str(root)]
    times = {}
    for name, argv in (("status", ["status", *here]), ("plan", ["plan", *here]), ("plan --json", ["plan", *here, "--json"])):
        with redirect_stdout(StringIO()):
            times[name], status = timed(lambda argv=argv: main(argv))
        assert status == 0
    return times


def histories(root: Path, share: int) -> dict[str, Any]:
    """From the records on disk to rows, cells and curves in Parquet."""
    import pyarrow.parquet as pq

    from analysis.history import export
    from experiments.lab.sweep.plan import plan

    store, out = Store(root, create=False), root / "out"

    def whole() -> None:
        (stage,) = plan(study(RUNS // share), QUICK, store)
        export(store, [record for record in stage.records if record is not None], out)

    times, _ = timed(whole)
    rows = {name: pq.read_metadata(out / f"{name}.parquet").num_rows for name in ("cells", "history", "curves")}
    assert rows["history"] == RUNS // share * ROWS
    read = sum(entry.stat().st_size for entry in root.glob("runs/*/history.safetensors"))
    written = sum(path.stat().st_size for path in out.iterdir())
    shutil.rmtree(out)
    return {**times, "rows": rows, "GB read": read / 1e9, "GB written": written / 1e9, "GB": peak_gb()}


def scheduling(root: Path, share: int) -> dict[str, Any]:
    """Milliseconds a run of two workers whose training returns at once; start of the workers excluded."""
    from experiments.lab.sweep.launch import Result, execute
    from experiments.lab.sweep.pool import Workers

    tasks = [Train(config) for config in configs(max(TASKS // share, 50))]
    result = Result()
    with Workers(root, Machine(), 2) as pool:
        execute(pool, [Train(task.config.replace(seed=10**6)) for task in tasks[::10][:4]], "start", result, quiet=True)
        times, _ = timed(lambda: execute(pool, tasks, "runs", result, quiet=True))
    assert not result.failures and result.trained == len(tasks) + 4, result.failures[:1]
    return {"tasks": len(tasks), "ms per run": 1e3 * times["seconds"] / len(tasks), "fsync, ms": _fsync(root),
            "scheduler's own processor ms per run": 1e3 * times["processor seconds"] / len(tasks)}


def _fsync(root: Path) -> float:
    """Milliseconds to make a new file of 1 KB durable, median."""
    times = []
    for number in range(50):
        began = time.perf_counter()
        append(root / f"durable.{number}", b"x" * 1024)
        times.append(1e3 * (time.perf_counter() - began))
    return median(times)


def without_training() -> None:
    """In a worker: a run is two rows, two tensors and its predictions."""
    import torch

    import experiments.lab.sweep.runner as runner

    row = {"kind": "eval", "step": 1, "examples": 1, "epoch": 0.1, "train_loss": 1.0, "test_loss": 1.0}
    predictions = {"test_prediction": torch.zeros(1000, dtype=torch.uint8), "test_label": torch.zeros(1000, dtype=torch.uint8)}

    values = {"steps": 1, "examples": 1, "epochs": 0.1, "train_loss": 1.0, "test_loss": 1.0}
    outcome = runner.Outcome("done", None, values, {"w": torch.zeros(64, 64), "b": torch.zeros(64)}, predictions)

    def nothing(configs: Any, machine: Any, data: Any, logs: Any, parents: Any, ended: Any, engine: Any) -> Any:
        for index, log in enumerate(logs):
            log.load()
            log.row(row)
            log.row(row | {"kind": "train", "loss": 1.0, "lr": 0.1})
            ended(index, outcome)

    runner.train_group = nothing
    runner.prepare = lambda config, machine, dataset: None  # nothing looks at it


PARTS = {"planning": planning, "commands": commands, "histories": histories, "scheduling": scheduling}


def part(name: str, root: Path, share: int) -> dict[str, Any]:
    """One part in a process of its own: nothing warm, and a peak of memory that is its own."""
    argv = [sys.executable, __file__, "--part", name, "--folder", str(root), "--share", str(share)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout}{done.stderr}")
    found = json.loads(done.stdout)
    print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def everything(folder: Path, share: int) -> dict[str, Any]:
    from table import machine

    root = Path(tempfile.mkdtemp(dir=folder))
    memory = Path("/dev/shm")
    try:
        runs, store = configs(RUNS // share), Store(root / "store")
        results: dict[str, Any] = {"machine": machine(), "share": share, "goals": GOALS}
        fill(store, runs[: len(runs) // 2], ROWS)
        results["half finished"] = part("planning", store.root, share)
        fill(store, runs[len(runs) // 2 :], ROWS)
        results["all finished"] = part("planning", store.root, share)
        results["commands"] = part("commands", store.root, share)
        results["histories"] = part("histories", store.root, share)
        results["scheduling"] = {"on disk": part("scheduling", Store(root / "sweep").root, share)}
        if memory.is_dir() and share == 1:
            with tempfile.TemporaryDirectory(dir=memory) as there:
                results["scheduling"]["in memory"] = part("scheduling", Store(Path(there)).root, share)
        return results
    finally:
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--share", type=int, default=1, help="one in so many runs")
    parser.add_argument("--json", type=Path, help="where everything measured goes (default, without --share: scale.json here)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the stores go")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(PARTS[chosen.part](chosen.folder, chosen.share)))
        return
    found = everything(chosen.folder, chosen.share)
    path = chosen.json or (HERE / "scale.json" if chosen.share == 1 else None)
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__mp_main__":
    without_training()
if __name__ == "__main__":
    main()
