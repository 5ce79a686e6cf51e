"""Is a device right? Each check compares it with the CPU, or with itself, and says by how much it differs.

`tests/oracle/test_cuda.py` runs them where there is a GPU, `visit.py` on a GPU that is there for minutes.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from toy_cases import Case, make_case
from toy_runs import Memory, toy_config, toy_images

from experiments.lab import models
from experiments.lab.declare.config import Augment, Machine, Model, Norm, Optimizer, Precision, RunConfig, Schedule
from experiments.lab.fused.cuda_graphs import Graph
from experiments.lab.fused.ensemble import fused_engine
from experiments.lab.training import gradient
from experiments.lab.training.data import Data, prepare
from experiments.lab.training.engine import Engine
from experiments.lab.training.initial import initial_model, set_arithmetic
from experiments.lab.training.loop import train_group
from sharpness import epsilon_sharpness, fisher, ggn, hessian, top_eigenvalues, worst_case_sharpness

PIXELS = {Model.KESKAR_C1: 16}
NETS = (Model.MLP, Model.KESKAR_C1, Model.RESNET20)
OPERATORS: dict[str, Callable[..., Any]] = {"hessian": hessian, "ggn": ggn, "fisher": fisher}


@dataclass(frozen=True)
class Found:
    """What a check found: passed, failed or skipped, one sentence, and every number that was compared."""

    name: str
    status: str
    sentence: str
    numbers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Skipped(Exception):
    """The check says nothing here; the message says why."""


@dataclass(frozen=True)
class Compared:
    """Differences by name, and the largest that is allowed; a check that must see a difference names the least."""

    what: str
    numbers: dict[str, float]
    limit: float
    least: float = 0.0

    def found(self, name: str) -> Found:
        worst = max(self.numbers, key=lambda key: math.inf if math.isnan(self.numbers[key]) else self.numbers[key])
        right = all(self.least <= value <= self.limit for value in self.numbers.values())
        allowed = f"at most {self.limit:.0e}" if self.limit else "0"
        between = f"between {self.least:.0e} and {self.limit:.0e}" if self.least else allowed
        sentence = f"{self.what}: the largest is {self.numbers[worst]:.2e} ({worst}), allowed is {between}"
        return Found(name, "passed" if right else "failed", sentence, self.numbers)


def run(name: str, device: str) -> Found:
    """The check `name` on `device`; an error in it is a failure."""
    try:
        return CHECKS[name](device).found(name)
    except Skipped as reason:
        return Found(name, "skipped", str(reason), {})
    except Exception as error:
        text = str(error).splitlines() or [""]
        return Found(name, "failed", f"{type(error).__name__}: {text[0]}", {})


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def products(op: Any, oracle: Any, count: int) -> float:
    """Largest relative difference of `count` products."""
    vectors = [np.random.default_rng(seed).standard_normal(oracle.shape[0]) for seed in range(count)]
    return max(relative(op @ v, oracle @ v) for v in vectors)


def curvature_products(device: str) -> Compared:
    """A tensor left on the other device, or an operator whose kept graph is another than the one it rebuilds, would show."""
    numbers = {}
    for name in ("mlp", "bn eval", "tied"):
        case = make_case(name)
        moved, data = copy.deepcopy(case.model).float().to(device), float_data(case, device)
        for kind, make in OPERATORS.items():
            oracle = make(case.model, case.loss, case.data)
            for memory in (0, 2**30):
                with patch("sharpness.operators.routes._GRAPH_PRODUCTS", 1):  # recorded from the second product on
                    there = make(moved, case.loss, data, memory=memory)
                    numbers[f"{kind}, {name}, memory {memory}"] = products(there, oracle, 3)
    return Compared("relative differences of float32 products from float64 on the CPU", numbers, 1e-4)


def convolution_products(device: str) -> Compared:
    """cuDNN's double backward on Keskar's C1, with TF32 switched on outside: its ten bits would show."""
    config = toy_config(model=Model.KESKAR_C1, norm=Norm.BATCH)
    data = toy_data(config, "cpu")
    torch.manual_seed(0)
    model = models.build(config, data.shape, data.outputs).eval()
    inputs, targets = data.train.inputs[:24].double(), data.train.targets[:24]
    loss = torch.nn.functional.cross_entropy
    moved = copy.deepcopy(model).to(device)
    numbers = {}
    set_arithmetic(config.replace(tf32=True))
    try:
        for kind, make in OPERATORS.items():
            oracle = make(copy.deepcopy(model).double(), loss, (inputs, targets))
            there = make(moved, loss, (inputs.float().to(device), targets.to(device)))
            numbers[kind] = products(there, oracle, 2)
    finally:
        set_arithmetic(config)
    return Compared("relative differences of float32 products of C1 from float64 on the CPU", numbers, 1e-4)


def measurements(device: str) -> Compared:
    """Whole measurements in float64: searches that end elsewhere on the device."""
    case = make_case("bn eval")
    moved = copy.deepcopy(case.model).to(device)
    functions: dict[str, Callable[[Any], float]] = {
        "lambda_max": lambda m: float(top_eigenvalues(hessian(m, case.loss, case.data), tol=1e-6).value),
        "phi": lambda m: float(epsilon_sharpness(m, case.loss, case.data).value),
        "worst case": lambda m: float(worst_case_sharpness(m, case.loss, case.data, rho=0.1).value),
    }
    numbers = {}
    for name, function in functions.items():
        here, there = function(case.model), function(moved)
        numbers[name] = abs(here - there) / abs(here)
    return Compared("relative differences of measurements in float64 from the CPU's", numbers, 1e-6)


def two_places(device: str) -> Compared:
    """Batches shared out between the device and the CPU."""
    case = make_case("mlp")
    dense = case.dense_hessian()
    op = hessian(case.model, case.loss, case.data, batch_size=4, devices=["cpu", device])
    return Compared("difference from the dense Hessian, batches shared out between CPU and device",
                    {"hessian": float(np.abs(op @ np.eye(len(dense)) - dense).max())}, 1e-10)


def recorded_updates(device: str) -> Compared:
    """On the CPU, with this version of torch: a recorded update is the eager one, bitwise."""
    numbers = {}
    for model in NETS:
        config = net_config(model, optimizer=Optimizer.ADAM, lr=0.01, steps=3)
        eager = last(config, "cpu")
        with patch.object(gradient, "RECORD_AFTER", 0):
            numbers[f"{model}"] = differing(last(config, "cpu"), eager)
    return Compared("share of weights on the CPU whose bits differ when updates are replayed from a record", numbers, 0.0)


def cuda_graphs(device: str) -> Compared:
    """A replayed graph does what its body does, through stops for checkpoints: other examples, masks or rates would show."""
    if not device.startswith("cuda"):
        raise Skipped("CUDA graphs need CUDA")
    numbers = {}
    for model in NETS:
        for members in (1, 3):
            configs = several(net_config(model, lr=0.01, momentum=0.9, steps=24, schedule=Schedule.COSINE), members)
            eager, graphed = (engine(configs, device) for _ in range(2))
            for moving in (eager, graphed):
                moving.block_steps = 10
            eager.graph = Graph(eager.update, 10, capture=lambda body: body)
            graphed.graph = Graph(graphed.update, 10)
            eager.advance(24)
            for until, stop in ((2, -1), (9, 6), (9, -1), (24, 15), (24, -1)):
                graphed.advance(until, lambda step, stop=stop: step == stop)
            pairs = [(graphed.copy(m).tensors, eager.copy(m).tensors) for m in range(members)]
            numbers[f"{model}, {members} runs"] = max(differing(a, b) for a, b in pairs)
    return Compared("share of bits of weights, moments and losses that differ between graph and eager updates", numbers, 0.0)


def fused_members(device: str) -> Compared:
    """Runs of one program are the runs alone, up to rounding in float64: seeds that share examples or masks would show."""
    numbers = {}
    for model in NETS:
        base = net_config(model, precision=Precision.FLOAT64, lr=0.01, momentum=0.9, steps=4)
        configs = [base.replace(seed=3), base.replace(seed=4, lr=0.02, weight_decay=0.01)]
        together = weights(configs, device)
        for config, fused in zip(configs, together, strict=True):
            (alone,) = weights([config], device)
            pairs = [(fused[name].double(), w.double()) for name, w in alone.items()]
            worst = max(((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item() for a, b in pairs)
            numbers[f"{model}, seed {config.seed}"] = worst
    return Compared("relative differences of weights of fused runs from the same runs alone", numbers, 1e-9)


def bfloat16(device: str) -> Compared:
    """Autocast is on where a run asks for it, and its gradient is the float32 one within what bfloat16 can."""
    numbers = {}
    for model in NETS:
        found = []
        for precision in (Precision.FLOAT32, Precision.BFLOAT16):
            config = net_config(model, precision=precision, steps=1, lr=1.0, batch_size=64, augment=Augment.NONE)
            before, after = (weights([config.replace(lr=lr)], device)[0] for lr in (1e-30, 1.0))
            names = [name for name, _ in initial_model(config, Machine(), toy_data(config, "cpu")).named_parameters()]
            found.append(np.concatenate([(before[n] - after[n]).double().flatten().numpy() for n in names]))
        numbers[f"{model}"] = relative(found[1], found[0])
    return Compared("relative differences of bfloat16 gradients from float32's", numbers, 0.3, least=1e-4)


def determinism(device: str) -> Compared:
    """The same run twice, alone and fused, and the same measurement twice: kernels that add in the order of their arrival."""
    numbers = {}
    for model in NETS:
        for members in (1, 3):
            configs = several(net_config(model, optimizer=Optimizer.ADAM, lr=0.003, steps=12, batch_size=16), members)
            first, second = weights(configs, device), weights(configs, device)
            numbers[f"{model}, {members} runs"] = max(differing(a, b) for a, b in zip(first, second, strict=True))
    case = make_case("bn eval")
    moved = copy.deepcopy(case.model).float().to(device)
    values = [top_eigenvalues(hessian(moved, case.loss, float_data(case, device)), k=1).value for _ in range(2)]
    numbers["lambda_max"] = float(values[0] != values[1])
    return Compared("share of weights whose bits differ when a run is made twice", numbers, 0.0)


CHECKS: dict[str, Callable[[str], Compared]] = {
    "curvature products": curvature_products,
    "products of C1": convolution_products,
    "measurements": measurements,
    "CUDA graphs": cuda_graphs,
    "determinism": determinism,
    "fused members": fused_members,
    "bfloat16": bfloat16,
    "recorded updates": recorded_updates,
    "two places": two_places,
}


def float_data(case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return case.inputs.float().to(device), case.targets.to(device)


def net_config(model: Model, **fields: Any) -> RunConfig:
    """A short run of `model` with crops and flips; batch norm where it has images to normalise."""
    norm = Norm.NONE if model is Model.MLP else Norm.BATCH
    return toy_config(**({"model": model, "norm": norm, "batch_size": 8, "augment": Augment.CROP_FLIP} | fields))


def several(config: RunConfig, members: int) -> list[RunConfig]:
    return [config.replace(seed=seed, lr=config.lr * (1 + seed / 2)) for seed in range(members)]


def toy_data(config: RunConfig, device: str) -> Data:
    return prepare(config, Machine(device=device), toy_images(PIXELS.get(config.model, 8)))


def engine(configs: list[RunConfig], device: str) -> Engine:
    set_arithmetic(configs[0])
    machine, data = Machine(device=device), toy_data(configs[0], device)
    return fused_engine(configs, machine, data, [initial_model(config, machine, data) for config in configs])


def weights(configs: list[RunConfig], device: str) -> list[dict[str, torch.Tensor]]:
    """The weights that these runs end with, trained as one program."""
    data = toy_data(configs[0], device)
    outcomes = train_group(configs, Machine(device=device), data, [Quiet() for _ in configs], make_engine=fused_engine)
    if bad := [outcome.reason for outcome in outcomes if outcome.status != "done"]:
        raise ArithmeticError(f"a run ended early: {bad[0]}")
    return [outcome.weights for outcome in outcomes]


def last(config: RunConfig, device: str) -> dict[str, torch.Tensor]:
    return weights([config], device)[0]


class Quiet(Memory):
    def wants_checkpoint(self, step: int) -> bool:
        return False


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Share of numbers that are not the same bits."""
    if first.keys() != second.keys():
        raise ValueError(f"other tensors: {sorted(first.keys() ^ second.keys())[:3]}")
    pairs = [(first[name], second[name]) for name in first]
    unlike = sum(int((a != b).sum()) if a.shape == b.shape else max(a.numel(), b.numel()) for a, b in pairs)
    return unlike / max(1, sum(a.numel() for a, _ in pairs))


def run_all(device: str, names: Iterable[str] = CHECKS) -> Iterable[Found]:
    """Each check in turn, told on stderr as it ends."""
    for name in names:
        found = run(name, device)
        print(f"{found.status:8} {name}: {found.sentence}", file=sys.stderr, flush=True)
        yield found
