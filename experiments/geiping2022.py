"""Stochastic training is not necessary for generalization (Geiping, Goldblum, Pope, Moeller and Goldstein, ICLR 2022).

The paper trains a ResNet-18 on CIFAR-10 with gradients of the whole training set. In as many epochs as SGD needs that is far
worse; with many more updates, a larger learning rate behind warm-up and gradient clipping, and a penalty of the gradient's norm
over parts of the data (the explicit form of what SGD's steps do, Smith et al. 2021), it reaches SGD: no noise is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from experiments.lab.declare.claims import Claim, Group, Power
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.contrasts import at_scale, difference, directional, figure, group, non_inferior
from experiments.lab.declare.enums import Augment, Budget, Loss, Model, Norm, Schedule
from experiments.lab.declare.settings import Settings
from experiments.lab.declare.study import Comparison, PaperRow, Scale, Stage, Study

SGD, SAME, LONGER, CLIPPED, PENALISED = (
    "SGD", "full batch", "full batch, longer", "full batch, clipped", "full batch, penalised"
)
WHERE = ("dataset", "model", "batch_size", "epochs", "clip_norm", "gradient_penalty")


@dataclass(frozen=True, kw_only=True)
class FullBatch(Settings):
    """SGD, the smallest batch size, and full batches, the largest: each arm has all that the one before has."""

    sizes: ClassVar[tuple[str, ...]] = ("batch_sizes", "part")
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.02
    full_lr: float = 0.1
    """of full batches as they are"""
    longer: float = 300
    """epochs of full batches that train longer: as many updates"""
    clipped_lr: float = 0.3
    clipped_warmup: float = 0.1
    clip: float = 1.0
    penalty: float = 0.1
    part: int
    """examples of each part of the data whose gradient is penalised, or fewer: it divides the data. Own networks and losses
    cannot be taken in parts: there it is all the data"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.large != self.n_train:
            raise ValueError(f"the last of batch_sizes must be n_train, the full batch: {self.small},{self.n_train}")


def arms(settings: FullBatch) -> dict[str, RunConfig]:
    """Stage -> its run."""
    sgd = settings.run(nesterov=True, schedule=Schedule.COSINE, budget=Budget.EPOCHS)
    same = sgd.replace(batch_size=settings.large, lr=settings.full_lr)
    longer = same.replace(epochs=settings.longer)
    clipped = longer.replace(lr=settings.clipped_lr, warmup=settings.clipped_warmup, clip_norm=settings.clip)
    part = next(size for size in range(settings.part, 0, -1) if settings.large % size == 0)
    plain = isinstance(settings.model, Model) and settings.loss is Loss.CROSS_ENTROPY
    penalised = clipped.replace(gradient_penalty=settings.penalty, penalty_batch=part if plain else None)
    return {SGD: sgd, SAME: same, LONGER: longer, CLIPPED: clipped, PENALISED: penalised}


def stage(name: str) -> Stage:
    """One arm."""
    return Stage(name, lambda settings, seeds: [arms(settings)[name].replace(seed=seed) for seed in seeds])


def groups(settings: FullBatch) -> list[Group]:
    """One for each arm."""
    return [group(name, **{field: arm.full_dict()[field] for field in WHERE}) for name, arm in arms(settings).items()]


def claims(scale: Scale, settings: FullBatch) -> tuple[Claim, ...]:
    """Margins of 0.5 percentage points of test accuracy: a fortieth of the gap that the paper closes, less than half of the same
    gap at `quick` in pilots (2 points)."""
    sgd, same, longer, clipped, penalised = groups(settings)
    return at_scale(
        scale,
        non_inferior("reaches-sgd", "full batches, clipped and penalised, test no worse than SGD",
                     difference("test_accuracy", penalised, sgd), 0.5, primary=True, paper_value=-0.03,
                     paper_source="unchecked: 95.67 against 95.70"),
        directional("needs-more", "full batches test worse than SGD in the same epochs", difference("test_accuracy", sgd, same),
                    0.5, paper_value=20.28, paper_source="unchecked: 75.42 against 95.70"),
        directional("longer", "full batches test better with more updates", difference("test_accuracy", longer, same), 0.5),
        directional("clipped", "full batches test better at a larger learning rate with clipping",
                    difference("test_accuracy", clipped, longer), 0.5),
        directional("penalised", "full batches test better with a penalty of the gradient's norm",
                    difference("test_accuracy", penalised, clipped), 0.5),
        source="unchecked: the paper's table gives accuracies after each step",
    )


def comparisons(scale: Scale, settings: FullBatch) -> Iterator[Comparison]:
    sgd, same, *_, penalised = groups(settings)
    for network, arm in (("full batch in the same epochs", same), ("full batch, all means", penalised)):
        yield Comparison(scale.name, network, f"ours, {scale.name}: {arm.name}", sgd, arm)


QUICK = FullBatch(n_train=1024, width=128, depth=2, batch_sizes=(32, 1024), lr=0.03, epochs=60, part=128, seeds=12)
LAPTOP = FullBatch(dataset="cifar10-jpeg", n_train=2000, model=Model.SMALL_CONV, batch_sizes=(50, 2000), lr=0.03, epochs=60,
                   part=100, seeds=8)
PAPER = FullBatch(
    dataset="cifar10", n_train=50_000, model=Model.RESNET20, norm=Norm.GHOST, norm_batch=125, augment=Augment.CROP_FLIP,
    batch_sizes=(125, 50_000), lr=0.1, epochs=300, full_lr=0.4, longer=3000, clipped_lr=0.8, clip=0.25, part=125,
    seeds=8,
)
# 8 pilot seeds per arm: SGD 80.71 (SD 0.18), full batches clipped and penalised 80.77 (SD 0.31)
POWER = Power(effect=0.0, sd=0.26, pilot="seeds 1000 to 1007 of SGD and of full batches, clipped and penalised", seeds=12)

STUDY = Study(
    name="geiping2022",
    title="Full batches reach SGD with clipping, more updates and a penalty",
    citation="Geiping, Goldblum, Pope, Moeller and Goldstein, ICLR 2022 (arXiv 2109.14119)",
    scales=(
        Scale("quick", "an MLP on 1,024 images of Fashion-MNIST, SGD and four ways of full batches, 12 seeds",
              "about 1.5 minutes on two cores", QUICK, POWER, analogue=True),
        Scale("laptop", "a small convolutional network on 2,000 images of CIFAR-10 (JPEG copy), 8 seeds",
              "about 20 minutes on two cores (estimated)", LAPTOP, analogue=True),
        Scale("paper", "a ResNet-20 on CIFAR-10, 3,000 updates with all 50,000 images, 8 seeds", "a GPU; not measured yet",
              PAPER),
    ),
    stages=tuple(stage(arm) for arm in arms(QUICK)),
    claims_of=claims,
    figures=(figure("bars"), figure("training_curves")),
    paper=(
        PaperRow("text", "full batch in the same epochs", "test accuracy", "test_accuracy", 95.70, 75.42, source="unchecked"),
        PaperRow("text", "full batch, all means", "test accuracy", "test_accuracy", 95.70, 95.67, source="unchecked"),
    ),
    comparisons_of=comparisons,
    conditions=("SGD", "full batch"),
    tried=(
        "In pilots penalties between 0.03 and 1 at learning rates 0.1 and 0.3: at 0.1 a penalty of 0.3 raises the test accuracy "
        "from 80.3 to 80.9, which a learning rate of 0.3 does without one.",
        "Full batches that only train longer are 0.2 points behind SGD, inside the margin already: the primary claim holds "
        "without the means that the paper needs, and says little of them.",
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
