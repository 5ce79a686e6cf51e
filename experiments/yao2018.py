"""Hessian-based analysis of large batch training and robustness to adversaries (Yao et al., NeurIPS 2018).

The paper trains with SGD at several batch sizes and finds that larger batches end at points whose Hessian has a noticeably
larger top eigenvalue and a wider spectrum: large batches are attracted by sharper regions.

Run it:  python -m experiments run yao2018 --scale quick
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log2
from typing import Any

from experiments.lab.declare.claims import Claim, Contrast, Family, Gate, Group, Kind, Power, ValueScale
from experiments.lab.declare.config import Budget, Model, Norm, RunConfig
from experiments.lab.declare.study import Figure, Measure, Record, Request, Scale, Stage, Study, measure

TARGET = 0.1
"""training cross-entropy in nats of the matched arm"""


@dataclass(frozen=True)
class Setting:
    base: RunConfig
    """at equal epochs"""
    cap: float
    """epochs within which the matched arm must have met its target"""
    sizes: tuple[int, ...]
    seeds: int
    examples: int

    @property
    def matched(self) -> RunConfig:
        return self.base.replace(budget=Budget.TRAIN_LOSS, epochs=None, train_loss=TARGET, max_epochs=self.cap)

    def runs(self, request: Request) -> list[RunConfig]:
        arms = [arm if request.dataset is None else arm.replace(dataset=request.dataset) for arm in (self.matched, self.base)]
        seeds = request.seed_range(self.seeds)
        return [arm.replace(batch_size=size, seed=seed) for seed in seeds for arm in arms for size in self.sizes]


def sgd(epochs: float, **fields: Any) -> RunConfig:
    return RunConfig(batch_size=16, lr=0.1, budget=Budget.EPOCHS, epochs=epochs, **fields)


SETTINGS = {
    "quick": Setting(sgd(20, n_train=2000, width=64, depth=2), 400, (32, 100, 320, 1000), seeds=8, examples=1000),
    "laptop": Setting(
        sgd(20, dataset="cifar10-jpeg", n_train=2000, model=Model.SMALL_CONV), 400, (16, 64, 256), seeds=8, examples=500
    ),
    "paper": Setting(
        sgd(100, dataset="cifar10", model=Model.KESKAR_C1, norm=Norm.BATCH), 400, (16, 128, 512, 2048), seeds=8, examples=5000
    ),
}


def train_runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return SETTINGS[request.scale].runs(request)


def measures(request: Request, config: RunConfig) -> tuple[Measure, ...]:
    examples = next(s.examples for s in SETTINGS.values() if s.base.dataset == config.dataset)
    found = (measure("lambda_max", examples=examples, tol=1e-2), measure("trace", examples=examples, products=12))
    return (*found, measure("spectrum", examples=examples)) if config.seed in request.seed_range(2)[:2] else found


def claims_of(scale: str, power: Power | None = None) -> tuple[Claim, ...]:
    """Margins: ln 1.25 of ratios; the slopes' are ln 1.25 over the doublings between the smallest and the largest batch."""
    setting = SETTINGS[scale]
    small, large = setting.sizes[0], setting.sizes[-1]
    gates = (Gate("min_seeds", 8), Gate("status", 0.1))
    certain = (*gates, Gate("converged", 0.1, "lambda_max"))
    same = Gate("matched", 0.1, "train_loss")

    def ends(value: str, budget: Budget) -> Contrast:
        groups = tuple(
            Group(f"B {size}", weight, (("batch_size", size), ("budget", budget.value)))
            for size, weight in ((large, 1.0), (small, -1.0))
        )
        return Contrast(value, groups, 1, "log ratio", ValueScale.LOG)

    def slope(budget: Budget) -> Contrast:
        group = Group("all batch sizes", 1.0, (("budget", budget.value),))
        # the unit is part of the claim's hash, so that its words stay: doublings of lambda_max per doubling of B
        return Contrast("lambda_max", (group,), 1, "doublings a doubling of B", family=Family("slope"))

    def claim(id: str, sentence: str, contrast: Contrast, gates: tuple[Gate, ...] = certain, **options: Any) -> Claim:
        margin = log(1.25) if contrast.family is None else round(log2(1.25) / log2(large / small), 4)
        return Claim(f"{scale}-{id}", sentence, Kind.DIRECTIONAL, contrast, margin, gates=gates, scales=(scale,),
                     paper_source="unchecked: no number is known to us", **options)

    return (
        claim("sharper-matched", f"at the same training loss batch size {large} ends at a larger lambda_max than {small}",
              ends("lambda_max", Budget.TRAIN_LOSS), (*certain, same), primary=True, power=power),
        claim("grows-matched", "at the same training loss lambda_max grows with the batch size",
              slope(Budget.TRAIN_LOSS)),
        claim("trace-matched", f"at the same training loss batch size {large} ends at a larger trace than {small}",
              ends("trace", Budget.TRAIN_LOSS), (*gates, same)),
        claim("sharper-epochs", f"after the same epochs batch size {large} ends at a larger lambda_max than {small}",
              ends("lambda_max", Budget.EPOCHS)),
        claim("grows-epochs", "after the same epochs lambda_max grows with the batch size", slope(Budget.EPOCHS)),
    )


# 3 pilot seeds: ln lambda_max 2.31 (SD 0.19) at 32 and 2.96 (SD 0.05) at 1,000
POWER = Power(effect=0.4, sd=0.14, pilot="seeds 1000 to 1002 at batch sizes 32 and 1,000", seeds=8)

STUDY = Study(
    name="yao2018",
    title="Larger batches end where the Hessian's spectrum is wider",
    citation="Yao, Gholami, Lei, Keutzer and Mahoney, NeurIPS 2018 (arXiv 1802.08241)",
    scales=(
        Scale("quick", "an MLP on 2,000 images of Fashion-MNIST, 4 batch sizes, equal epochs and equal training loss, 8 seeds",
              "about 2 minutes on two cores"),
        Scale("laptop", "a small convolutional network on 2,000 images of CIFAR-10 (JPEG copy), 3 batch sizes, 8 seeds",
              "an hour on two cores (an estimate: not measured)"),
        Scale("paper", "Keskar's C1 on CIFAR-10, 4 batch sizes, 8 seeds", "a GPU; not measured yet"),
    ),
    stages=(Stage("train", train_runs, measures=measures),),
    claims=(*claims_of("quick", POWER), *claims_of("laptop"), *claims_of("paper")),
    figures=(
        Figure("spectra", "spectra"),
        Figure("curvature_vs_batch", "values_vs_batch", (("values", ("lambda_max", "trace")), ("logarithmic", True),
                                                         ("arm", ("budget",)))),
    ),
    deviations=(
        "The robustness to adversarial inputs, the paper's other half, is left out.",
        "`quick` trains an MLP with two hidden layers of 64 units on 2,000 images of Fashion-MNIST, `laptop` a small "
        "convolutional network on 2,000 images of CIFAR-10 (JPEG copy), `paper` Keskar's C1 on CIFAR-10, which is not the "
        "paper's.",
        "The paper trains for a fixed number of epochs; curvature scales with the cross-entropy, so the primary claim is about "
        "a second arm, which stops every run at the same training loss (0.1 nats), as keskar2017's does.",
        "Plain SGD with one constant learning rate for all batch sizes; the paper's own rates are not known to us.",
        "Spectra are stochastic Lanczos densities (2 probes of 40 steps) instead of the paper's top 20 eigenvalues, on the "
        "first 1,000 training examples (lambda_max and trace: see `measures`).",
        "One learning rate for all: lambda_max at batch sizes 320 and 1,000 is near 2 / LR = 20, which sets the ratio.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("yao2018"))
