"""What one GPU does with small batches, large batches and a whole sweep; made for one of the H100's class.

    PYTHONPATH=. python tests/benchmarks/bench_gpu.py [--device cuda] [--dataset cifar10 --data-dir DIR] [--json build/gpu.json]

Needs what training needs (torch from 2.11 on, numpy, scipy, safetensors) and nothing installed. Without --dataset the images
are made up: they can be learnt, but are not CIFAR-10, and the results say so. Each part is measured apart, a part that fails
says why, and the file is written after each. --short times less of each part. --tiny --device cpu shows in a minute that the
script runs; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

import torch  # noqa: E402
from engine import Engine, as_a_worker, learnable_images, program  # noqa: E402
from timing import here  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from experiments.lab.datasets import DataError, Dataset, load  # noqa: E402
from experiments.lab.declare.config import Augment, Budget, Machine, Model, Norm, Optimizer, Precision, RunConfig  # noqa: E402
from experiments.lab.fused.ensemble import fused_engine  # noqa: E402
from experiments.lab.store.files import write_atomic  # noqa: E402
from experiments.lab.training.data import Data, prepare  # noqa: E402
from experiments.lab.training.loop import train_group  # noqa: E402
from experiments.lab.training.outcome import Outcome  # noqa: E402
from experiments.lab.training.state import Checkpoint  # noqa: E402

ANY = RunConfig(
    model=Model.RESNET20, norm=Norm.BATCH, batch_size=32, optimizer=Optimizer.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4,
    augment=Augment.CROP_FLIP, tf32=True, budget=Budget.STEPS, steps=10**6,
)
PRECISIONS = {"float32 with TF32": Precision.FLOAT32, "bfloat16": Precision.BFLOAT16}
GOALS = {"fused / eager": 20.0, "fused / graphed": 2.0, "share of bf16 peak": 0.35, "determinism tax": 0.15, "sweep": 600.0}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    images: int = 50_000
    side: int = 32
    """of the images made up"""
    small: int = 32
    middle: int = 256
    large: int = 2000
    """batch sizes of ResNet-20, of its determinism tax and of the fast network"""
    members: tuple[int, ...] = (8, 32)
    warm: int = 64
    seconds: float = 2.0
    """of a timed block, about"""
    widths: tuple[int, int] = (64, 256)
    matrices: tuple[int, ...] = (4096, 8192)
    sweep: tuple[int, ...] = (128, 256, 512, 1024, 2048, 5000)
    seeds: int = 5
    target: float = 0.01
    limit: float = 900.0
    """seconds after which the sweep is given up"""


SHORT = Size(images=10_000, members=(32,), warm=32, seconds=0.5, sweep=(5000,), seeds=2, limit=60.0)
TINY = Size(128, 16, 4, 4, 8, (2,), 4, 0.01, (4, 8), (128,), (32, 64), 2, 2.0, 30.0)


@dataclass(frozen=True)
class Bench:
    """The device, the data on it and how much is measured."""

    device: str
    dataset: Dataset
    size: Size

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def machine(self, *, graphs: bool) -> Machine:
        return Machine(device=self.device, graphs=graphs and self.cuda)

    def data(self, config: RunConfig, machine: Machine) -> Data:
        return prepare(config, machine, self.dataset)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds_an_update(self, engine: Engine, blocks: int = 3) -> dict[str, Any]:
        """Wall seconds after the warm-up, median over blocks; each block ends when the device has finished it."""
        engine.advance(self.size.warm)
        self.wait()
        step, updates, times = self.size.warm, 16, list[float]()
        while len(times) < blocks:
            start = time.perf_counter()
            engine.advance(step + updates)
            self.wait()
            step, spent = step + updates, time.perf_counter() - start
            if spent < self.size.seconds / 2 and not times:
                updates *= 2  # too short to tell; the first of full length is a warm-up of the longer block
            else:
                times.append(spent / updates)
        return {"seconds": median(times), "all": times, "updates": updates}


def small_batches(bench: Bench) -> dict[str, Any]:
    """Time an update of one run: eager alone, graphed alone, fused. Ratios are times of a run alone over a fused one's."""
    found: dict[str, Any] = {"net": "ResNet-20, batch norm, crops and flips", "batch_size": bench.size.small}
    for name, precision in PRECISIONS.items():
        config = ANY.replace(precision=precision, batch_size=bench.size.small)
        rows: dict[str, float] = {}
        data = bench.data(config, bench.machine(graphs=False))
        for mode in ("eager", "graphed")[: 1 + bench.cuda]:
            rows[mode] = bench.seconds_an_update(program([config], bench.machine(graphs=mode == "graphed"), data))["seconds"]
        for members in bench.size.members:
            configs = [config.replace(seed=seed) for seed in range(members)]
            took = bench.seconds_an_update(program(configs, bench.machine(graphs=True), data))["seconds"]
            rows[f"fused {members}"] = took / members
            for mode in ("eager", "graphed")[: 1 + bench.cuda]:
                rows[f"fused {members} / {mode}"] = rows[mode] / rows[f"fused {members}"]
        found[name] = rows
        for what, value in rows.items():
            print(f"  {name:18} {what:20} {value:.3g}" + (" x" if "/" in what else " s an update and run"), flush=True)
    return found


def speed_net(classes: int, widths: tuple[int, int]) -> nn.Sequential:
    """A network of the class that trains CIFAR-10 in seconds: a 2x2 convolution, three stages of two 3x3 ones, a linear layer."""
    narrow, wide = widths
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.GELU()]
    channels = 24
    for width in (narrow, wide, wide):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2), Batch(width), nn.GELU(),
                   nn.Conv2d(width, width, 3, padding=1, bias=False), Batch(width), nn.GELU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, classes, bias=False))


class Batch(nn.Module):
    """Batch normalisation that keeps no running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True)


def large_program(bench: Bench, *, deterministic: bool, choose: bool = False) -> Engine:
    """The network at the large batch in bfloat16; `choose` lets cuDNN time its kernels."""
    config = ANY.replace(batch_size=bench.size.large, precision=Precision.BFLOAT16, n_train=bench.size.images)
    machine = bench.machine(graphs=True)
    data = bench.data(config, machine)
    net = speed_net(data.outputs, bench.size.widths).to(bench.device).train()
    engine = program([config], machine, data, [net.to(memory_format=torch.channels_last)])
    set_kernels(deterministic, choose)
    return engine


def set_kernels(deterministic: bool, choose: bool) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, choose


def matmul_peak(bench: Bench) -> float:
    """bfloat16 operations per second of square matrix products, the best size and block."""
    best = 0.0
    for size in bench.size.matrices:
        left, right = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(6):
            bench.wait()
            start = time.perf_counter()
            for _ in range(10):
                torch.mm(left, right)
            bench.wait()
            best = max(best, 20 * size**3 / (time.perf_counter() - start))
    return best


def large_batch(bench: Bench) -> dict[str, Any]:
    """Share of the measured bfloat16 peak that an update of the fast network reaches."""
    net = speed_net(10, bench.size.widths)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(2, *bench.dataset.train.inputs.shape[1:])).sum().backward()
    took = bench.seconds_an_update(large_program(bench, deterministic=True))["seconds"]
    rate, peak = counter.get_total_flops() / 2 * bench.size.large / took, matmul_peak(bench)
    print(f"  B {bench.size.large}: {took:.3g} s, {rate / 1e12:.3g} of {peak / 1e12:.3g} TFLOP/s, {100 * rate / peak:.0f}%")
    return {"batch_size": bench.size.large, "seconds": took, "rate": rate, "peak": peak, "share of bf16 peak": rate / peak}


def determinism(bench: Bench) -> dict[str, Any]:
    """Time with repeatable kernels over the better time without, minus 1."""
    found: dict[str, Any] = {}
    config = ANY.replace(batch_size=bench.size.middle)
    machine = bench.machine(graphs=True)
    data = bench.data(config, machine)

    def residual(deterministic: bool, choose: bool) -> Engine:
        engine = program([config], machine, data)
        set_kernels(deterministic, choose)
        return engine

    makers: dict[str, Callable[[bool, bool], Engine]] = {
        f"ResNet-20, B {config.batch_size}": residual,
        f"fast network, B {bench.size.large}": lambda repeat, choose: large_program(bench, deterministic=repeat, choose=choose),
    }
    try:
        for name, make in makers.items():
            kinds = {"repeatable": (True, False), "any": (False, False), "any, chosen by timing": (False, True)}
            times = {kind: bench.seconds_an_update(make(*flags))["seconds"] for kind, flags in kinds.items()}
            tax = times["repeatable"] / min(times["any"], times["any, chosen by timing"]) - 1
            found[name] = times | {"determinism tax": tax}
            print(f"  {name}: {100 * tax:.1f}%", flush=True)
    finally:
        set_kernels(True, False)
    return found


class Deadline:
    """A log that keeps nothing and gives up at a time."""

    def __init__(self, end: float) -> None:
        self.end = end

    def load(self, newest: int | None = None) -> Checkpoint | None:
        return None

    def row(self, row: dict[str, Any]) -> None:
        return None

    def history_bytes(self) -> int:
        return 0

    def wants_checkpoint(self, step: int) -> bool:
        if time.perf_counter() > self.end:
            raise TimeoutError("not finished when the time was up")
        return False

    def save(self, checkpoint: Checkpoint) -> None:
        raise AssertionError("nobody asked for a checkpoint")


def sweep(bench: Bench) -> dict[str, Any]:
    """Keskar's C1 with batch norm and Adam at 1e-3, each batch size to the same training loss, its seeds as one program."""
    size, start = bench.size, time.perf_counter()
    base = RunConfig(
        model=Model.KESKAR_C1, norm=Norm.BATCH, batch_size=2, optimizer=Optimizer.ADAM, lr=1e-3, tf32=True, n_train=size.images,
        budget=Budget.TRAIN_LOSS, train_loss=size.target, max_epochs=200,
    )
    machine = bench.machine(graphs=True)
    data = bench.data(base, machine)
    found: dict[str, Any] = {"target": size.target, "seeds": size.seeds, "images": size.images, "rows": {}}
    for batch_size in size.sweep:
        began = time.perf_counter()
        configs = [base.replace(batch_size=batch_size, seed=seed) for seed in range(size.seeds)]
        try:
            logs = [Deadline(start + size.limit) for _ in configs]
            outcomes = train_group(configs, machine, data, logs, make_engine=fused_engine)
        except TimeoutError as error:
            print(f"  B {batch_size}: {error}", flush=True)
            return found | {"unfinished": batch_size}
        found["rows"][str(batch_size)] = row = {"seconds": time.perf_counter() - began} | summary(outcomes)
        print(f"  B {batch_size}: {row}", flush=True)
        found["seconds so far"] = time.perf_counter() - start
    return found | {"sweep": found["seconds so far"]}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    def values(name: str) -> list[Any]:
        return [outcome.values[name] for outcome in outcomes]

    return {"status": [o.status for o in outcomes]} | {name: values(name) for name in ("steps", "train_loss", "test_accuracy")}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "small batches": small_batches, "large batch": large_batch, "determinism": determinism, "sweep": sweep,
}


def hardware(device: str) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return here() | {"device": device}
    facts = torch.cuda.get_device_properties(device)
    return here() | {"device": facts.name, "memory, GiB": round(facts.total_memory / 2**30, 1), "cuda": torch.version.cuda,
                     "cudnn": torch.backends.cudnn.version(), "multiprocessors": facts.multi_processor_count}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dataset", help="cifar10, cifar10-jpeg or cifar-bin:FOLDER; default: images made up")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--short", action="store_true", help="a tenth of the images, shorter timed blocks")
    sizes.add_argument("--tiny", action="store_true", help="so little that only the script is tested")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu.json")
    chosen = parser.parse_args(argv)
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device is here; --device cpu --tiny tries the script", file=sys.stderr)
        return 2
    if unknown := sorted(set(chosen.parts.split(",")) - PARTS.keys()):
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    size = TINY if chosen.tiny else SHORT if chosen.short else Size()
    try:
        dataset = load(chosen.dataset, chosen.data_dir) if chosen.dataset else learnable_images(size.images, size.side)
    except DataError as error:
        parser.error(str(error))
    size = replace(size, images=min(size.images, len(dataset.train.targets)))
    as_a_worker()
    bench = Bench(chosen.device, dataset, size)
    found: dict[str, Any] = {"rehearsal": "tiny: these numbers say nothing" if chosen.tiny else None}
    found |= {"machine": hardware(chosen.device), "data": dataset.name, "tiny": chosen.tiny, "short": chosen.short}
    found["goals"] = GOALS
    failed = False
    for part in chosen.parts.split(","):
        print(part, flush=True)
        start = time.perf_counter()
        try:
            found[part] = PARTS[part](bench)
        except Exception as error:
            traceback.print_exc()
            found[part], failed = {"error": f"{type(error).__name__}: {error}"}, True
        found[part]["took, s"] = time.perf_counter() - start
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(chosen.json, json.dumps(found, indent=1).encode() + b"\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
