"""Sharp minima can generalize for deep nets (Dinh, Pascanu, Bengio and Bengio, ICML 2017).

A ReLU layer multiplied by a and the next one divided by a are the same function. The Hessian's eigenvalues are not the same: by
choice of a every minimum can be made as sharp as one likes (arXiv 1703.04933, section 4), so that sharpness of the weights,
without a choice of their scale, cannot explain how a network generalizes. Measures relative to the weights do not move.

Run it:  python -m experiments run dinh2017 --scale quick
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from experiments.lab.declare.claims import Claim, Contrast, Gate, Group, Kind, Power, ValueScale
from experiments.lab.declare.config import Budget, Model, Optimizer, RunConfig
from experiments.lab.declare.study import Figure, Measure, Record, Request, Scale, Stage, Study, measure

FACTOR = 16.0


@dataclass(frozen=True)
class Settings:
    """One scale: `base` with its target, the two batch sizes, and examples of the measurements."""

    base: RunConfig
    small: int
    large: int
    seeds: int
    examples: int


MATCHED = RunConfig(
    budget=Budget.TRAIN_LOSS, train_loss=0.01, max_epochs=400, optimizer=Optimizer.ADAM, lr=1e-3, batch_size=2
)
SETTINGS = {
    "quick": Settings(MATCHED.replace(dataset="fashion-mini", n_train=2000, model=Model.MLP, width=128, depth=2), 16, 200,
                      seeds=8, examples=1000),
    "laptop": Settings(MATCHED.replace(dataset="cifar10-jpeg", n_train=2000, model=Model.SMALL_CONV), 16, 200, seeds=8,
                       examples=500),
    "paper": Settings(MATCHED.replace(dataset="mnist", model=Model.MLP), 256, 6000, seeds=8, examples=2000),
}


def train(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    settings = SETTINGS[request.scale]
    base = settings.base if request.dataset is None else settings.base.replace(dataset=request.dataset)
    sizes = (settings.small, settings.large)
    return [base.replace(batch_size=size, seed=seed) for seed in request.seed_range(settings.seeds) for size in sizes]


def measures(config: RunConfig) -> tuple[Measure, ...]:
    settings = next(s for s in SETTINGS.values() if s.base.model is config.model and s.base.n_train == config.n_train)
    return (
        measure("rescaled", examples=settings.examples, factor=FACTOR),
        measure("disguised_lambda", examples=settings.examples, factor=FACTOR, batch_size=settings.small),
        measure("relative_trace", examples=settings.examples, products=12),
    )


def claims_of(scale: str, power: Power | None = None) -> tuple[Claim, ...]:
    settings = SETTINGS[scale]
    small = Group(f"B {settings.small}", 1.0, (("batch_size", settings.small),))
    large = Group(f"B {settings.large}", 1.0, (("batch_size", settings.large),))
    each = (("budget", Budget.TRAIN_LOSS.value),)
    rescaled = f"multiplying the first layer by {FACTOR:g} and dividing the second by as much"
    gates = (Gate("min_seeds", 8), Gate("status", 0.1))

    def claim(
        id: str, sentence: str, value: str, groups: tuple[Group, ...], margin: float, *, kind: Kind = Kind.DIRECTIONAL,
        scale_of: ValueScale = ValueScale.LOG, unit: str = "log ratio", sign: int = 1, more: tuple[Gate, ...] = (),
        primary: bool = False, source: str = "unchecked: proved in section 4 for factors without bound, so no number",
    ) -> Claim:
        return Claim(id=f"{scale}-{id}", sentence=sentence, kind=kind, contrast=Contrast(value, groups, sign, unit, scale_of),
                     margin=margin, primary=primary, gates=(*gates, *more), scales=(scale,), paper_source=source,
                     power=power if primary else None)

    converged, disguised = Gate("converged", 0.1, "rescaled"), Gate("converged", 0.1, "disguised_lambda")
    matched = Gate("matched", 0.1, "train_loss")
    everyone = (Group("all runs", 1.0, each),)
    return (
        claim("raw-grows", f"{rescaled} raises lambda_max", "rescaled", everyone, log(1.25), more=(converged,), primary=True),
        claim("phi-grows", f"{rescaled} raises Keskar's phi (full space, 1e-3)", "rescaled.phi_ratio", everyone, log(1.25)),
        claim("adaptive-stays", f"{rescaled} leaves tr(H diag(w^2)) where it was, within 1%",
              "rescaled.relative_trace_ratio", everyone, log(1.01), kind=Kind.EQUIVALENCE),
        claim("function-stays", f"{rescaled} leaves the test accuracy where it was, within 0.01 points",
              "rescaled.test_accuracy_change", everyone, 0.01, kind=Kind.EQUIVALENCE, scale_of=ValueScale.LINEAR,
              unit="percentage points"),
        claim("order-before", f"as trained, batch size {settings.large} ends at a larger lambda_max than {settings.small}",
              "rescaled.lambda_max", (large, minus(small)), log(1.25), more=(matched, converged),
              source="unchecked: Keskar et al. 2017 report it, this paper asks what it means"),
        claim("order-flips", f"with their first layer times {FACTOR:g} and their second divided by it, minimisers of batch size "
              f"{settings.small} have a larger lambda_max than those of batch size {settings.large} as trained",
              "disguised_lambda", (small, minus(large)), log(1.25), more=(matched, disguised)),
    )


def minus(group: Group) -> Group:
    return Group(group.name, -1.0, group.where)


# 3 pilot seeds (1000 to 1002) a batch size: log ratio 3.85, SD 0.33
POWER = Power(effect=1.0, sd=0.33, pilot="seeds 1000 to 1002 at both batch sizes", seeds=8)

STUDY = Study(
    name="dinh2017",
    title="Rescaled layers make any minimum sharp",
    citation="Dinh, Pascanu, Bengio and Bengio, ICML 2017 (arXiv 1703.04933)",
    scales=(
        Scale("quick", "an MLP, 2,000 images of Fashion-MNIST, batch sizes 16 and 200, 8 seeds",
              "about a minute on two cores"),
        Scale("laptop", "a small conv net, 2,000 images of CIFAR-10 (JPEG copy), batch sizes 16 and 200, 8 seeds",
              "about 20 minutes on two cores (estimated)"),
        Scale("paper", "F1 without batch norm on MNIST, batch sizes 256 and 6,000, 8 seeds", "a GPU; not measured yet"),
    ),
    stages=(Stage("train", train, measures=measures),),
    claims=(*claims_of("quick", POWER), *claims_of("laptop"), *claims_of("paper")),
    figures=(
        Figure("before_and_after", "values_vs_batch",
               (("values", (("rescaled.lambda_max", "lambda_max, as trained"),
                            ("rescaled.lambda_max_rescaled", "lambda_max, first layer times 16"),
                            ("relative_trace", "tr(H diag(w²)), either way"))), ("logarithmic", True))),
        Figure("claims", "bars"),
    ),
    tried=(
        "The claims on rescaling follow from algebra: they check the measurements, and could fail through an error alone.",
    ),
    deviations=(
        "The paper proves its claims and trains nothing; here they are measured at minimisers of small and large batches, as "
        "Keskar et al. (2017) compare them, at matched training loss (0.01 nats).",
        "One factor, 16, on the first layer instead of factors without bound. A power of two moves exponents alone, so that "
        "outputs are the same bits.",
        "`quick` trains an MLP with two hidden layers of 128 units on 2,000 images of Fashion-MNIST, `laptop` a small "
        "convolutional network on 2,000 images of CIFAR-10 (JPEG copy), `paper` Keskar et al.'s F1 without batch norm on "
        "MNIST.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("dinh2017"))
