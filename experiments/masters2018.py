"""Revisiting small batch training for deep neural networks (Masters and Luschi, arXiv 1804.07612, 2018).

The paper trains AlexNets and ResNets on CIFAR-10, CIFAR-100 and ImageNet for a fixed number of epochs with plain SGD, no
momentum, at batch sizes B from 2 to thousands, each at many learning rates. It writes the update as a sum over the batch with a
*base* learning rate eta~, so that the rate of the mean gradient, ours, is eta = B eta~. It reports that the best test accuracy is
reached with B between 2 and 32, and that the range of learning rates that train stably and well narrows as B grows.

A learning rate is chosen by validation accuracy, the mean over the tuning seeds; the runs that answer have other seeds.

Run it:  python -m experiments run masters2018 --scale quick
"""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.lab.declare.claims import Claim, Contrast, Family, Gate, Group, Kind, Power
from experiments.lab.declare.config import Augment, Budget, Model, Norm, RunConfig, Schedule
from experiments.lab.declare.study import Figure, Record, Request, Scale, Stage, Study
from experiments.lab.declare.tuning import best_candidates, tuned, tuning_seed, validation_accuracy, winners

SMALL = 32
"""the paper's best batch sizes are at most this"""


@dataclass(frozen=True)
class Settings:
    """One scale: `base` at every batch size of `sizes`, at `rates` learning rates each."""

    base: RunConfig
    sizes: tuple[int, ...]
    center: float
    """middle of the grid, eta at batch size 16: an eta~ of center / 16"""
    octaves: int
    """of the grid on either side of its middle"""
    tuning_seeds: int
    seeds: int
    tolerance: float
    """points of test accuracy below the best at which a learning rate still trains well"""

    @property
    def small(self) -> tuple[int, ...]:
        return tuple(size for size in self.sizes if size <= SMALL)

    @property
    def large(self) -> int:
        return self.sizes[-1]

    def rates(self, size: int) -> list[float]:
        """eta = B eta~ for every base learning rate eta~ of the grid."""
        middle = self.center / 16 * (16 / size) ** 0.5
        return [size * middle * 2.0**k for k in range(-self.octaves, self.octaves + 1)]


SGD = RunConfig(batch_size=16, lr=1.0, budget=Budget.EPOCHS, epochs=8, schedule=Schedule.STEP)
SETTINGS = {
    "quick": Settings(
        SGD.replace(dataset="fashion-mini", n_train=2048, n_validation=2000, model=Model.MLP, width=64, depth=2),
        (4, 16, 64, 256), 0.1, 4, tuning_seeds=8, seeds=12, tolerance=2.0,
    ),
    "laptop": Settings(
        SGD.replace(dataset="cifar10-jpeg", n_train=4096, n_validation=4000, model=Model.SMALL_CONV, epochs=12),
        (4, 16, 64, 256), 0.1, 4, tuning_seeds=8, seeds=12, tolerance=2.0,
    ),
    "paper": Settings(
        SGD.replace(dataset="cifar10", n_train=45_000, n_validation=5000, model=Model.RESNET32, norm=Norm.GROUP, epochs=82,
                    augment=Augment.CROP_FLIP, weight_decay=1e-4),
        (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048), 0.1, 4, tuning_seeds=8, seeds=8, tolerance=2.0,
    ),
}


def tune(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    settings = SETTINGS[request.scale]
    base = settings.base if request.dataset is None else settings.base.replace(dataset=request.dataset)
    first = tuning_seed(request)
    return [base.replace(batch_size=size, lr=lr, seed=seed) for seed in range(first, first + settings.tuning_seeds)
            for size in settings.sizes for lr in settings.rates(size)]


def best_small(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """The tuned config, of those with at most 32 examples per batch, that has the best validation accuracy."""
    found = best_candidates(tuned(request, records), validation_accuracy)
    small = [c for c in found if c.config.batch_size in SETTINGS[request.scale].small]
    return [min(small, key=lambda c: c.order).config] if small else []


def fresh(request: Request, configs: Sequence[RunConfig]) -> list[RunConfig]:
    return [c.replace(seed=seed) for seed in request.seed_range(SETTINGS[request.scale].seeds) for c in configs]


def best(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return fresh(request, best_small(request, records))


def final(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """The winners of all other batch sizes."""
    apart = best_small(request, records)
    return fresh(request, [c for c in winners(tuned(request, records), validation_accuracy) if c not in apart])


def claims_of(scale: str, *, power: Power | None = None, analogue: str = "") -> tuple[Claim, ...]:
    """Margins: 0.5 points of test accuracy, half an octave of learning rates."""
    settings = SETTINGS[scale]
    points, unknown = "percentage points", "unchecked: no number of the paper is known here"
    top = Group(f"best B of at most {SMALL}", 1.0, (("stage", "best"),))
    tolerance = (("larger_is_better", True), ("tolerance", settings.tolerance))
    ranges = Family("stable_range", ("seed",), tolerance)

    def tests_better(size: int, *, primary: bool = False) -> Claim:
        other = Group(f"B {size}", -1.0, (("stage", "final"), ("batch_size", size)))
        return Claim(
            id=f"{scale}-small-tests-better-than-{size}",
            sentence=f"{analogue}equal epochs, no momentum, learning rates tuned: the best batch size of at most {SMALL} tests "
                     f"better than batch size {size}",
            kind=Kind.DIRECTIONAL, contrast=Contrast("test_accuracy", (top, other), 1, points), margin=0.5, primary=primary,
            gates=(Gate("min_seeds", 8), Gate("status", 0.1), Gate("edge_lr", 0)), scales=(scale,), diverged_as=10.0,
            paper_source=unknown, power=power if primary else None,
        )

    def narrower(small: int, large: int) -> Claim:
        sides = tuple(Group(f"B {size}, tuning", weight, (("stage", "tune"), ("batch_size", size)))
                      for size, weight in ((small, 1.0), (large, -1.0)))
        return Claim(
            id=f"{scale}-range-{small}-{large}",
            sentence=f"{analogue}the learning rates that test within {settings.tolerance:g} points of the best span more octaves "
                     f"at batch size {small} than at {large}",
            kind=Kind.DIRECTIONAL, contrast=Contrast("test_accuracy", sides, 1, "octaves", family=ranges), margin=0.5,
            gates=(Gate("min_seeds", 8), Gate("status", 0.1)), scales=(scale,), diverged_as=10.0, paper_source=unknown,
        )

    # batch sizes 4, 64 and the largest are in every scale
    return (
        tests_better(settings.large, primary=True),
        tests_better(64),
        narrower(4, settings.large),
        narrower(16, settings.large),
    )


# Pilots (seeds 1000 to 1004, learning rates chosen with seed 1500): test accuracy 82.05 (SD 0.31) at batch size 4, 80.25 (SD
# 0.21) at 64, 75.09 (SD 0.34) at 256
POWER = Power(effect=1.0, sd=0.34, pilot="seeds 1000 to 1004 at batch sizes 4 and 256", seeds=12)
CLAIMS = (
    *claims_of("quick", power=POWER, analogue="analogue: "),
    *claims_of("laptop", analogue="analogue: "),
    *claims_of("paper"),
)


def cells_of(request: Request) -> int:
    settings = SETTINGS[request.scale]
    return len(settings.sizes) * len(request.seed_range(settings.seeds))


STUDY = Study(
    name="masters2018",
    title="At equal epochs without momentum, batches of 2 to 32 test best",
    citation="Masters and Luschi, 2018 (arXiv 1804.07612)",
    scales=(
        Scale("quick", "an MLP, 2,048 images of Fashion-MNIST, 4 batch sizes, 9 learning rates, 8 tuning and 12 final seeds",
              "about a minute on two cores"),
        Scale("laptop", "a small conv net, 4,096 images of CIFAR-10 (JPEG copy), 4 batch sizes, 12 final seeds",
              "about an hour on two cores (estimated)"),
        Scale("paper", "ResNet-32 on CIFAR-10, 11 batch sizes from 2 to 2,048, 8 seeds", "a GPU; not measured yet"),
    ),
    stages=(
        Stage("tune", tune),
        Stage("best", best, at_most=lambda request: len(request.seed_range(SETTINGS[request.scale].seeds))),
        Stage("final", final, at_most=cells_of),
    ),
    claims=CLAIMS,
    figures=(
        Figure("learning_rates", "lr_grid", (("where", (("stage", "tune"),)),)),
        Figure("test_accuracy", "values_vs_batch",
               (("arm", ("budget",)), ("values", ("test_accuracy", "gap_accuracy")), ("where", (("stage", ("best", "final")),)))),
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
