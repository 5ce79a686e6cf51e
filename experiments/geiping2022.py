"""Stochastic training is not necessary for generalization (Geiping, Goldblum, Pope, Moeller and Goldstein, ICLR 2022).

The paper trains a ResNet-18 on CIFAR-10 with gradients of the whole training set. In as many epochs as SGD needs that is far
worse; with many more updates, a larger learning rate behind warm-up and gradient clipping, and a penalty of the gradient's norm
over parts of the data (the explicit form of what SGD's steps do, Smith et al. 2021), it reaches SGD: no noise is needed.

Run it:  python -m experiments run geiping2022 --scale quick
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.lab.declare.claims import Claim, Contrast, Gate, Group, Kind, Power
from experiments.lab.declare.config import Augment, Budget, Model, Norm, RunConfig, Schedule
from experiments.lab.declare.study import Comparison, Figure, PaperRow, Record, Request, Scale, Stage, Study


@dataclass(frozen=True)
class Setting:
    """One scale: SGD as it is, and what full batches get in its place, each arm all that the one before has."""

    sgd: RunConfig
    full_lr: float
    """of full batches as they are"""
    epochs: float
    """of full batches that train longer: as many updates"""
    clipped: dict[str, Any]
    """learning rate, warm-up and clipping"""
    penalty: dict[str, Any]
    seeds: int

    def arms(self, dataset: str | None = None) -> dict[str, RunConfig]:
        """Name of the stage -> its run of seed 0."""
        sgd = self.sgd if dataset is None else self.sgd.replace(dataset=dataset)
        assert sgd.n_train is not None
        same = sgd.replace(batch_size=sgd.n_train, lr=self.full_lr)
        longer = same.replace(epochs=self.epochs)
        clipped = longer.replace(**self.clipped)
        return {SGD: sgd, SAME: same, LONGER: longer, CLIPPED: clipped, PENALISED: clipped.replace(**self.penalty)}


ARMS = SGD, SAME, LONGER, CLIPPED, PENALISED = (
    "SGD", "full batch", "full batch, longer", "full batch, clipped", "full batch, penalised"
)
BASE = RunConfig(
    dataset="fashion-mini", n_train=1024, width=128, depth=2, batch_size=32, lr=0.03, momentum=0.9, nesterov=True,
    weight_decay=5e-4, schedule=Schedule.COSINE, warmup=0.02, budget=Budget.EPOCHS, epochs=60,
)
SETTINGS = {
    "quick": Setting(
        BASE, 0.1, 300, {"lr": 0.3, "warmup": 0.1, "clip_norm": 1.0}, {"gradient_penalty": 0.1, "penalty_batch": 128}, seeds=12
    ),
    "laptop": Setting(
        BASE.replace(dataset="cifar10-jpeg", n_train=2000, model=Model.SMALL_CONV, width=None, depth=None, batch_size=50),
        0.1, 300, {"lr": 0.3, "warmup": 0.1, "clip_norm": 1.0}, {"gradient_penalty": 0.1, "penalty_batch": 100}, seeds=8,
    ),
    "paper": Setting(
        BASE.replace(dataset="cifar10", n_train=50_000, model=Model.RESNET20, width=None, depth=None, norm=Norm.GHOST,
                     norm_batch=125, batch_size=125, lr=0.1, epochs=300, augment=Augment.CROP_FLIP),
        0.4, 3000, {"lr": 0.8, "warmup": 0.1, "clip_norm": 0.25}, {"gradient_penalty": 0.1, "penalty_batch": 125}, seeds=8,
    ),
}


def runs_of(arm: str, request: Request) -> list[RunConfig]:
    setting = SETTINGS[request.scale]
    return [setting.arms(request.dataset)[arm].replace(seed=seed) for seed in request.seed_range(setting.seeds)]


def stage(arm: str) -> Stage:
    def runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
        return runs_of(arm, request)

    return Stage(arm, runs)


def group(scale: str, arm: str, weight: float) -> Group:
    config = SETTINGS[scale].arms()[arm]
    names = ("dataset", "model", "batch_size", "epochs", "clip_norm", "gradient_penalty")
    return Group(arm, weight, tuple((name, config.full_dict()[name]) for name in names))


def claims_of(scale: str, power: Power | None = None) -> tuple[Claim, ...]:
    """Margins of 0.5 percentage points of test accuracy: a fortieth of the gap that the paper closes, less than half of the same
    gap at `quick` in pilots (2 points)."""
    full = "" if scale == "paper" else "analogue: "

    def claim(id: str, sentence: str, better: str, worse: str, **options: Any) -> Claim:
        settings: dict[str, Any] = {
            "id": f"{scale}-{id}",
            "sentence": f"{full}{sentence}",
            "kind": Kind.DIRECTIONAL,
            "contrast": Contrast("test_accuracy", (group(scale, better, 1.0), group(scale, worse, -1.0)), 1, "percentage points"),
            "margin": 0.5,
            "gates": (Gate("min_seeds", 8), Gate("status", 0.1)),
            "scales": (scale,),
            "paper_source": "unchecked: the paper's table gives accuracies after each step",
        }
        return Claim(**settings | options)

    return (
        claim("reaches-sgd", "full batches, clipped and penalised, test no worse than SGD", PENALISED, SGD, primary=True,
              kind=Kind.NON_INFERIORITY, paper_value=-0.03, paper_source="unchecked: 95.67 against 95.70",
              power=power),
        claim("needs-more", "full batches test worse than SGD in the same epochs", SGD, SAME, paper_value=20.28,
              paper_source="unchecked: 75.42 against 95.70"),
        claim("longer", "full batches test better with more updates", LONGER, SAME),
        claim("clipped", "full batches test better at a larger learning rate with clipping", CLIPPED, LONGER),
        claim("penalised", "full batches test better with a penalty of the gradient's norm", PENALISED, CLIPPED),
    )


# 8 pilot seeds per arm: SGD 80.71 (SD 0.18), full batches clipped and penalised 80.77 (SD 0.31)
POWER = Power(effect=0.0, sd=0.26, pilot="seeds 1000 to 1007 of SGD and of full batches, clipped and penalised", seeds=12)
CLAIMS = tuple(claim for scale in SETTINGS for claim in claims_of(scale, POWER if scale == "quick" else None))

STUDY = Study(
    name="geiping2022",
    title="Full batches reach SGD with clipping, more updates and a penalty",
    citation="Geiping, Goldblum, Pope, Moeller and Goldstein, ICLR 2022 (arXiv 2109.14119)",
    scales=(
        Scale("quick", "an MLP on 1,024 images of Fashion-MNIST, SGD and four ways of full batches, 12 seeds",
              "about 1.5 minutes on two cores"),
        Scale("laptop", "a small convolutional network on 2,000 images of CIFAR-10 (JPEG copy), 8 seeds",
              "about 20 minutes on two cores (estimated)"),
        Scale("paper", "a ResNet-20 on CIFAR-10, 3,000 updates with all 50,000 images, 8 seeds", "a GPU; not measured yet"),
    ),
    stages=tuple(stage(arm) for arm in ARMS),
    claims=CLAIMS,
    figures=(
        Figure("bars", "bars"),
        Figure("training_curves", "training_curves"),
    ),
    paper=(
        PaperRow("text", "full batch in the same epochs", "test accuracy", "test_accuracy", 95.70, 75.42, source="unchecked"),
        PaperRow("text", "full batch, all means", "test accuracy", "test_accuracy", 95.70, 95.67, source="unchecked"),
    ),
    comparisons=tuple(
        Comparison(scale, network, f"ours, {scale}: {arm}", group(scale, SGD, 1.0), group(scale, arm, 1.0))
        for scale in SETTINGS
        for network, arm in (("full batch in the same epochs", SAME), ("full batch, all means", PENALISED))
    ),
    conditions=("SGD", "full batch"),
    tried=(
        "In pilots penalties between 0.03 and 1 at learning rates 0.1 and 0.3: at 0.1 a "
        "penalty of 0.3 raises the test accuracy from 80.3 to 80.9, which a learning rate of 0.3 does without one.",
        "Full batches that only train longer are 0.2 points behind SGD, inside the margin already: the primary claim "
        "holds without "
        "the means that the paper needs, and says little of them.",
    ),
    deviations=(
        "`quick` trains an MLP with two hidden layers of 128 units on 1,024 images of Fashion-MNIST, SGD at batch size 32; "
        "`laptop` a small convolutional network on 2,000 images of CIFAR-10 (JPEG copy), `paper` a ResNet-20 in place of a "
        "ResNet-18.",
        "Learning rates, clipping and penalty are chosen on pilots at `quick`, each arm's for itself, not taken from it; those "
        "of `laptop` and `paper` are untried.",
        "One learning-rate schedule for all arms, cosine behind warm-up; the paper's strongest arms have others.",
        "At `paper` groups of 125 examples share their normalisation in every arm, as those of a batch of SGD do.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("geiping2022"))
