"""On the SDEs and scaling rules for adaptive gradient algorithms (Malladi, Lyu, Panigrahi and Arora, NeurIPS 2022).

The paper derives how Adam's hyper-parameters must follow a batch size multiplied by k, so that training stays the same at an
equal number of epochs: the learning rate by sqrt(k), 1 - beta1 and 1 - beta2 by k, eps by 1 / sqrt(k); possible while
k (1 - beta1) < 1. Rules that scale the learning rate by k, or nothing, change the course of training.
"""

from dataclasses import dataclass
from functools import partial
from math import sqrt

from experiments.lab.declare import Claim, Family, Power, RunConfig, Scale, Settings, Stage, Study
from experiments.lab.declare.contrasts import MARGIN, at_scale, difference, directional, equivalent, figure, group, weighted
from experiments.lab.declare.enums import Augment, Budget, Model, Norm, Optimizer

RULES = ("square root", "linear", "unscaled")
"""the stages; each holds the base runs too, which are the same runs"""


@dataclass(frozen=True, kw_only=True)
class Rules(Settings):
    """Of the three batch sizes the second is k times the first; at the last k (1 - beta1) is close to 1."""

    epochs: float | None = 16
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    few: int
    """seeds of the rules that no claim asks about, at the last batch size"""
    margin: float = 0.5
    """of test accuracy, in percentage points"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.batch_sizes) != 3:
            raise ValueError("batch_sizes must be three: the base, k times it, and the largest with k (1 - beta1) below 1")


def scaled(base: RunConfig, size: int, rule: str) -> RunConfig:
    """`base` with the batch size `size`, k times its own, under `rule`.

    square root: lr sqrt(k), 1 - k (1 - beta), eps / sqrt(k); linear: the same but lr k. Both need k (1 - beta1) < 1, which
    `ConfigError` says. unscaled: as it is.
    """
    k = size / base.batch_size
    if rule == "unscaled":
        return base.replace(batch_size=size)
    rate = base.lr * (sqrt(k) if rule == "square root" else k)
    beta1, beta2 = (round(1 - k * (1 - beta), 12) for beta in (base.beta1, base.beta2))
    return base.replace(batch_size=size, lr=rate, beta1=beta1, beta2=beta2, eps=base.eps / sqrt(k))


def train(settings: Rules, seeds: range, *, rule: str) -> list[RunConfig]:
    base = settings.run(optimizer=Optimizer.ADAM, budget=Budget.EPOCHS)
    larger, largest = (scaled(base, size, rule) for size in settings.batch_sizes[1:])
    found = [cell.replace(seed=seed) for seed in seeds for cell in (base, larger)]
    return found + [largest.replace(seed=seed) for seed in (seeds if rule == "square root" else seeds[: settings.few])]


def claims(scale: Scale, settings: Rules) -> tuple[Claim, ...]:
    small, large, largest = settings.batch_sizes
    equal = "analogue, equal epochs, Adam:"
    k, within = large // small, f"tests within {settings.margin} points of batch size {small}"
    base, square, limit = (group(f"square root, B {size}", stage="square root", batch_size=size) for size in settings.batch_sizes)
    than = f"from the training loss of batch size {small} than the square-root rule"
    # |ln of the training loss at k B over that at B|, by seed: under the linear rule or none minus under the square-root rule
    apart = Family("distance_between", ("seed",), (("first", small), ("second", large)))
    linear, unscaled = (difference("train_loss", group(rule, stage=rule), group("square root", stage="square root"),
                                   unit="log ratio", family=apart) for rule in RULES[1:])

    # integer weights are part of the claims' hashes
    return at_scale(
        scale,
        equivalent("square-root-accuracy", f"{equal} the square-root rule at k = {k} {within}",
                   weighted("test_accuracy", (1, square), (-1, base)), settings.margin, primary=True),
        equivalent("square-root-near-limit", f"{equal} the square-root rule at k = {largest // small} {within}",
                   weighted("test_accuracy", (1, limit), (-1, base)), settings.margin),
        equivalent("square-root-loss", f"{equal} the square-root rule at k = {k} ends at most ln 1.25 from the training loss "
                   f"of B {small}", weighted("train_loss", (1, square), (-1, base), unit="log ratio", log=True)),
        directional("linear-farther", f"{equal} at k = {k} the linear rule ends farther {than}", linear, MARGIN / 2),
        directional("unscaled-farther", f"{equal} at k = {k} unscaled hyper-parameters end farther {than}", unscaled, MARGIN / 2),
        source="unchecked: no number known",
    )


QUICK = Rules(n_train=4096, width=128, depth=2, batch_sizes=(16, 64, 128), lr=1e-4, seeds=16, few=4)
LAPTOP = Rules(dataset="cifar10-jpeg", n_train=5000, model=Model.RESNET8, norm=Norm.GROUP, batch_sizes=(32, 128, 256), lr=3e-4,
               seeds=8, few=2, margin=1.0)
PAPER = Rules(dataset="cifar10", model=Model.RESNET56, norm=Norm.BATCH, augment=Augment.CROP_FLIP, batch_sizes=(128, 512, 1024),
              lr=1e-3, epochs=100, seeds=8, few=8)
# 6 pilot seeds: test accuracy 83.17 (SD 0.42) at batch size 16, 83.03 (SD 0.38) at k = 4, 82.36 (SD 0.47) at k = 8
POWER = Power(effect=0.0, sd=0.42, pilot="seeds 1000 to 1005 at batch sizes 16 and 64", seeds=16)

STUDY = Study(
    name="malladi2022",
    title="Adam's square-root rule keeps the course of training",
    citation="Malladi, Lyu, Panigrahi and Arora, NeurIPS 2022 (arXiv 2205.10287)",
    scales=(
        Scale("quick", "an MLP, 4,096 images of Fashion-MNIST, batch size 16 and 4 and 8 times it, 3 rules, 16 seeds",
              "about a minute on two cores", QUICK, POWER),
        Scale("laptop", "ResNet-8, 5,000 images of CIFAR-10 (JPEG copy), batch size 32 and 4 and 8 times it, 3 rules, 8 seeds",
              "about half an hour on two cores (estimated)", LAPTOP),
        Scale("paper", "ResNet-56 on CIFAR-10, batch size 128 and 4 and 8 times it, 3 rules, 8 seeds", "a GPU; not measured yet",
              PAPER),
    ),
    stages=tuple(Stage(rule, partial(train, rule=rule)) for rule in RULES),
    claims_of=claims,
    figures=(
        figure("values_vs_batch", name="rules_vs_batch", values=("train_loss", "test_accuracy"), arm=("stage",),
               logarithmic=("train_loss",)),
        figure("training_curves"),
    ),
    tried=(
        "Learning rates 3e-5 to 1e-3 were tried at batch size 16, one or two seeds each: 1e-4 was taken as the rule is a "
        "limit of small steps. At 1e-3 the unscaled hyper-parameters stayed nearer at k = 8.",
        "In 6 pilot seeds the rule lost 0.8 points of test accuracy at k = 8, where k (1 - beta1) is 0.8, and 0.1 at k = 4.",
    ),
    deviations=(
        "No number of the paper could be checked; the rule itself is quoted from memory, its claims are asked as analogues.",
        "`quick` trains an MLP with two hidden layers of 128 units on 4,096 images of Fashion-MNIST, `laptop` ResNet-8 on "
        "5,000 images of CIFAR-10 (JPEG copy), `paper` ResNet-56 on CIFAR-10 without its other networks and language models.",
        "A constant learning rate without warm-up and without weight decay, so that the rule alone is at work.",
        "Beta1 = 0.9 at the base batch size, so that k must be below 10: 4, and 8, which is close to the limit.",
        "The linear rule scales the learning rate alone by k with the betas and eps of the square-root rule: between the two "
        "only the learning rate differs. Without scaling nothing changes but the batch size.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("malladi2022"))
