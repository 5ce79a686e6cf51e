"""On large-batch training for deep learning: generalization gap and sharp minima (Keskar et al., ICLR 2017).

The paper trains six networks with Adam at a small batch (256) and a large one (10% of the training set) until the loss
stops improving, and reports that the large batch tests worse (Table 2), that its minimiser is sharper (Tables 3 and 4,
Metric 2.1) and that it lies nearer its starting point (Section 4, text).

Run it:  python -m experiments run keskar2017 --scale quick
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from experiments.lab.declare.claims import Claim, Contrast, Gate, Group, Kind, Power, ValueScale
from experiments.lab.declare.config import Budget, Model, Norm, Optimizer, RunConfig, TrainDraw
from experiments.lab.declare.study import (
    Comparison,
    Figure,
    Measure,
    Pair,
    PaperRow,
    Record,
    Request,
    Scale,
    Stage,
    Study,
    measure,
)

TARGET = 0.01
"""training cross-entropy in nats at which the matched arm stops (Jiang et al. 2020)"""

PLATEAU = RunConfig(budget=Budget.PLATEAU, patience=5, max_epochs=400, optimizer=Optimizer.ADAM, lr=1e-3, batch_size=2)
MATCHED = RunConfig(
    budget=Budget.TRAIN_LOSS, train_loss=TARGET, max_epochs=400, optimizer=Optimizer.ADAM, lr=1e-3, batch_size=2
)
"""the two stop rules, with what every run shares; networks, data and batch sizes are filled in below"""


@dataclass(frozen=True)
class Arm:
    """One network under one stop rule: the two batch sizes that the claims compare, and others for the figures."""

    network: str
    base: RunConfig
    small: int
    large: int
    seeds: int
    others: tuple[int, ...] = ()
    other_seeds: int = 0

    def runs(self, request: Request) -> list[RunConfig]:
        """The batch sizes compared come first, every seed in turn, so that an early look is a balanced one."""
        base = self.base if request.dataset is None else self.base.replace(dataset=request.dataset)
        seeds = request.seed_range(self.seeds)
        cells = [(seed, size) for seed in seeds for size in (self.small, self.large)]
        cells += [(seed, size) for seed in seeds[: self.other_seeds] for size in self.others]
        return [base.replace(batch_size=size, seed=seed) for seed, size in cells]


QUICK = MATCHED.replace(dataset="fashion-mini", n_train=5000, model=Model.MLP, width=128, depth=2)
LAPTOP = {"dataset": "cifar10-jpeg", "n_train": 5000, "model": Model.SMALL_CONV, "norm": Norm.BATCH}
GPU = {"dataset": "cifar10-jpeg", "model": Model.KESKAR_C1, "norm": Norm.BATCH, "tf32": True}
NETWORKS = (
    ("F1", "mnist", Model.MLP, 6000),
    ("C1", "cifar10", Model.KESKAR_C1, 5000),
    ("C2", "cifar10", Model.KESKAR_C2, 5000),
    ("C3", "cifar100", Model.KESKAR_C1, 5000),
    ("C4", "cifar100", Model.KESKAR_C2, 5000),
)
"""the paper's networks with their data and large batch, 10% of it"""
ARMS: dict[str, tuple[Arm, ...]] = {
    "quick": (Arm("F1 in small", QUICK, 32, 500, seeds=12, others=(16, 64, 128, 256), other_seeds=4),),
    "laptop": (Arm("C1 in small", MATCHED.replace(**LAPTOP), 32, 500, seeds=8, others=(64, 128, 256), other_seeds=2),),
    "gpu": (Arm("C1", MATCHED.replace(**GPU), 256, 5000, seeds=6),),
    "paper": tuple(
        Arm(network, rule.replace(dataset=dataset, model=model, norm=Norm.BATCH), 256, large, seeds=8)
        for network, dataset, model, large in NETWORKS
        for rule in (PLATEAU, MATCHED)
    ),
}


def train_runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return [config for arm in ARMS[request.scale] for config in arm.runs(request)]


WARM = (0, 1, 2, 4, 8, 16, 32)
"""epochs at the small batch before the large one takes over (Figure 5)"""
EPOCHS = 60
"""of both together"""


def warm_runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """Small-batch runs that end early: where the large batch will start from, four seeds at `quick`."""
    if request.scale != "quick":
        return []
    small = [config for config in train_runs(request, records) if config.batch_size == ARMS["quick"][0].small]
    fields = {"budget": Budget.EPOCHS, "train_loss": None, "max_epochs": None}
    return [config.replace(epochs=epochs, **fields) for config in small[:4] for epochs in WARM if epochs]


def piggyback_runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """The large batch from each of their ends, and from the start, for the rest of the epochs."""
    warm = warm_runs(request, records)
    starts = list({config.seed: config.replace(epochs=EPOCHS) for config in warm}.values())
    rest = [config.replace(epochs=EPOCHS - config.epochs, parent=config.run_id) for config in warm if config.epochs]
    return [config.replace(batch_size=ARMS["quick"][0].large) for config in (*starts, *rest)]


def measures(config: RunConfig) -> tuple[Measure, ...]:
    examples = 500 if config.model is Model.SMALL_CONV else 2000
    found = (
        measure("lambda_max", examples=examples),
        measure("phi_full", examples=examples, epsilon=1e-3),
        measure("phi_subspace", examples=examples, epsilon=1e-3, subspace=100),
        # of no claim: is the order of the batch sizes that of lambda_max where the scale of the weights is taken out?
        measure("norm_scaled_lambda", examples=examples),
        measure("trace", examples=min(examples, 1000), products=12),
        measure("relative_trace", examples=min(examples, 1000), products=12),
        # radius and single step as in Kwon et al. 2021, examples and batches as in Andriushchenko et al. 2023
        measure("adaptive_l2_step", examples=min(examples, 1024), rho=0.5, m=128),
    )
    if config.dataset == "fashion-mini" and config.seed % 1000 < 2 and config.batch_size in (32, 500):
        found += (measure("sharpness_along", examples=1000, points=10),)
    half = measure("phi_full_5e-4", examples=examples, epsilon=5e-4)
    return (*found, half) if config.model in (Model.KESKAR_C1, Model.KESKAR_C2) and not config.tf32 else found


def pairs(request: Request, runs: Sequence[RunConfig]) -> list[Pair]:
    """From each small-batch minimiser to the large-batch one of the same seed: the line (Figure 3), four seeds an arm, and
    the plane through both and their common start, two seeds; none at `gpu`."""
    if request.scale == "gpu":
        return []
    # planned runs carry their data's hash and draw
    known = {config.replace(data_sha256=None, train_draw=TrainDraw.FIRST): config for config in runs}
    found = []
    for arm in ARMS[request.scale]:
        for first in arm.runs(request):
            second = first.replace(batch_size=arm.large)
            if first.batch_size == arm.small and first.seed < 4 and {first, second} <= known.keys():
                found.append(Pair(known[first], known[second], measure("slice", examples=2000, points=25)))
                if first.seed < 2:
                    found.append(Pair(known[first], known[second], measure("plane", examples=2000, points=15)))
    return found


Printed = tuple[str, float, float, float | None, float | None]
"""network, small batch, large batch, and their standard deviations"""


def _rows(quantity: str, value: str, table: str, *values: Printed) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(table, network, quantity, value, sb, lb, sb_sd, lb_sd) for network, sb, lb, sb_sd, lb_sd in values)


PAPER = (
    *_rows("test accuracy", "test_accuracy", "Table 2",
           ("F1", 98.03, 97.81, 0.07, 0.07), ("F2", 64.02, 59.45, 0.2, 1.05), ("C1", 80.04, 77.26, 0.12, 0.42),
           ("C2", 89.24, 87.26, 0.12, 0.07), ("C3", 49.58, 46.45, 0.39, 0.43), ("C4", 63.08, 57.81, 0.5, 0.17)),
    *_rows("phi, full space, 1e-3", "phi_full", "Table 3",
           ("F1", 1.23, 205.14, None, None), ("F2", 1.39, 310.64, None, None), ("C1", 28.58, 707.23, None, None),
           ("C2", 8.68, 925.32, None, None), ("C3", 29.85, 258.75, None, None), ("C4", 12.83, 421.84, None, None)),
    *_rows("phi, full space, 5e-4", "phi_full_5e-4", "Table 3",
           ("C1", 7.08, 227.31, None, None), ("C2", 2.07, 175.31, None, None)),
    *_rows("phi, full space, 1e-3, literal start", "phi_full.value_origin", "Table 3",
           ("F1", 1.23, 205.14, None, None), ("C1", 28.58, 707.23, None, None), ("C2", 8.68, 925.32, None, None),
           ("C3", 29.85, 258.75, None, None), ("C4", 12.83, 421.84, None, None)),
    *_rows("phi, 100 directions, 1e-3", "phi_subspace", "Table 4",
           ("F1", 0.11, 9.22, None, None), ("F2", 0.29, 23.63, None, None), ("C1", 2.18, 137.25, None, None),
           ("C2", 0.95, 25.09, None, None), ("C3", 17.02, 236.03, None, None), ("C4", 6.05, 72.99, None, None)),
    *_rows("phi, 100 directions, 1e-3, literal start", "phi_subspace.value_origin", "Table 4",
           ("F1", 0.11, 9.22, None, None), ("C1", 2.18, 137.25, None, None), ("C2", 0.95, 25.09, None, None),
           ("C3", 17.02, 236.03, None, None), ("C4", 6.05, 72.99, None, None)),
)

def groups_of(arm: Arm) -> tuple[Group, Group]:
    """The runs at the large and at the small batch size, large minus small."""
    where = (("model", arm.base.model.value), ("dataset", arm.base.dataset), ("budget", arm.base.budget.value))
    large = Group(f"B {arm.large}", 1.0, (*where, ("batch_size", arm.large)))
    small = Group(f"B {arm.small}", -1.0, (*where, ("batch_size", arm.small)))
    return large, small


def rule_of(arm: Arm) -> str:
    return "matched training loss" if arm.base.budget is Budget.TRAIN_LOSS else "stop at a plateau"


def claims_of(scale: str, arm: Arm, *, primary: bool = False, power: Power | None = None) -> tuple[Claim, ...]:
    """The paper's claims about one network: tests worse, sharper by lambda_max and by phi, nearer its start.

    Margins: 0.1 percentage points of test accuracy (half of F1's published gap of 0.22, the smallest of the paper's),
    ln 1.25 for ratios.
    """
    large, small = groups_of(arm)
    matched = arm.base.budget is Budget.TRAIN_LOSS
    gates = (Gate("min_seeds", min(8, arm.seeds)), Gate("status", 0.1))
    if matched:
        gates += (Gate("matched", 0.1, "train_loss"),)
    published = {row.quantity: row for row in PAPER if row.network == arm.network.split()[0]}
    rule = "" if scale == "quick" else f", {rule_of(arm)}"

    def claim(id: str, sentence: str, contrast: Contrast, quantity: str | None = None, **options: Any) -> Claim:
        logarithmic, row = contrast.scale is ValueScale.LOG, published.get(quantity or "")
        effect = None
        if row is not None:
            effect = log(row.second / row.first) if logarithmic else row.first - row.second
            effect = round(effect, 4)  # of two numbers printed with two decimals
        settings: dict[str, Any] = {
            "id": "-".join([scale, *arm.network.lower().split()[:1], arm.base.budget.value, id]),
            "sentence": f"{arm.network}{rule}: batch size {arm.large} {sentence} than batch size {arm.small}",
            "kind": Kind.DIRECTIONAL,
            "contrast": contrast,
            "margin": log(1.25) if logarithmic else 0.1,
            "gates": gates,
            "scales": (scale,),
            "paper_value": effect,
            "paper_source": "unchecked" if row is None else f"read: {row.table}, {row.network}",
        }
        return Claim(**settings | options)

    def ratio(value: str, sign: int = 1) -> Contrast:
        return Contrast(value, (large, small), sign, "log ratio", ValueScale.LOG)

    return (
        claim("tests-worse", "tests worse", Contrast("test_accuracy", (large, small), -1, "percentage points"),
              "test accuracy", primary=primary, power=power),
        claim("sharper-lambda", "ends at a larger lambda_max", ratio("lambda_max"),
              gates=(*gates, Gate("converged", 0.1, "lambda_max"))),
        claim("sharper-phi-full", "ends at a larger phi (full space, 1e-3)", ratio("phi_full"), "phi, full space, 1e-3"),
        claim("sharper-phi-subspace", "ends at a larger phi (100 directions, 1e-3)", ratio("phi_subspace"),
              "phi, 100 directions, 1e-3"),
        claim("nearer-start", "stays nearer its start", ratio("distance_from_start", -1),
              paper_source="read: the text gives distance ratios of 3 to 10, no single number"),
    )


# 10 pilot seeds (1000 to 1009) a batch size: test accuracy 84.58 (SD 0.34) at 32, 83.93 (SD 0.19) at 500
POWER = Power(effect=0.45, sd=0.34, pilot="seeds 1000 to 1009 at batch sizes 32 and 500", seeds=12)
# 2 pilot seeds of C1 in small: 44.3 (SD 0.93) at 32, 38.8 (SD 0.44) at 500. The stated effect is half of the paper's for C1.
LAPTOP_POWER = Power(effect=1.4, sd=0.93, pilot="seeds 1000 and 1001 at batch sizes 32 and 500", seeds=8)
# No pilot: 80% for 61% of the paper's effect of 2.78 at the larger SD of `laptop` (0.59 at 32, 0.91 at 500; 8 seeds). At the
# paper's own, larger SD, 0.42, 6 seeds see half of its effect with 99%. More would not fit into minutes of one GPU.
GPU_POWER = Power(effect=1.7, sd=0.91, pilot="none; the spread is that of `laptop` at batch size 500", seeds=6)
CLAIMS = (
    *claims_of("quick", ARMS["quick"][0], primary=True, power=POWER),
    *claims_of("laptop", ARMS["laptop"][0], primary=True, power=LAPTOP_POWER),
    *claims_of("gpu", ARMS["gpu"][0], primary=True, power=GPU_POWER),
    *(
        claim
        for arm in ARMS["paper"]
        for claim in claims_of("paper", arm, primary=arm.network == "C1" and arm.base.budget is Budget.PLATEAU)
    ),
)

WITH_PAIRS = ("quick", "laptop", "paper")
TRAINED = (("where", (("stage", "train"),)),)

STUDY = Study(
    name="keskar2017",
    title="Large batches test worse and find sharper minima",
    citation="Keskar, Mudigere, Nocedal, Smelyanskiy and Tang, ICLR 2017 (arXiv 1609.04836)",
    scales=(
        Scale("quick", "F1 in small, 5,000 images of Fashion-MNIST, 6 batch sizes, 12 seeds at the two compared",
              "about 3 minutes on two cores"),
        Scale("laptop", "C1 in small, 5,000 images of CIFAR-10 (JPEG copy), 5 batch sizes, 8 seeds at the two compared",
              "about 20 minutes on two cores"),
        Scale("gpu", "C1 on all 50,000 training images of CIFAR-10 (JPEG copy), batch sizes 256 and 5,000, 6 seeds",
              "about 4 minutes on an H100 (estimated, not run yet); `docs/gpu.md`"),
        Scale("paper", "F1 and C1 to C4 on all of MNIST, CIFAR-10 and CIFAR-100, both stop rules, 8 seeds",
              "a GPU; not measured yet"),
    ),
    stages=(
        Stage("train", train_runs, measures=measures, pairs=pairs),
        Stage("warm", warm_runs),
        Stage("piggyback", piggyback_runs, measures=lambda config: (measure("lambda_max", examples=2000),)),
    ),
    claims=CLAIMS,
    figures=(
        Figure("generalization_gap", "generalization_gap", TRAINED),
        Figure("sharpness_vs_batch", "sharpness_vs_batch", TRAINED),
        Figure("parametric_slice", "parametric_slice", scales=WITH_PAIRS),
        Figure("contour", "contour", scales=WITH_PAIRS),
        Figure("training_curves", "training_curves", TRAINED),
        Figure("accuracy_and_sharpness", "values_vs_batch",
               (("values", ("test_accuracy", "lambda_max")), ("logarithmic", ("lambda_max",)), *TRAINED)),
        Figure("piggyback", "values_vs_batch",
               (("values", ("test_accuracy", "lambda_max")), ("logarithmic", ("lambda_max",)), ("x", "epochs"), ("even", True),
                ("x_label", "epochs at B 500 (of 60; first B 32)"), ("arm", ("stage",)), ("where", (("stage", "piggyback"),))),
               scales=("quick",)),
        Figure("sharpness_along", "along_training",
               (("metric", "sharpness_along"), ("y", ("lambda_max", "train_loss")),
                ("logarithmic", ("lambda_max", "train_loss")), ("log_x", True), *TRAINED), scales=("quick",)),
    ),
    paper=PAPER,
    comparisons=tuple(
        Comparison(scale, arm.network.split()[0], f"{arm.network}, {rule_of(arm)}", *reversed(groups_of(arm)))
        for scale, arms in ARMS.items()
        for arm in arms
    ),
    deviations=(
        "TIMIT, and with it the paper's network F2, is left out: the corpus is licensed.",
        "The columns of A in Metric 2.1 are iid N(0, 1); the paper does not state their distribution, and this one gives its "
        "order of magnitude.",
        "Sharpness is measured on the first 2,000 training examples (`laptop`: 500), not on all of them.",
        "`gpu` trains C1 itself on all 50,000 training images of CIFAR-10 (JPEG copy), in TF32, to the matched training loss "
        "alone, so that 12 runs take minutes of one GPU; phi at 5e-4, slices and planes are left out.",
        "The matched arm stops every run at the same training loss (0.01 nats), because curvature scales with the loss; the "
        "plateau arm is the paper's own stop rule, at `paper` alone: at `laptop` batch size 500 took more than 270 epochs to "
        "meet it.",
        "`quick` trains an MLP with two hidden layers of 128 units and no batch norm, F1 in small, on 5,000 images of "
        "Fashion-MNIST at batch sizes 16 to 500 (10% of the data).",
        "`laptop` trains a small convolutional network with batch norm, C1 in small, on 5,000 images of CIFAR-10 (JPEG copy) "
        "at batch sizes 32 to 500 (10%).",
        "Phi is the best of several searches (the paper's, from the origin; sign ascent from both corners along the top "
        "Hessian eigenvector and from a random point); the paper's literal start stands beside it as \"literal start\".",
        "The plateau arm stops after 5 epochs without a 1% improvement of the training loss; the paper gives no numbers.",
        "Piggybacking (Figure 5), at `quick` alone, trains 60 epochs in all, 0 to 32 of them at the small batch; the paper "
        "gives the large batch 100 epochs after each of 100 small ones. It and sharpness along training (Figure 6) are of no "
        "claim.",
        "At scale `paper` 8 seeds (`gpu`: 6) replace the paper's 5, so that the corrected tests can decide.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("keskar2017"))
