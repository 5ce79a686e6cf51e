"""On the generalization benefit of noise in stochastic gradient descent (Smith, Elsen and De, ICML 2020).

The paper reports that at an equal number of steps, every learning rate tuned, small batches have higher test accuracy than
large ones, although large ones end at a lower training loss: noise helps. Shallue et al. (JMLR 2019, arXiv 1811.03600) find no
convincing evidence that the batch size by itself changes what a tuned network reaches.

Who is right on this task is asked twice of the same runs, so that no answer is the default. With d the margin (0.5 points;
`quick`: 0.25), the gap between the best of the smaller batch sizes and the largest one speaks
    for Smith, Elsen and De where its interval lies above d: `equal-steps-no-gap` is contradicted with a positive gap;
    for Shallue et al. where its interval lies within d: `equal-steps-gap` finds no effect;
    for neither else; a gap above 0 that is not known to exceed d is `equal-steps-gap` reproduced, `equal-steps-no-gap` undecided.

Learning rates and the best batch size are chosen by tuning runs alone, on validation images; the runs that answer are others,
and their intervals speak of seeds at the rates chosen, not of another tuning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from math import sqrt
from typing import Any, ClassVar

from experiments.lab.declare import Claim, Gate, Group, Power, Record, Request, RunConfig, Scale, Settings, figure, tuning
from experiments.lab.declare.contrasts import at_scale, difference, directional, equivalent, group, log_ratio, minus, non_inferior
from experiments.lab.declare.enums import Augment, Budget, Model, Norm, Scaling, Schedule
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.study import Stage, Study
from experiments.lab.declare.tuning import tuned, validation_accuracy


class Robust(StrEnum):
    """A further arm at equal steps."""

    GHOST = "ghost"
    AUGMENTED = "augmented"


ROBUST: dict[Robust, tuple[str, dict[str, Any]]] = {
    Robust.GHOST: ("ghost batch norm", {"norm": Norm.GHOST, "norm_batch": 16}),
    Robust.AUGMENTED: ("crops and flips", {"augment": Augment.CROP_FLIP}),
}
"""in a reader's words, and what it changes"""


@dataclass(frozen=True, kw_only=True)
class Budgets(Settings):
    """Equal `steps`, equal `epochs` and a matched `train_loss`, every learning rate tuned.

    `lr` is the middle of the grid at batch size 64; it follows sqrt scaling.
    """

    sizes: ClassVar[tuple[str, ...]] = ("batch_sizes", "matched", "robust_size")
    lr: float = 0.04
    momentum: float = 0.9
    train_loss: float
    """in nats"""
    max_epochs: float
    """a run ends without that loss after so many"""
    matched: tuple[int, ...] = (64,)
    """batch sizes below the largest that train to that loss; the first is compared with it"""
    seeds: int = 20
    """at the best and the largest batch size, equal steps"""
    compared: int = 8
    """seeds where another claim compares"""
    others: int = 5
    """seeds where none does"""
    confirm: int = 2
    """further tuning seeds of the three best learning rates, equal steps"""
    margin: float = 0.5
    """percentage points of test accuracy"""
    robust: tuple[Robust, ...] = ()
    robust_size: int = 256
    """batch size that is compared with the largest there"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.matched or max(self.matched) >= self.large or (self.robust and self.robust_size >= self.large):
            raise ConfigError(f"matched and robust_size must be batch sizes below the largest, {self.large}, and matched has one")

    @property
    def equal_steps(self) -> RunConfig:
        return self.run(budget=Budget.STEPS, schedule=Schedule.COSINE, epochs=None, train_loss=None, max_epochs=None)

    @property
    def equal_epochs(self) -> RunConfig:
        return self.run(budget=Budget.EPOCHS, schedule=Schedule.COSINE, steps=None, train_loss=None, max_epochs=None)

    @property
    def equal_loss(self) -> RunConfig:
        return self.run(budget=Budget.TRAIN_LOSS, schedule=Schedule.CONSTANT, steps=None, epochs=None)

    def robust_arm(self, name: Robust) -> RunConfig:
        return self.equal_steps.replace(**ROBUST[name][1])

    @property
    def cells(self) -> list[RunConfig]:
        """Every arm at each of its batch sizes."""
        arms = ((self.equal_steps, self.batch_sizes), (self.equal_epochs, self.batch_sizes),
                (self.equal_loss, (*self.matched, self.large)),
                *((self.robust_arm(name), (self.robust_size, self.large)) for name in self.robust))
        return [arm.replace(batch_size=size) for arm, sizes in arms for size in sizes]

    def is_main(self, config: RunConfig) -> bool:
        """Whether it belongs to the arm of equal steps that the primary claim is about."""
        return arm_of(config) == arm_of(self.equal_steps)


def arm_of(config: RunConfig) -> tuple[Budget, Norm, Augment]:
    return config.budget, config.norm, config.augment


def tune(settings: Budgets, request: Request) -> list[RunConfig]:
    return [cell.replace(lr=lr, seed=tuning.tuning_seed(request)) for cell in settings.cells
            for lr in tuning.grid(settings.lr * sqrt(cell.batch_size / 64), 3)]


def extend(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return tuning.extension(tuned(request, records), validation_accuracy)


def confirm(settings: Budgets, request: Request, records: Sequence[Record]) -> list[RunConfig]:
    main = [record for record in tuned(request, records) if settings.is_main(record.config)]
    return tuning.contenders(main, validation_accuracy, seeds=settings.confirm)


def chosen(settings: Budgets, request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """At equal steps and at equal epochs: the batch size below the largest with the best validation accuracy, tuned."""
    found = []
    candidates = tuning.best_candidates(tuned(request, records), validation_accuracy)
    for arm in (settings.equal_steps, settings.equal_epochs):
        cells = [c for c in candidates if arm_of(c.config) == arm_of(arm) and c.config.batch_size != settings.large]
        found += [min(cells, key=lambda c: c.order).config] if cells else []
    return found


def fresh(settings: Budgets, request: Request, config: RunConfig) -> list[RunConfig]:
    """Other seeds of a tuned config that a claim compares."""
    seeds = request.seed_range(settings.seeds if settings.is_main(config) else settings.compared)
    return [config.replace(seed=seed) for seed in seeds]


def best(settings: Budgets, request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return [run for config in chosen(settings, request, records) for run in fresh(settings, request, config)]


def final(settings: Budgets, request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """Every cell's winner but the best batch sizes, which have a stage of their own."""
    found, apart = [], chosen(settings, request, records)
    whole = {arm_of(settings.equal_steps), arm_of(settings.equal_epochs)}
    for config in tuning.winners(tuned(request, records), validation_accuracy):
        if config in apart:
            continue
        if config.batch_size == settings.large or arm_of(config) not in whole:
            found += fresh(settings, request, config)
        else:
            found += [config.replace(seed=seed) for seed in request.seed_range(settings.others)]
    return found


def carried_over(settings: Budgets, request: Request, records: Sequence[Record], *, at_best: bool) -> list[RunConfig]:
    """Equal steps with the learning rate tuned at the smallest batch size, as it is and scaled with the batch size; at the best
    batch size or at all others."""
    found = []
    apart = [c.batch_size for c in chosen(settings, request, records) if settings.is_main(c)]
    cells = [c for c in tuning.winners(tuned(request, records), validation_accuracy) if settings.is_main(c)]
    for source in [c for c in cells if c.batch_size == settings.small]:
        for size in [size for size in settings.batch_sizes if (size in apart) == at_best]:
            fixed = source.replace(batch_size=size)
            linear = fixed.replace(scaling=Scaling.LINEAR, base_batch_size=settings.small)
            seeds = request.seed_range(settings.compared)
            found += [rule.replace(seed=seed) for rule in (fixed, linear) for seed in seeds]
    return found


def claims(scale: Scale, settings: Budgets) -> tuple[Claim, ...]:
    """Margins: of test accuracy as set, for a matched loss 0.5 points; ln 1.25 for the ratio of losses."""
    small, large, margin, main = settings.small, settings.large, settings.margin, settings.equal_steps
    few, size = settings.matched[0], settings.robust_size

    def arm(config: RunConfig) -> dict[str, Any]:
        return {"budget": config.budget, "norm": config.norm, "augment": config.augment}

    def sides(config: RunConfig, *, best: str = "best", final: str = "final", scaling: Scaling = Scaling.NONE
              ) -> tuple[Group, Group]:
        """The best of the smaller batch sizes and the largest one."""
        return (group(f"best B, {best}", stage=best, **arm(config), scaling=scaling),
                group(f"B {large}, {final}", stage=final, **arm(config), scaling=scaling, batch_size=large))

    gap = difference("test_accuracy", *sides(main))
    carried, scaled = (
        minus(difference("test_accuracy", *sides(main, best="untuned best", final="untuned", scaling=scaling)), gap)
        for scaling in (Scaling.NONE, Scaling.LINEAR)
    )
    matched = {B: group(f"B {B}", stage="final", budget=Budget.TRAIN_LOSS, batch_size=B) for B in (few, large)}
    robust = {name: [group(f"B {B}", stage="final", **arm(settings.robust_arm(name)), batch_size=B) for B in (size, large)]
              for name in settings.robust}
    edge = Gate("edge_lr", 0)
    steps = "equal steps, learning rates tuned: the best of the smaller batch sizes"
    return at_scale(
        scale,
        directional("equal-steps-gap", f"{steps} tests better than batch size {large} (no effect: Shallue et al.)",
                    gap, margin, gates=(edge,), primary=True),
        equivalent("equal-steps-no-gap", f"{steps} and batch size {large} test within {margin} points of each other "
                   "(contradicted by a positive gap: Smith, Elsen and De)", gap, margin, gates=(edge,)),
        directional("equal-steps-train-loss", f"equal steps, learning rates tuned: batch size {large} ends at a lower training "
                    "loss than the best of the smaller ones", log_ratio("train_loss", *sides(main)), gates=(edge,)),
        directional("carried-gap", f"equal steps: the gap is larger with the learning rate of batch size {small} than tuned",
                    carried, margin),
        directional("scaled-gap", f"equal steps: the gap is larger with the learning rate of batch size {small}, scaled "
                    "linearly, than with tuned ones", scaled, margin),
        directional("equal-epochs-gap", "equal epochs, learning rates tuned: the best of the smaller batch sizes tests "
                    f"better than batch size {large}", difference("test_accuracy", *sides(settings.equal_epochs)), margin,
                    gates=(edge,)),
        non_inferior("matched-loss", f"equal training loss, learning rates tuned: batch size {large} tests at most 0.5 points "
                     f"worse than batch size {few} (Shallue et al.)", difference("test_accuracy", matched[large], matched[few]),
                     0.5, gates=(Gate("status", 0.1), Gate("matched", 0.1, "train_loss"), edge)),
        *(directional(f"equal-steps-gap-{name}", f"{ROBUST[name][0]}, equal steps, learning rates tuned: batch size {size} "
                      f"tests better than {large}", difference("test_accuracy", *pair), margin, gates=(edge,))
          for name, pair in robust.items()),
        gates=(Gate("min_seeds", 8),), diverged_as=10.0,
        source="unchecked: the paper's numbers are of other networks and data",
    )


SIZES = (16, 64, 256, 1024)
QUICK = Budgets(n_train=4096, n_validation=5904, width=128, depth=2, batch_sizes=SIZES, steps=512, epochs=32, train_loss=0.1,
                max_epochs=128, seeds=16, confirm=4, margin=0.25)
LAPTOP = Budgets(dataset="cifar10-jpeg", n_train=8192, n_validation=10_000, model=Model.SMALL_CONV, norm=Norm.GROUP,
                 batch_sizes=SIZES, steps=512, epochs=16, train_loss=0.3, max_epochs=96)
OVERNIGHT = replace(LAPTOP, batch_sizes=(16, 32, 64, 128, 256, 512, 1024, 2048), steps=1024, epochs=32, train_loss=0.1,
                    max_epochs=256, matched=(16, 128, 512), robust=(Robust.GHOST, Robust.AUGMENTED))
PAPER = Budgets(dataset="cifar10", n_train=45_000, n_validation=5000, model=Model.WRN16_4, norm=Norm.GROUP, weight_decay=5e-4,
                batch_sizes=(*OVERNIGHT.batch_sizes, 4096), lr=0.05, steps=9765, epochs=200, train_loss=0.01, max_epochs=400,
                matched=(128,), robust=(Robust.AUGMENTED,))
# Pilots (seeds 1000 to 1005): test accuracy 84.50 (SD 0.24) at batch size 256, 84.01 (SD 0.09) at 1,024. A gap below the
# spread of a single run, 0.24 points, is none that a reader of a table would see: margin 0.25.
POWER = Power(effect=0.25, sd=0.24, pilot="seeds 1000 to 1005 at batch sizes 256 and 1,024", seeds=16)
# `laptop` (seeds 1000 to 1003, the middle of the grid): 52.0 (SD 1.0) at batch size 256, 48.3 (SD 0.4) at 1,024. A gap of two
# margins is seen; at such spreads a gap of 0 would be called none in 3 of 10 studies alone, so that the answer "Shallue" needs
# tuned runs that spread less.
LAPTOP_POWER = Power(effect=1.0, sd=1.01, pilot="seeds 1000 to 1003 at batch sizes 256 and 1,024", seeds=20)

TUNED = {"stage": ("final", "best"), "norm": ("none", "group"), "scaling": "none"}
STEPS = {**TUNED, "budget": "steps", "augment": "none"}
UNTUNED = {"stage": ("untuned", "untuned best")}
against_batch = partial(figure, "values_vs_batch", values=("test_accuracy", "train_loss"), logarithmic=("train_loss",))
grids = partial(figure, "lr_grid", name="learning_rates", where={"stage": ("tune", "extend", "confirm")}, arm=("budget",))

STUDY = Study(
    name="smith2020",
    title="At equal steps, tuned, small batches have higher test accuracy",
    citation="Smith, Elsen and De, ICML 2020 (arXiv 2006.15081); against Shallue et al., JMLR 2019 (arXiv 1811.03600)",
    scales=(
        Scale("quick", "an MLP, 4,096 images of Fashion-MNIST, 4 batch sizes, 16 seeds at the two compared",
              "about 4 minutes on two cores", QUICK, POWER, analogue=True),
        Scale("laptop", "a small conv net, 8,192 images of CIFAR-10 (JPEG copy), 4 batch sizes, 20 seeds at the two compared",
              "about half an hour on two cores", LAPTOP, LAPTOP_POWER, analogue=True),
        Scale("overnight", "a small conv net, 8,192 images of CIFAR-10 (JPEG copy), 8 batch sizes, 20 seeds at the two compared",
              "a night on two cores (estimated)", OVERNIGHT),
        Scale("paper", "WRN-16-4 on CIFAR-10, 9 batch sizes, 20 seeds at the two compared", "a GPU; not measured yet",
              PAPER),
    ),
    stages=(
        Stage("tune", tune),
        Stage("extend", extend, at_most=lambda settings: 2 * len(settings.cells)),
        Stage("confirm", confirm, at_most=lambda settings: 3 * settings.confirm * len(settings.batch_sizes)),
        Stage("final", final, at_most=lambda settings, seeds: len(seeds) * len(settings.cells)),
        Stage("best", best, at_most=lambda seeds: 2 * len(seeds)),
        Stage("untuned", partial(carried_over, at_best=False),
              at_most=lambda settings, seeds: 2 * len(seeds) * len(settings.batch_sizes)),
        Stage("untuned best", partial(carried_over, at_best=True), at_most=lambda seeds: 2 * len(seeds)),
    ),
    claims_of=claims,
    figures=(
        against_batch(name="budgets", arms={"equal updates": STEPS, "equal epochs": {**TUNED, "budget": "epochs"},
                                            "equal training loss": {**TUNED, "budget": "train_loss"}}),
        against_batch(name="tuned_and_carried_over", arms={"tuned": STEPS, "carried over": {**UNTUNED, "scaling": "none"}}),
        against_batch(name="tuned_and_scaled_linearly",
                      arms={"tuned": STEPS, "scaled linearly": {**UNTUNED, "scaling": "linear"}}),
        grids(scales=("quick",), worst=70.0), grids(scales=("laptop", "overnight", "paper")),
    ),
    tried=(
        "`quick`, training loss: the large batch ends 1.6 times higher than the best smaller one. Which of the two ends lower "
        "hangs on the learning rate that tuning picks: in pilots B 1,024 was 3 times lower at 0.08 and 1.5 times higher at "
        "0.04, and the two test within 0.3 points of each other.",
        "`quick`: carried over from B 16 the learning rate is too small for all larger sizes, so that they differ less than "
        "tuned; scaled linearly it fails for some seeds at B 256 and diverges at 1,024. Seven rates by factors of 2 a size, "
        "an extension beyond an edge, four further tuning seeds for the best three.",
        "`quick`, training loss, once more: validation prefers 0.04 to 0.08 at B 1,024 by 0.18 points (85.06 and 84.88, SD "
        "0.25 and 0.27, 5 tuning seeds). At 0.08 it tests the same and ends 3 times lower than B 256, as Smith, Elsen and De "
        "report.",
        "`quick`, margin: 0.25 points are this scale's, set after a pilot; at 0.5, which the larger scales ask for, the 90% "
        "interval would say no effect, as Shallue et al. do.",
        "`quick`: the interval of the gap speaks of seeds; that other tuning seeds might have picked another rate at B 1,024 "
        "(in pilots a gap of 0.5 to 1.4 points) is not in it.",
        "`laptop`: at none of seven learning rates does B 1,024 test above 48.9, where B 256 tests 52 at three of its seven, "
        "so that the gap does not hang on the rate that tuning picked. Nor does the order of the training losses: at its "
        "chosen rate, 0.64, B 1,024 ends at 0.37 nats, at all smaller ones below 0.26.",
        "`laptop`, carried over: with the rate of B 16, 0.005, 256 and 1,024 test alike (48.7): tuning gains 3.4 points at "
        "256 and none at 1,024. Scaled linearly both are near their best rates; 8 seeds do not tell a change of the gap by "
        "0.5 points.",
        "`laptop`, equal training loss: B 1,024 tests 1.7 points worse than 64, beyond the margin of 0.5, but 8 seeds do not "
        "exclude 0.48 at Holm's level.",
    ),
    deviations=(
        "A cosine schedule to 0 without warm-up replaces the paper's schedule; runs to a matched training loss have a constant "
        "learning rate, for their length is not known beforehand.",
        "No batch norm: group norm, or none at `quick`. Its noise depends on the batch size, which is what is studied; ghost "
        "batch norm is one of two robustness arms at `overnight`. The other is crops and flips: the main arm has none.",
        "`quick` trains an MLP with two hidden layers of 128 units on 4,096 images of Fashion-MNIST, `laptop` and `overnight` "
        "a small convolutional network on 8,192 images of CIFAR-10 (JPEG copy).",
        "Learning rates by factors of 2, seven a batch size around sqrt scaling, one extension beyond an edge; in the arm of "
        "equal steps the best three are tried with two further seeds (`quick`: four), because one seed misled in pilots.",
        "The untuned arms take the learning rate that was tuned at the smallest batch size to all others, unchanged or in "
        "proportion to the batch size.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("smith2020"))
