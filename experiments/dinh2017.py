"""Sharp minima can generalize for deep nets (Dinh, Pascanu, Bengio and Bengio, ICML 2017).

A ReLU layer multiplied by a and the next one divided by a are the same function. The Hessian's eigenvalues are not the same: by
choice of a every minimum can be made as sharp as one likes (arXiv 1703.04933, section 4), so that sharpness of the weights,
without a choice of their scale, cannot explain how a network generalizes. Measures relative to the weights do not move.
"""

from dataclasses import dataclass
from math import log

from experiments.lab.declare import Claim, Gate, Measure, Power, RunConfig, Scale, Settings, Stage, Study, measure
from experiments.lab.declare.contrasts import at_scale, directional, equivalent, figure, group, log_ratio, weighted
from experiments.lab.declare.enums import Budget, Model, Optimizer
from experiments.lab.declare.errors import ConfigError

FACTOR = 16.0


@dataclass(frozen=True, kw_only=True)
class Rescaled(Settings):
    """The smallest and the largest batch size, both to a training cross-entropy of `target` nats."""

    optimizer: Optimizer | str = Optimizer.ADAM
    lr: float = 1e-3
    target: float = 0.01
    max_epochs: float = 400
    examples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in (Model.MLP, Model.SMALL_CONV):
            raise ConfigError(f"layers are rescaled in a chain of ReLU layers, which {self.model} is not known to be; take model "
                              "mlp or small-conv, on any data")


def train(settings: Rescaled, seeds: range) -> list[RunConfig]:
    base = settings.run(budget=Budget.TRAIN_LOSS, train_loss=settings.target)
    return [base.replace(batch_size=size, seed=seed) for seed in seeds for size in (settings.small, settings.large)]


def measures(settings: Rescaled) -> tuple[Measure, ...]:
    return (
        measure("rescaled", examples=settings.examples, factor=FACTOR),
        measure("disguised_lambda", examples=settings.examples, factor=FACTOR, batch_size=settings.small),
        measure("relative_trace", examples=settings.examples, products=12),
    )


EVERYONE = 1.0, group("all runs", budget=Budget.TRAIN_LOSS)
CONVERGED, DISGUISED = Gate("converged", 0.1, "rescaled"), Gate("converged", 0.1, "disguised_lambda")
MATCHED = Gate("matched", 0.1, "train_loss")


def claims(scale: Scale, settings: Rescaled) -> tuple[Claim, ...]:
    rescaled = f"multiplying the first layer by {FACTOR:g} and dividing the second by as much"
    small, large = (group(f"B {size}", batch_size=size) for size in (settings.small, settings.large))
    raw, phi, adaptive = (weighted(value, EVERYONE, unit="log ratio", log=True)
                          for value in ("rescaled", "rescaled.phi_ratio", "rescaled.relative_trace_ratio"))
    return at_scale(
        scale,
        directional("raw-grows", f"{rescaled} raises lambda_max", raw, primary=True, gates=(CONVERGED,)),
        directional("phi-grows", f"{rescaled} raises Keskar's phi (full space, 1e-3)", phi),
        equivalent("adaptive-stays", f"{rescaled} leaves tr(H diag(w^2)) where it was, within 1%", adaptive, log(1.01)),
        equivalent("function-stays", f"{rescaled} leaves the test accuracy where it was, within 0.01 points",
                   weighted("rescaled.test_accuracy_change", EVERYONE), 0.01),
        directional("order-before", f"as trained, batch size {settings.large} ends at a larger lambda_max than "
                    f"{settings.small}",
                    log_ratio("rescaled.lambda_max", large, small), gates=(MATCHED, CONVERGED),
                    paper_source="unchecked: Keskar et al. 2017 report it, this paper asks what it means"),
        directional("order-flips", f"with their first layer times {FACTOR:g} and their second divided by it, minimisers of batch "
                    f"size {settings.small} have a larger lambda_max than those of batch size {settings.large} as trained",
                    log_ratio("disguised_lambda", small, large), gates=(MATCHED, DISGUISED)),
        source="unchecked: proved in section 4 for factors without bound, so no number",
    )


QUICK = Rescaled(n_train=2000, width=128, depth=2, batch_sizes=(16, 200), seeds=8, examples=1000)
LAPTOP = Rescaled(dataset="cifar10-jpeg", n_train=2000, model=Model.SMALL_CONV, batch_sizes=(16, 200), seeds=8, examples=500)
PAPER = Rescaled(dataset="mnist", batch_sizes=(256, 6000), seeds=8, examples=2000)
# 3 pilot seeds (1000 to 1002) a batch size: log ratio 3.85, SD 0.33
POWER = Power(effect=1.0, sd=0.33, pilot="seeds 1000 to 1002 at both batch sizes", seeds=8)

STUDY = Study(
    name="dinh2017",
    title="Rescaled layers make any minimum sharp",
    citation="Dinh, Pascanu, Bengio and Bengio, ICML 2017 (arXiv 1703.04933)",
    scales=(
        Scale("quick", "an MLP, 2,000 images of Fashion-MNIST, batch sizes 16 and 200, 8 seeds",
              "about a minute on two cores", QUICK, POWER),
        Scale("laptop", "a small conv net, 2,000 images of CIFAR-10 (JPEG copy), batch sizes 16 and 200, 8 seeds",
              "about 20 minutes on two cores (estimated)", LAPTOP),
        Scale("paper", "F1 without batch norm on MNIST, batch sizes 256 and 6,000, 8 seeds", "a GPU; not measured yet", PAPER),
    ),
    stages=(Stage("train", train, measures=measures),),
    claims_of=claims,
    figures=(
        figure("values_vs_batch", name="before_and_after", values={
            "rescaled.lambda_max": "lambda_max, as trained", "rescaled.lambda_max_rescaled": "lambda_max, first layer times 16",
            "relative_trace": "tr(H diag(w²)), either way",
        }, logarithmic=True),
        figure("bars", name="claims"),
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
