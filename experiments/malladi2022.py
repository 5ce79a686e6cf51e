"""On the SDEs and scaling rules for adaptive gradient algorithms (Malladi, Lyu, Panigrahi and Arora, NeurIPS 2022).

The paper derives how Adam's hyper-parameters must follow a batch size multiplied by k, so that training stays the same at an
equal number of epochs: the learning rate by sqrt(k), 1 - beta1 and 1 - beta2 by k, eps by 1 / sqrt(k); possible while
k (1 - beta1) < 1. Rules that scale the learning rate by k, or nothing, change the course of training.

Run it:  python -m experiments run malladi2022 --scale quick
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

from experiments.lab.declare.claims import Claim, Contrast, Family, Gate, Group, Kind, Power, ValueScale
from experiments.lab.declare.config import Augment, Budget, Model, Norm, Optimizer, RunConfig
from experiments.lab.declare.study import Figure, Record, Request, Scale, Stage, Study

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Settings:
    """One scale: the run at the base batch size, how many times larger its batches become, and how many seeds there are."""

    base: RunConfig
    factor: int
    """k of the claims"""
    near_limit: int
    """a larger k, at which k (1 - beta1) is close to 1"""
    seeds: int
    few: int
    """seeds of the rules that no claim asks about, at the larger k"""

    def size(self, k: int) -> int:
        return k * self.base.batch_size


ADAM = RunConfig(batch_size=16, lr=1e-4, optimizer=Optimizer.ADAM, beta1=BETA1, beta2=BETA2, eps=EPS, budget=Budget.EPOCHS,
                 epochs=16)
SETTINGS = {
    "quick": Settings(ADAM.replace(dataset="fashion-mini", n_train=4096, model=Model.MLP, width=128, depth=2), 4, 8, 16, 4),
    "laptop": Settings(
        ADAM.replace(dataset="cifar10-jpeg", n_train=5000, model=Model.RESNET8, norm=Norm.GROUP, batch_size=32, lr=3e-4),
        4, 8, 8, 2,
    ),
    "paper": Settings(
        ADAM.replace(dataset="cifar10", model=Model.RESNET56, norm=Norm.BATCH, augment=Augment.CROP_FLIP, batch_size=128, lr=1e-3,
                     epochs=100), 4, 8, 8, 8,
    ),
}
RULES = ("square root", "linear", "unscaled")
"""the stages; each holds the base runs too, which are the same runs"""


def scaled(base: RunConfig, k: int, rule: str) -> RunConfig:
    """`base` with k times its batch size under `rule`.

    square root: lr sqrt(k), 1 - k (1 - beta), eps / sqrt(k); linear: the same but lr k. Both need k (1 - beta1) < 1, which
    `ConfigError` says. unscaled: as it is.
    """
    larger = base.replace(batch_size=k * base.batch_size)
    if rule == "unscaled":
        return larger
    rate = base.lr * (sqrt(k) if rule == "square root" else k)
    beta1, beta2 = (round(1 - k * (1 - beta), 12) for beta in (base.beta1, base.beta2))
    return larger.replace(lr=rate, beta1=beta1, beta2=beta2, eps=base.eps / sqrt(k))


def stage(rule: str) -> Stage:
    def runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
        settings = SETTINGS[request.scale]
        base = settings.base if request.dataset is None else settings.base.replace(dataset=request.dataset)
        seeds, largest = request.seed_range(settings.seeds), scaled(base, settings.near_limit, rule)
        found = [cell.replace(seed=seed) for seed in seeds for cell in (base, scaled(base, settings.factor, rule))]
        return found + [largest.replace(seed=seed) for seed in (seeds if rule == "square root" else seeds[: settings.few])]

    return Stage(rule, runs)


def claims_of(scale: str, *, margin: float, power: Power | None = None) -> tuple[Claim, ...]:
    settings = SETTINGS[scale]
    k, limit, small = settings.factor, settings.near_limit, settings.size(1)
    large = settings.size(k)

    def group(rule: str, size: int, weight: float) -> Group:
        return Group(f"{rule}, B {size}", weight, (("stage", rule), ("batch_size", size)))

    def claim(id: str, sentence: str, kind: Kind, contrast: Contrast, d: float, **options: Any) -> Claim:
        settings: dict[str, Any] = {
            "id": f"{scale}-{id}", "sentence": f"analogue, equal epochs, Adam: {sentence}", "kind": kind, "contrast": contrast,
            "margin": d, "gates": (Gate("min_seeds", 8), Gate("status", 0.1)), "scales": (scale,),
            "paper_source": "unchecked: no number known",
        }
        return Claim(**settings | options)

    def between(value: str, size: int, unit: str, scale: ValueScale = ValueScale.LINEAR) -> Contrast:
        return Contrast(value, (group("square root", size, 1), group("square root", small, -1)), 1, unit, scale)

    def farther(rule: str) -> Contrast:
        """|ln of the training loss at k B over that at B|, by seed: under `rule` minus under the square-root rule."""
        family = Family("distance_between", ("seed",), (("first", small), ("second", large)))
        groups = (Group(rule, 1.0, (("stage", rule),)), Group("square root", -1.0, (("stage", "square root"),)))
        return Contrast("train_loss", groups, 1, "log ratio", family=family)

    return (
        claim("square-root-accuracy", f"the square-root rule at k = {k} tests within {margin} points of batch size {small}",
              Kind.EQUIVALENCE, between("test_accuracy", large, "percentage points"), margin, primary=True, power=power),
        claim("square-root-near-limit", f"the square-root rule at k = {limit} tests within {margin} points of batch size {small}",
              Kind.EQUIVALENCE, between("test_accuracy", settings.size(limit), "percentage points"), margin),
        claim("square-root-loss", f"the square-root rule at k = {k} ends at most ln 1.25 from the training loss of B {small}",
              Kind.EQUIVALENCE, between("train_loss", large, "log ratio", ValueScale.LOG), log(1.25)),
        claim("linear-farther", f"at k = {k} the linear rule ends farther from the training loss of batch size {small} than the "
              "square-root rule", Kind.DIRECTIONAL, farther("linear"), log(1.25) / 2),
        claim("unscaled-farther", f"at k = {k} unscaled hyper-parameters end farther from the training loss of batch size "
              f"{small} than the square-root rule", Kind.DIRECTIONAL, farther("unscaled"), log(1.25) / 2),
    )


# 6 pilot seeds: test accuracy 83.17 (SD 0.42) at batch size 16, 83.03 (SD 0.38) at k = 4, 82.36 (SD 0.47) at k = 8
POWER = Power(effect=0.0, sd=0.42, pilot="seeds 1000 to 1005 at batch sizes 16 and 64", seeds=16)
CLAIMS = (*claims_of("quick", margin=0.5, power=POWER), *claims_of("laptop", margin=1.0), *claims_of("paper", margin=0.5))

STUDY = Study(
    name="malladi2022",
    title="Adam's square-root rule keeps the course of training",
    citation="Malladi, Lyu, Panigrahi and Arora, NeurIPS 2022 (arXiv 2205.10287)",
    scales=(
        Scale("quick", "an MLP, 4,096 images of Fashion-MNIST, batch size 16 and 4 and 8 times it, 3 rules, 16 seeds",
              "about a minute on two cores"),
        Scale("laptop", "ResNet-8, 5,000 images of CIFAR-10 (JPEG copy), batch size 32 and 4 and 8 times it, 3 rules, 8 seeds",
              "about half an hour on two cores (estimated)"),
        Scale("paper", "ResNet-56 on CIFAR-10, batch size 128 and 4 and 8 times it, 3 rules, 8 seeds", "a GPU; not measured yet"),
    ),
    stages=tuple(stage(rule) for rule in RULES),
    claims=CLAIMS,
    figures=(
        Figure("rules_vs_batch", "values_vs_batch",
               (("values", ("train_loss", "test_accuracy")), ("arm", ("stage",)), ("logarithmic", ("train_loss",)))),
        Figure("training_curves", "training_curves"),
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
