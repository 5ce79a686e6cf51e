"""Training: ours against a bare loop, other harnesses and an input pipeline, and against what the processor can do.

    make benchmark-training
    python tests/benchmarks/bench_training.py [--parts bare,input,harnesses] [--quick] [--json FILE]

Everything runs in one process on one thread, ours and the other alternated (ours, other, other, ours), and is told in
processor seconds besides wall seconds; a ratio is time per update of the other over time per update of ours, so above 1 ours is
faster. Memory that is freed stays with the process, as in a worker of ours. Building, the first updates and evaluations are
outside of what is timed, on both sides.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy and torch are loaded

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

import engine  # noqa: E402
import loader  # noqa: E402
import torch  # noqa: E402
from engine import C1, CONV, MLP, Case  # noqa: E402
from loops import Bare, loss_on_all, net  # noqa: E402
from timing import alternated, compared, here, matmul_peak  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "training.json"
PYTHON = ROOT / "build" / "harnesses" / "bin" / "python"
GOALS = {"bare": 0.98, "input": 10.0, "harnesses": 3.0}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    seconds: float = 1.0
    """of every timed block, at least"""
    rounds: int = 5
    peak_seconds: float = 0.3
    matrices: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    images: int = 5000
    epochs: int = 8
    cases: tuple[Case, ...] = (MLP, CONV, C1)
    thin: int = 1
    """every which batch size is measured"""


FULL, QUICK = Size(), Size(0.1, 1, 0.03, (128, 256), 512, 2, (MLP, CONV), 5)


def operations(config: engine.RunConfig, data: engine.Data, weights: list[torch.Tensor]) -> int:
    """Floating-point operations of one update's products and convolutions, forward and backward."""
    model = net(config, data.shape, weights)
    inputs, targets = data.train.inputs[: config.batch_size], data.train.targets[: config.batch_size]
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    return counter.get_total_flops()


def against_bare(case: Case, batch_size: int, size: Size) -> dict[str, Any]:
    config = case.config(batch_size, 1)
    data, weights = engine.data_of(config), engine.initial_weights(config)
    loop = Bare(config, data, weights)
    loop.run(engine.WARM // 2)
    each = math.ceil(size.seconds / (loop.run(engine.WARM // 2).wall / (engine.WARM // 2)))
    ours, others, loss = engine.interleaved(config, data, each, size.rounds, lambda: loop.run(each))
    row: dict[str, Any] = {"net": case.name, "n": case.n, "batch_size": batch_size} | compared(ours, others)
    row["micro_batch"] = [None, loop.size]
    row["losses"] = [loss, loss_on_all(loop.model, data)]
    return row | {"operations": operations(config, data, weights)}


def measure_bare(size: Size) -> dict[str, Any]:
    rows, peak = [], matmul_peak(size.matrices, size.peak_seconds)
    for case in size.cases:
        for batch_size in case.batch_sizes[:: size.thin]:
            row = against_bare(case, batch_size, size)
            ours, theirs = row["cpu"]["seconds"]
            rate = row["operations"] / ours
            rows.append(row)
            print(
                f"  {case.name:22} B {batch_size:5}  ours {ours * 1e6:9.0f} us  bare {theirs * 1e6:9.0f} us  "
                f"bare / ours {row['cpu']['ratio']:5.3f} (wall {row['wall']['ratio']:5.3f})  {rate / 1e9:6.1f} GFLOP/s  "
                f"loss {row['losses'][0]:.3g}, {row['losses'][1]:.3g}",
                flush=True,
            )
        again = matmul_peak(size.matrices, size.peak_seconds)  # others may have used the machine
        peak = {n: max(best, again[n]) for n, best in peak.items()}
    for row in rows:
        row["share of peak"] = row["operations"] / row["cpu"]["seconds"][0] / max(peak.values())
    print("  peak of matrix products: " + ", ".join(f"{n}: {rate / 1e9:.0f} GFLOP/s" for n, rate in peak.items()))
    return {"rows": rows, "peak": {str(n): rate for n, rate in peak.items()}, "goal": GOALS["bare"]}


def measure_input(size: Size, batch_size: int = 128) -> dict[str, Any]:
    """Wall seconds, because workers have clocks of their own; the better number of workers counts."""
    dataset, config = engine.noise_images(size.images), engine.augmented(batch_size)
    data, weights = engine.noise_data(config, dataset), engine.initial_weights(config, (3, 32, 32))
    updates = size.images // batch_size
    found: dict[str, Any] = {"batch_size": batch_size, "images": size.images, "goal": GOALS["input"]}
    for workers in (0, 2):
        batches = loader.loader(dataset, batch_size, workers)
        training = loader.Training(config, weights, batches)
        training.epoch()
        alone = alternated(
            lambda: engine.feed(config, data, 4 * updates), lambda batches=batches: loader.feed(batches, 1), size.rounds
        )
        ours, others, _ = engine.interleaved(config, data, updates, size.rounds, training.epoch)
        step = compared(ours, others)
        found[f"{workers} workers"] = {"input": alone, "update": step}
        rates = (batch_size / seconds for seconds in alone["wall"]["seconds"])
        print("  input alone, {} workers: ours {:9.0f} images/s, loader {:7.0f}: {:.1f} x".format(
            workers, *rates, alone["wall"]["ratio"]))
        print(f"  whole update, {workers} workers: {step['wall']['ratio']:.2f} x", flush=True)
    for what in ("input", "update"):
        found[what] = min(found[f"{workers} workers"][what]["wall"]["ratio"] for workers in (0, 2))
    return found


def measure_harnesses(size: Size) -> dict[str, Any]:
    """In their own environment, ours too."""
    if not PYTHON.exists():
        raise SystemExit(f"{PYTHON.relative_to(ROOT)} is missing: `make build/harnesses/installed` makes it")
    words = [PYTHON, ROOT / "tests" / "benchmarks" / "harnesses.py", "--epochs", str(size.epochs), "--rounds", str(size.rounds)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) | {"goal": GOALS["harnesses"]}


PARTS = {"bare": measure_bare, "input": measure_input, "harnesses": measure_harnesses}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="about a tenth, to see that it runs; its numbers mean little")
    parser.add_argument("--json", type=Path, help="where the parts measured are written, others there kept; "
                        f"default {RESULTS.relative_to(ROOT)}, and none with --quick")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.parts.split(",")) - PARTS.keys()):
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    engine.as_a_worker()
    target = chosen.json or (None if chosen.quick else RESULTS)
    found: dict[str, Any] = json.loads(target.read_text()) if target and target.exists() else {}
    for part in chosen.parts.split(","):
        print(part, flush=True)
        found[part] = {"machine": here(), "quick": chosen.quick} | PARTS[part](QUICK if chosen.quick else FULL)
        if target:
            target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
