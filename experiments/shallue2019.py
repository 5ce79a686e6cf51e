"""Measuring the effects of data parallelism on neural network training (Shallue et al., JMLR 2019).

The paper counts the steps to a goal against the batch size, every learning rate tuned anew, and finds three regions on each
of its workloads: perfect scaling (twice the batch, half the steps), diminishing returns, and maximal data parallelism, where a
larger batch saves no step. How large the largest useful batch is depends on model, data and optimizer, and momentum makes
larger ones useful; the best learning rate follows no single rule. McCandlish et al. (arXiv 1812.06162) predict the batch size
where it bends from the noise of the gradient.

Steps S and examples E = B S: perfect scaling is a constant E, maximal parallelism a constant S.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import log, sqrt
from typing import ClassVar

from experiments.lab.declare import Claim, Family, Gate, Group, Power, Record, Request, RunConfig, Scale, Settings, measure
from experiments.lab.declare.contrasts import at_scale, directional, equivalent, figure, group, log_ratio, minus, weighted
from experiments.lab.declare.enums import Augment, Budget, Model, Norm
from experiments.lab.declare.study import Stage, Study
from experiments.lab.declare.tuning import contenders, extension, fewest_steps, grid, tuned, tuning_seed, winners


@dataclass(frozen=True, kw_only=True)
class Goal(Settings):
    """Steps to a training loss: plain SGD at every batch size, SGD with momentum at those of the curve.

    `lr` is the middle of the grid of plain SGD at batch size 8; it follows sqrt scaling.
    """

    sizes: ClassVar[tuple[str, ...]] = ("batch_sizes", "curve", "perfect")
    lr: float = 0.05
    momentum_lr: float = 0.008
    """the same with momentum"""
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    curve: tuple[int, ...] = (32, 128, 2048)
    """of plain SGD those whose gradient noise is measured, which give the critical batch size"""
    perfect: tuple[int, ...] = (4, 16)
    """two batch sizes two doublings apart, where scaling is claimed to be perfect"""
    train_loss: float
    fewest_epochs: float
    """a run ends without its goal after so many epochs or updates, whichever is later"""
    fewest_updates: int
    curve_seeds: int = 8
    """at the batch sizes of the curve, without and with momentum"""
    others: int
    """seeds where no claim looks"""

    def seeds_of(self, config: RunConfig) -> int:
        if config.momentum or config.batch_size in self.curve:
            return self.curve_seeds
        return self.seeds if config.batch_size in (*self.perfect, self.batch_sizes[-2]) else self.others

    @property
    def cells(self) -> list[tuple[RunConfig, float]]:
        """Every cell with the middle of its grid."""
        base = self.run(budget=Budget.TRAIN_LOSS, max_epochs=self.fewest_epochs)
        arms = ((0.0, self.batch_sizes, self.lr), (0.9, self.curve, self.momentum_lr))
        assert base.n_train is not None
        return [
            (base.replace(momentum=momentum, batch_size=size,
                          max_epochs=max(self.fewest_epochs, self.fewest_updates * size / base.n_train)), middle * sqrt(size / 8))
            for momentum, sizes, middle in arms for size in sizes
        ]


def tune(settings: Goal, request: Request) -> list[RunConfig]:
    return [cell.replace(lr=lr, seed=tuning_seed(request)) for cell, middle in settings.cells for lr in grid(middle, 2)]


def extend(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return extension(tuned(request, records), fewest_steps)


def confirm(settings: Goal, request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """Two more tuning seeds for the best three rates of every cell that a claim looks at."""
    return contenders([r for r in tuned(request, records) if settings.seeds_of(r.config) > settings.others], fewest_steps)


def fresh(settings: Goal, request: Request, records: Sequence[Record], *, on_curve: bool = False) -> list[RunConfig]:
    """Fresh seeds of the winners: plain SGD at the batch sizes of the curve, or everything else."""
    found = [c for c in winners(tuned(request, records), fewest_steps)
             if (c.momentum == 0 and c.batch_size in settings.curve) == on_curve]
    return [best.replace(seed=seed) for best in found for seed in request.seed_range(settings.seeds_of(best))]


def claims(scale: Scale, settings: Goal) -> tuple[Claim, ...]:
    """All of logarithms; margins ln 1.25. A contrast is of tuned runs with fresh seeds that reached the goal."""
    few, more = settings.perfect
    before, largest, first = *settings.batch_sizes[-2:], settings.curve[0]

    def at(size: int, momentum: float = 0.0) -> Group:
        stage = "curve" if not momentum and size in settings.curve else "final"
        return group(f"B {size}" + (", momentum" if momentum else ""), stage=stage, momentum=momentum, batch_size=size)

    whole = group("SGD, every batch size with a noise scale", stage="curve", momentum=0.0)
    over = Family("critical_batch_over", ("seed",), (("over_value", "noise_scale_along"),))
    return at_scale(
        scale,
        equivalent("perfect-scaling", f"perfect scaling at small batches: batch size {more} needs as many examples as {few}, "
                   "within a factor of 1.25", log_ratio("examples", at(more), at(few)), primary=True),
        directional("diminishing-returns", f"diminishing returns: batch size {largest} needs more examples than batch size {few}",
                    log_ratio("examples", at(largest), at(few))),
        equivalent("maximal-parallelism", f"maximal parallelism: batch size {largest} needs as many steps as {before}, within a "
                   "factor of 1.25", log_ratio("steps", at(before), at(largest))),
        directional("momentum-scales-further", f"from batch size {first} to {largest} momentum saves more steps than plain SGD",
                    minus(log_ratio("steps", at(first, 0.9), at(largest, 0.9)), log_ratio("steps", at(first), at(largest)))),
        equivalent("noise-scale-predicts", "the critical batch size, E_min / S_min, is the gradient's noise scale, averaged "
                   "along training, within a factor of 2 (McCandlish et al.)",
                   weighted("steps", (1.0, whole), unit="log ratio", family=over), log(2)),
        gates=(Gate("min_seeds", 8), Gate("status", 0.1), Gate("matched", 0.1, "train_loss"), Gate("edge_lr", 0)),
        source="unchecked: the paper shows curves of other networks and data",
    )


QUICK = Goal(n_train=8192, width=128, depth=2, train_loss=0.4, fewest_epochs=10, fewest_updates=400, seeds=12, others=4)
LAPTOP = Goal(dataset="cifar10-jpeg", n_train=8192, model=Model.SMALL_CONV, norm=Norm.GROUP, train_loss=1.3, fewest_epochs=12,
              fewest_updates=500, seeds=12, others=2)
PAPER = Goal(dataset="cifar10", n_train=50_000, model=Model.RESNET8, norm=Norm.GROUP, augment=Augment.CROP_FLIP,
             batch_sizes=(*QUICK.batch_sizes, 4096, 8192), curve=(32, 128, 1024, 8192), train_loss=0.6, fewest_epochs=100,
             fewest_updates=4000, seeds=8, others=4)
# 6 pilot seeds (1000 to 1005): logarithms of the examples have SD 0.09 at batch size 4 and 0.11 at 16
POWER = Power(effect=0.0, sd=0.11, pilot="seeds 1000 to 1005 at batch sizes 4 and 16", seeds=12)
# `laptop`, 3 tuning seeds of a pilot (1500 to 1502) at each of the three best rates: SD 0.12 at batch size 4, 0.11 at 16
LAPTOP_POWER = Power(effect=0.0, sd=0.13, pilot="seeds 1500 to 1502, three learning rates each at batch sizes 4 and 16", seeds=12)
FRESH, NOISE = {"stage": ("final", "curve")}, measure("noise_scale_along", examples=1000, points=4)

STUDY = Study(
    name="shallue2019",
    title="Steps to a goal against batch size: perfect scaling, diminishing returns, a limit",
    citation="Shallue, Lee, Antognini, Sohl-Dickstein, Frostig and Dahl, JMLR 2019 (arXiv 1811.03600)",
    scales=(
        Scale("quick", "an MLP, 8,192 images of Fashion-MNIST, SGD at 10 batch sizes, with momentum at 3, up to 12 seeds",
              "about 4 minutes on two cores", QUICK, POWER, analogue=True),
        Scale("laptop", "a small conv net, 8,192 images of CIFAR-10 (JPEG copy), SGD at 10 batch sizes, with momentum at 3, "
              "up to 12 seeds", "about half an hour on two cores", LAPTOP, LAPTOP_POWER, analogue=True),
        Scale("paper", "a ResNet-8 on CIFAR-10, SGD at 12 batch sizes, with momentum at 4, 8 seeds", "a GPU; not measured yet",
              PAPER),
    ),
    stages=(
        Stage("tune", tune),
        Stage("extend", extend, at_most=lambda settings: 2 * len(settings.cells)),
        Stage("confirm", confirm, at_most=lambda settings: 6 * len(settings.cells)),
        Stage("final", fresh, at_most=lambda settings, seeds: len(seeds) * len(settings.cells)),
        Stage("curve", partial(fresh, on_curve=True), measures=lambda: (NOISE,),
              at_most=lambda settings, request: len(request.seed_range(settings.curve_seeds)) * len(settings.curve)),
    ),
    claims_of=claims,
    figures=(
        figure("values_vs_batch", name="steps_to_goal", values=("steps", "examples"), logarithmic=True, arm=("momentum",),
               where=FRESH),
        figure("values_vs_batch", name="noise_scale", values={"noise_scale_along": "simple noise scale"}, logarithmic=True,
               where=FRESH),
        figure("lr_grid", name="learning_rates", score="steps", larger_is_better=False, logarithmic=True, arm=("momentum",),
               where={"stage": ("tune", "extend", "confirm")}),
    ),
    tried=(
        "`quick`, perfect scaling from B 4 to 16: steps to a training loss of 0.4 spread by 20% over seeds at B 4, twice as "
        "much as in the pilots that chose 12 seeds (standard deviation of the logarithm 0.11), so that the interval, 0.77 to "
        "1.05, just leaves the margin. Learning rates by factors of 2, confirmed by further tuning seeds, none on an edge.",
        "`quick`, maximal parallelism: doubling 1,024 to 2,048 still saves 17% of the steps. The largest batch is a quarter "
        "of the 8,192 examples, so that the plateau itself may lie beyond what this data set can show.",
        "`quick`: the rate taken at B 4 spread more over tuning seeds (6,323 to 8,960 updates) than the next smaller one "
        "(7,050 to 8,704).",
        "`laptop`, momentum: the first tuning seed preferred 0.064 at B 2,048, so that the grid was not extended; with two "
        "further seeds 0.032, its smallest, was best, and the gate leaves the claim undecided. A better rate could only save "
        "more steps: 2.45 times [2.18, 2.75] is a lower bound of what tuning finds.",
        "`laptop`, power: 12 seeds were chosen for a standard deviation of 0.13 of the logarithm, from three pilot seeds a "
        "rate; at batch size 4 it is 0.15.",
    ),
    deviations=(
        "The goal is a training cross-entropy, judged every eighth of an epoch where it is near, not a validation error.",
        "Learning rates by factors of 2 around sqrt scaling, five a batch size, and one extension beyond an edge; momentum is "
        "0 or 0.9, the learning rate constant. The paper tunes all of them by a quasi-random search. Where a claim looks, the "
        "best three rates are tried with two further seeds.",
        "The largest batch is a quarter of the training set, so that the plateau may lie beyond it.",
        "`quick` trains an MLP with two hidden layers of 128 units on 8,192 images of Fashion-MNIST, `laptop` a small "
        "convolutional network on 8,192 images of CIFAR-10 (JPEG copy), `paper` a ResNet-8 with group norm on CIFAR-10.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("shallue2019"))
