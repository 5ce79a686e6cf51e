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

Run it:  python -m experiments run smith2020 --scale quick
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import log, sqrt

from experiments.lab.declare import tuning
from experiments.lab.declare.claims import Claim, Contrast, Gate, Group, Kind, Power, ValueScale
from experiments.lab.declare.config import Augment, Budget, Model, Norm, RunConfig, Scaling, Schedule
from experiments.lab.declare.study import Figure, Record, Request, Scale, Stage, Study


@dataclass(frozen=True)
class Settings:
    """One scale. `base` trains for a number of steps; epochs and matched loss replace that budget."""

    base: RunConfig
    sizes: tuple[int, ...]
    center: float
    """middle of the grid at batch size 64; it follows sqrt scaling"""
    epochs: float
    target: float
    """training cross-entropy in nats of the matched arm"""
    max_epochs: float
    matched: tuple[int, ...]
    seeds: int
    """at the best and the largest batch size, equal steps"""
    confirm: int = 2
    """further tuning seeds of the three best learning rates, equal steps"""
    others: int = 5
    compared: int = 8
    """where another claim compares"""
    robust: tuple[tuple[str, str, RunConfig], ...] = ()
    """robustness arms at equal steps: name, words and runs, at two batch sizes each"""
    robust_sizes: tuple[int, ...] = ()

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    def arms(self) -> tuple[tuple[RunConfig, tuple[int, ...]], ...]:
        """Budget and network of every arm, with its batch sizes."""
        epochs = self.base.replace(budget=Budget.EPOCHS, steps=None, epochs=self.epochs)
        matched = self.base.replace(budget=Budget.TRAIN_LOSS, steps=None, train_loss=self.target, max_epochs=self.max_epochs,
                                    schedule=Schedule.CONSTANT)
        robust = tuple((arm, self.robust_sizes) for _, _, arm in self.robust)
        return (self.base, self.sizes), (epochs, self.sizes), (matched, self.matched), *robust


SGD = RunConfig(batch_size=16, lr=1.0, momentum=0.9, schedule=Schedule.COSINE, budget=Budget.STEPS, steps=512)
QUICK = SGD.replace(dataset="fashion-mini", n_train=4096, n_validation=5904, model=Model.MLP, width=128, depth=2)
CIFAR = SGD.replace(dataset="cifar10-jpeg", n_train=8192, n_validation=10000, model=Model.SMALL_CONV, norm=Norm.GROUP, steps=1024)
PAPER = SGD.replace(dataset="cifar10", n_train=45000, n_validation=5000, model=Model.WRN16_4, norm=Norm.GROUP,
                    weight_decay=5e-4, steps=9765)
SETTINGS = {
    "quick": Settings(QUICK, (16, 64, 256, 1024), 0.04, 32, 0.1, 128, (64, 1024), seeds=16, confirm=4),
    "laptop": Settings(CIFAR.replace(steps=512), (16, 64, 256, 1024), 0.04, 16, 0.3, 96, (64, 1024), seeds=20),
    "overnight": Settings(
        CIFAR, (16, 32, 64, 128, 256, 512, 1024, 2048), 0.04, 32, 0.1, 256, (16, 128, 512, 2048), seeds=20,
        robust=(("ghost", "ghost batch norm", CIFAR.replace(norm=Norm.GHOST, norm_batch=16)),
                ("augmented", "crops and flips", CIFAR.replace(augment=Augment.CROP_FLIP))),
        robust_sizes=(256, 2048),
    ),
    "paper": Settings(
        PAPER, (16, 32, 64, 128, 256, 512, 1024, 2048, 4096), 0.05, 200, 0.01, 400, (128, 4096), seeds=20,
        robust=(("augmented", "crops and flips", PAPER.replace(augment=Augment.CROP_FLIP)),), robust_sizes=(256, 4096),
    ),
}


def settings_of(request: Request) -> Settings:
    return SETTINGS[request.scale]


def arm_of(config: RunConfig) -> tuple[Budget, Norm, Augment]:
    return config.budget, config.norm, config.augment


def tune(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    settings, found = settings_of(request), []
    for arm, sizes in settings.arms():
        own = arm if request.dataset is None else arm.replace(dataset=request.dataset)
        for size in sizes:
            rates = tuning.grid(settings.center * sqrt(size / 64), 3)
            found += [own.replace(batch_size=size, lr=lr, seed=tuning.tuning_seed(request)) for lr in rates]
    return found


def extend(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return tuning.extension(tuning.tuned(request, records), tuning.validation_accuracy)


def confirm(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    main = [record for record in tuning.tuned(request, records) if is_main(request, record.config)]
    return tuning.contenders(main, tuning.validation_accuracy, seeds=settings_of(request).confirm)


def is_main(request: Request, config: RunConfig) -> bool:
    """Whether it belongs to the arm of equal steps that the primary claim is about."""
    return arm_of(config) == arm_of(settings_of(request).base)


def chosen(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """Of each arm that trains at every batch size, the one below the largest with the best validation accuracy, tuned."""
    settings, found = settings_of(request), []
    candidates = tuning.best_candidates(tuning.tuned(request, records), tuning.validation_accuracy)
    for arm in [arm for arm, sizes in settings.arms() if sizes == settings.sizes]:
        cells = [c for c in candidates if arm_of(c.config) == arm_of(arm) and c.config.batch_size != settings.largest]
        found += [min(cells, key=lambda c: c.order).config] if cells else []
    return found


def fresh(request: Request, config: RunConfig, *, compared: bool) -> list[RunConfig]:
    """Other seeds of a tuned config: as many as the claims about it need."""
    settings = settings_of(request)
    more = settings.seeds if is_main(request, config) else settings.compared
    return [config.replace(seed=seed) for seed in request.seed_range(more if compared else settings.others)]


def final(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    """Every cell's winner but the best batch sizes, which have a stage of their own."""
    settings, apart = settings_of(request), chosen(request, records)
    cells = [c for c in tuning.winners(tuning.tuned(request, records), tuning.validation_accuracy) if c not in apart]
    whole = {arm_of(arm) for arm, sizes in settings.arms() if sizes == settings.sizes}
    return [run for c in cells
            for run in fresh(request, c, compared=c.batch_size == settings.largest or arm_of(c) not in whole)]


def best(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return [run for config in chosen(request, records) for run in fresh(request, config, compared=True)]


def carried_over(request: Request, records: Sequence[Record], *, at_best: bool) -> list[RunConfig]:
    """Equal steps with the learning rate tuned at the smallest batch size, as it is and scaled with the batch size; at the best
    batch size or at all others."""
    settings, found = settings_of(request), []
    apart = [c.batch_size for c in chosen(request, records) if is_main(request, c)]
    cells = [c for c in tuning.winners(tuning.tuned(request, records), tuning.validation_accuracy) if is_main(request, c)]
    for source in [c for c in cells if c.batch_size == settings.sizes[0]]:
        for size in [size for size in settings.sizes if (size in apart) == at_best]:
            fixed = source.replace(batch_size=size)
            linear = fixed.replace(scaling=Scaling.LINEAR, base_batch_size=settings.sizes[0])
            seeds = request.seed_range(settings.compared)
            found += [rule.replace(seed=seed) for rule in (fixed, linear) for seed in seeds]
    return found


def cells_of(request: Request) -> int:
    return sum(len(sizes) for _, sizes in settings_of(request).arms())


def at_most(request: Request, cells: int) -> int:
    return len(request.seed_range(settings_of(request).seeds)) * cells


def where_of(arm: RunConfig) -> tuple[tuple[str, str], ...]:
    return ("budget", arm.budget.value), ("norm", arm.norm.value), ("augment", arm.augment.value)


def claims_of(scale: str, *, margin: float, power: Power | None = None, analogue: str = "") -> tuple[Claim, ...]:
    """Margins: 0.5 points of test accuracy, at `quick` 0.25 for gaps (see `POWER`); ln 1.25 for the ratio of losses."""
    settings = SETTINGS[scale]
    smallest, largest = settings.sizes[0], settings.largest

    def sides(arm: RunConfig, weight: float = 1.0, stages: tuple[str, str] = ("best", "final"), scaling: str = "none"
              ) -> tuple[Group, Group]:
        """The best of the smaller batch sizes and the largest one."""
        where = (*where_of(arm), ("scaling", scaling))
        return (Group(f"best B, {stages[0]}", weight, (("stage", stages[0]), *where)),
                Group(f"B {largest}, {stages[1]}", -weight, (("stage", stages[1]), *where, ("batch_size", largest))))

    def untuned_minus_tuned(scaling: str) -> Contrast:
        groups = (*sides(main, 1.0, ("untuned best", "untuned"), scaling), *sides(main, -1.0))
        return Contrast("test_accuracy", groups, 1, points)

    main, points = settings.base, "percentage points"
    epochs, small = settings.arms()[1][0], settings.matched[0]
    at_target = (("stage", "final"), ("budget", "train_loss"))
    pair = (Group(f"B {largest}", 1.0, (*at_target, ("batch_size", largest))),
            Group(f"B {small}", -1.0, (*at_target, ("batch_size", small))))
    gap = Contrast("test_accuracy", sides(main), 1, points)
    seeds, tuned_well, chance = Gate("min_seeds", 8), Gate("edge_lr", 0), 10.0

    def claim(id: str, sentence: str, kind: Kind, contrast: Contrast, *gates: Gate, d: float = margin,
              diverged_as: float | None = chance, primary: bool = False) -> Claim:
        return Claim(id=f"{scale}-{id}", sentence=analogue + sentence, kind=kind, contrast=contrast, margin=d, primary=primary,
                     gates=(seeds, *gates), scales=(scale,), diverged_as=diverged_as, power=power if primary else None,
                     paper_source="unchecked: the paper's numbers are of other networks and data")

    steps = "equal steps, learning rates tuned: the best of the smaller batch sizes"
    return (
        claim("equal-steps-gap", f"{steps} tests better than batch size {largest} (no effect: Shallue et al.)",
              Kind.DIRECTIONAL, gap, tuned_well, primary=True),
        claim("equal-steps-no-gap", f"{steps} and batch size {largest} test within {margin} points of each other "
              "(contradicted by a positive gap: Smith, Elsen and De)", Kind.EQUIVALENCE, gap, tuned_well),
        claim("equal-steps-train-loss", f"equal steps, learning rates tuned: batch size {largest} ends at a lower training loss "
              "than the best of the smaller ones", Kind.DIRECTIONAL,
              Contrast("train_loss", sides(main), 1, "log ratio", ValueScale.LOG), tuned_well, d=log(1.25), diverged_as=None),
        claim("carried-gap", f"equal steps: the gap is larger with the learning rate of batch size {smallest} than tuned",
              Kind.DIRECTIONAL, untuned_minus_tuned("none")),
        claim("scaled-gap", f"equal steps: the gap is larger with the learning rate of batch size {smallest}, scaled linearly, "
              "than with tuned ones", Kind.DIRECTIONAL, untuned_minus_tuned("linear")),
        claim("equal-epochs-gap", "equal epochs, learning rates tuned: the best of the smaller batch sizes tests better than "
              f"batch size {largest}", Kind.DIRECTIONAL, Contrast("test_accuracy", sides(epochs), 1, points), tuned_well),
        claim("matched-loss", f"equal training loss, learning rates tuned: batch size {largest} tests at most 0.5 points "
              f"worse than batch size {small} (Shallue et al.)", Kind.NON_INFERIORITY, Contrast("test_accuracy", pair, 1, points),
              Gate("status", 0.1), Gate("matched", 0.1, "train_loss"), tuned_well, d=0.5),
        *(claim(f"equal-steps-gap-{name}", f"{words}, equal steps, learning rates tuned: batch size {settings.robust_sizes[0]} "
                f"tests better than {largest}", Kind.DIRECTIONAL,
                Contrast("test_accuracy", tuple(
                    Group(f"B {size}", weight, (("stage", "final"), *where_of(arm), ("batch_size", size)))
                    for size, weight in zip(settings.robust_sizes, (1.0, -1.0), strict=True)), 1, points), tuned_well)
          for name, words, arm in settings.robust),
    )


# Pilots (seeds 1000 to 1005): test accuracy 84.50 (SD 0.24) at batch size 256, 84.01 (SD 0.09) at 1,024. A gap below the
# spread of a single run, 0.24 points, is none that a reader of a table would see: margin 0.25.
POWER = Power(effect=0.25, sd=0.24, pilot="seeds 1000 to 1005 at batch sizes 256 and 1,024", seeds=16)
# `laptop` (seeds 1000 to 1003, the middle of the grid): 52.0 (SD 1.0) at batch size 256, 48.3 (SD 0.4) at 1,024. A gap of two
# margins is seen; at such spreads a gap of 0 would be called none in 3 of 10 studies alone, so that the answer "Shallue" needs
# tuned runs that spread less.
LAPTOP_POWER = Power(effect=1.0, sd=1.01, pilot="seeds 1000 to 1003 at batch sizes 256 and 1,024", seeds=20)
CLAIMS = (
    *claims_of("quick", margin=0.25, power=POWER, analogue="analogue: "),
    *claims_of("laptop", margin=0.5, power=LAPTOP_POWER, analogue="analogue: "),
    *claims_of("overnight", margin=0.5),
    *claims_of("paper", margin=0.5),
)

TUNED: tuple[tuple[str, object], ...] = (("stage", ("final", "best")), ("norm", ("none", "group")), ("scaling", "none"))
STEPS = (("budget", "steps"), ("augment", "none"))
BUDGETS = (("equal updates", (*TUNED, *STEPS)), ("equal epochs", (*TUNED, ("budget", "epochs"))),
           ("equal training loss", (*TUNED, ("budget", "train_loss"))))
UNTUNED = ("stage", ("untuned", "untuned best"))
RULES = (("tuned", (*TUNED, *STEPS)), ("carried over", (UNTUNED, ("scaling", "none"))),
         ("scaled linearly", (UNTUNED, ("scaling", "linear"))))
TUNING = (("stage", ("tune", "extend", "confirm")),)
VALUES = (("values", ("test_accuracy", "train_loss")), ("logarithmic", ("train_loss",)))

STUDY = Study(
    name="smith2020",
    title="At equal steps, tuned, small batches have higher test accuracy",
    citation="Smith, Elsen and De, ICML 2020 (arXiv 2006.15081); against Shallue et al., JMLR 2019 (arXiv 1811.03600)",
    scales=(
        Scale("quick", "an MLP, 4,096 images of Fashion-MNIST, 4 batch sizes, 16 seeds at the two compared",
              "about 4 minutes on two cores"),
        Scale("laptop", "a small conv net, 8,192 images of CIFAR-10 (JPEG copy), 4 batch sizes, 20 seeds at the two compared",
              "about half an hour on two cores"),
        Scale("overnight", "a small conv net, 8,192 images of CIFAR-10 (JPEG copy), 8 batch sizes, 20 seeds at the two compared",
              "a night on two cores (estimated)"),
        Scale("paper", "WRN-16-4 on CIFAR-10, 9 batch sizes, 20 seeds at the two compared", "a GPU; not measured yet"),
    ),
    stages=(
        Stage("tune", tune),
        Stage("extend", extend, at_most=lambda request: 2 * cells_of(request)),
        Stage("confirm", confirm, at_most=lambda request: 3 * settings_of(request).confirm * len(settings_of(request).sizes)),
        Stage("final", final, at_most=lambda request: at_most(request, cells_of(request))),
        Stage("best", best, at_most=lambda request: at_most(request, 2)),
        Stage("untuned", partial(carried_over, at_best=False),
              at_most=lambda request: at_most(request, 2 * len(settings_of(request).sizes))),
        Stage("untuned best", partial(carried_over, at_best=True), at_most=lambda request: at_most(request, 2)),
    ),
    claims=CLAIMS,
    figures=(
        Figure("budgets", "values_vs_batch", (*VALUES, ("arms", BUDGETS))),
        Figure("tuned_and_carried_over", "values_vs_batch", (*VALUES, ("arms", RULES[:2]))),
        Figure("tuned_and_scaled_linearly", "values_vs_batch", (*VALUES, ("arms", (RULES[0], RULES[2])))),
        Figure("learning_rates", "lr_grid",
               (("where", TUNING), ("arm", ("budget",)), ("worst", 70.0)), scales=("quick",)),
        Figure("learning_rates", "lr_grid", (("where", TUNING), ("arm", ("budget",))), scales=("laptop", "overnight", "paper")),
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
