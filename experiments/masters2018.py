"""Revisiting small batch training for deep neural networks (Masters and Luschi, arXiv 1804.07612, 2018).

The paper trains AlexNets and ResNets on CIFAR-10, CIFAR-100 and ImageNet for a fixed number of epochs with plain SGD, no
momentum, at batch sizes B from 2 to thousands, each at many learning rates. It writes the update as a sum over the batch with a
*base* learning rate eta~, so that the rate of the mean gradient, ours, is eta = B eta~. It reports that the best test accuracy is
reached with B between 2 and 32, and that the range of learning rates that train stably and well narrows as B grows.

A learning rate is chosen by validation accuracy, the mean over the tuning seeds; the runs that answer have other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.lab.declare import Claim, Family, Gate, Power, Record, Request, RunConfig, Scale, Settings, Stage, Study
from experiments.lab.declare.contrasts import at_scale, difference, directional, figure, group
from experiments.lab.declare.enums import Augment, Budget, Model, Norm, Schedule
from experiments.lab.declare.tuning import best_candidates, tuned, tuning_seed, validation_accuracy, winners

SMALL = 32
"""the paper's best batch sizes are at most this"""


@dataclass(frozen=True, kw_only=True)
class Windows(Settings):
    """Every batch size at as many learning rates; `lr` is the middle of the grid, eta at batch size 16: an eta~ of lr / 16."""

    sizes: ClassVar[tuple[str, ...]] = ("batch_sizes", "other", "narrow")
    lr: float = 0.1
    octaves: int = 4
    """of the grid on either side of its middle"""
    tuning_seeds: int = 8
    tolerance: float = 2.0
    """points of test accuracy below the best at which a learning rate still trains well"""
    other: int = 64
    """batch size that the best small one is compared with, besides the largest"""
    narrow: tuple[int, ...] = (4, 16)
    """batch sizes whose range of learning rates is compared with that of the largest"""

    @property
    def most(self) -> int:
        """Largest batch size that counts as small: below those which the best is compared with."""
        return min(SMALL, self.other - 1)

    def rates(self, size: int) -> list[float]:
        """eta = B eta~ for every base learning rate eta~ of the grid."""
        middle = self.lr / 16 * (16 / size) ** 0.5
        return [size * middle * 2.0**k for k in range(-self.octaves, self.octaves + 1)]


def tune(settings: Windows, request: Request) -> list[RunConfig]:
    base, first = settings.run(budget=Budget.EPOCHS, schedule=Schedule.STEP), tuning_seed(request)
    return [base.replace(batch_size=size, lr=lr, seed=seed) for seed in range(first, first + settings.tuning_seeds)
            for size in settings.batch_sizes for lr in settings.rates(size)]


def best_small(settings: Windows, request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """The tuned config, of those with at most 32 examples per batch, that has the best validation accuracy."""
    found = best_candidates(tuned(request, records), validation_accuracy)
    small = [c for c in found if c.config.batch_size <= settings.most]
    return [min(small, key=lambda c: c.order).config] if small else []


def best(settings: Windows, request: Request, seeds: range, records: Sequence[Record]) -> list[RunConfig]:
    return [c.replace(seed=seed) for seed in seeds for c in best_small(settings, request, records)]


def final(settings: Windows, request: Request, seeds: range, records: Sequence[Record]) -> list[RunConfig]:
    """The winners of all other batch sizes."""
    apart = best_small(settings, request, records)
    others = [c for c in winners(tuned(request, records), validation_accuracy) if c not in apart]
    return [c.replace(seed=seed) for seed in seeds for c in others]


def claims(scale: Scale, settings: Windows) -> tuple[Claim, ...]:
    """Margins: 0.5 points of test accuracy, half an octave of learning rates."""
    large, top = settings.large, group(f"best B of at most {settings.most}", stage="best")
    ranges = Family("stable_range", ("seed",), (("larger_is_better", True), ("tolerance", settings.tolerance)))
    better = (
        directional(f"small-tests-better-than-{size}", "equal epochs, no momentum, learning rates tuned: the best batch size of "
                    f"at most {settings.most} tests better than batch size {size}",
                    difference("test_accuracy", top, group(f"B {size}", stage="final", batch_size=size)), 0.5,
                    primary=size == large, gates=(Gate("edge_lr", 0),))
        for size in (large, settings.other)
    )
    tuning = {size: group(f"B {size}, tuning", stage="tune", batch_size=size) for size in (*settings.narrow, large)}
    narrower = (
        directional(f"range-{size}-{large}", f"the learning rates that test within {settings.tolerance:g} points of the best "
                    f"span more octaves at batch size {size} than at {large}",
                    difference("test_accuracy", tuning[size], tuning[large], unit="octaves", family=ranges), 0.5)
        for size in settings.narrow
    )
    return at_scale(scale, *better, *narrower, diverged_as=10.0, source="unchecked: no number of the paper is known here")


QUICK = Windows(n_train=2048, n_validation=2000, width=64, depth=2, batch_sizes=(4, 16, 64, 256), epochs=8, seeds=12)
LAPTOP = Windows(dataset="cifar10-jpeg", n_train=4096, n_validation=4000, model=Model.SMALL_CONV, batch_sizes=(4, 16, 64, 256),
                 epochs=12, seeds=12)
PAPER = Windows(
    dataset="cifar10", n_train=45_000, n_validation=5000, model=Model.RESNET32, norm=Norm.GROUP, augment=Augment.CROP_FLIP,
    batch_sizes=(2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048), epochs=82, weight_decay=1e-4, seeds=8,
)
# Pilots (seeds 1000 to 1004, learning rates chosen with seed 1500): test accuracy 82.05 (SD 0.31) at batch size 4, 80.25 (SD
# 0.21) at 64, 75.09 (SD 0.34) at 256
POWER = Power(effect=1.0, sd=0.34, pilot="seeds 1000 to 1004 at batch sizes 4 and 256", seeds=12)

STUDY = Study(
    name="masters2018",
    title="At equal epochs without momentum, batches of 2 to 32 test best",
    citation="Masters and Luschi, 2018 (arXiv 1804.07612)",
    scales=(
        Scale("quick", "an MLP, 2,048 images of Fashion-MNIST, 4 batch sizes, 9 learning rates, 8 tuning and 12 final seeds",
              "about a minute on two cores", QUICK, POWER, analogue=True),
        Scale("laptop", "a small conv net, 4,096 images of CIFAR-10 (JPEG copy), 4 batch sizes, 12 final seeds",
              "about an hour on two cores (estimated)", LAPTOP, analogue=True),
        Scale("paper", "ResNet-32 on CIFAR-10, 11 batch sizes from 2 to 2,048, 8 seeds", "a GPU; not measured yet", PAPER),
    ),
    stages=(
        Stage("tune", tune),
        Stage("best", best, at_most=lambda seeds: len(seeds)),
        Stage("final", final, at_most=lambda settings, seeds: len(settings.batch_sizes) * len(seeds)),
    ),
    claims_of=claims,
    figures=(
        figure("lr_grid", name="learning_rates", where={"stage": "tune"}),
        figure("values_vs_batch", name="test_accuracy", arm=("budget",), values=("test_accuracy", "gap_accuracy"),
               where={"stage": ("best", "final")}),
    ),
    deviations=(
        "`quick` trains an MLP with two hidden layers of 64 units on 2,048 images of Fashion-MNIST at batch sizes 4 to 256, "
        "`laptop` a small convolutional network on 4,096 images of CIFAR-10 (JPEG copy), `paper` a ResNet-32 on CIFAR-10.",
        "No batch normalisation (`paper`: group norm), for its noise depends on the batch size too; the paper has both.",
        "The learning rate is divided by 10 at one half and at three quarters of the epochs at every scale.",
        "Base learning rates by factors of 2, as many for every batch size; the windows follow eta ~ sqrt(B), so that both of "
        "their ends lie beyond what trains well.",
        "The range is of learning rates whose accuracy lies within a stated number of points of the best, per tuning seed.",
        "At `quick` 8 epochs, where `paper` has 82: batch size 256 makes 64 updates and ends at 75% training accuracy, so that "
        "most of the gap is unfinished training.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("masters2018"))
