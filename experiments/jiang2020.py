"""Fantastic generalization measures and where to find them (Jiang et al., ICLR 2020), and how robust they are.

Jiang et al. train a population of networks over many hyper-parameters to the same training loss and report that, of forty
measures, those of sharpness order the networks best by their generalization gap (Kendall's tau over the whole population, and
within pairs that differ in one hyper-parameter). Dziugaite et al. (NeurIPS 2020, arXiv 2010.11924) ask for the worst
environment in place of the mean and find no measure that holds in all. Andriushchenko et al. (ICML 2023, arXiv 2302.07011)
find that adaptive sharpness follows the learning rate and the data more than it follows generalization, at times against it.

Here a population is every combination of a few hyper-parameters. Two kinds of claims are asked of it:
    over the population: runs of equal hyper-parameters are a cluster, and whole clusters are resampled;
    within a hyper-parameter: tau among the runs that agree in all others, one number per environment.
Such a population is small: the worst of a few axes is an illustration, and a minimum of noisy numbers lies low by itself.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

from experiments.lab.declare import Claim, Contrast, Family, Gate, Group, Measure, Power, RunConfig, Scale, Settings, measure
from experiments.lab.declare.contrasts import at_scale, directional, figure, group, weighted
from experiments.lab.declare.enums import Budget, Model, Norm, Optimizer
from experiments.lab.declare.study import Stage, Study


@dataclass(frozen=True, kw_only=True)
class Population(Settings):
    """Every combination of the values of its axes."""

    optimizer: Optimizer | str = Optimizer.ADAMW
    lr: float = 1e-3
    """the learning rate in the middle"""
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    """learning rates in units of `lr`"""
    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    decays: tuple[float, ...] = ()
    train_loss: float = 0.02
    max_epochs: float = 600
    environments: int = 8
    """that a tau within one hyper-parameter needs at least"""
    examples: int = 1000

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        found = {"batch_size": self.batch_sizes, "lr": tuple(self.lr * k for k in self.rates), "width": self.widths,
                 "depth": self.depths, "weight_decay": self.decays}
        return {name: values for name, values in found.items() if values}


def train(settings: Population, seeds: range) -> list[RunConfig]:
    base, axes = settings.run(budget=Budget.TRAIN_LOSS), settings.axes
    cells = [base.replace(**dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    return [cell.replace(seed=seed) for seed in seeds for cell in cells]


def measures(settings: Population) -> tuple[Measure, ...]:
    examples = settings.examples
    return (
        measure("lambda_max", examples=examples),
        measure("norm_scaled_lambda", examples=examples),
        measure("relative_trace", examples=examples, products=12),
        # radius, single step and batches as in keskar2017
        measure("adaptive_l2_step", examples=min(examples, 1024), rho=0.5, m=128),
        measure("pac_bayes_sigma_magnitude", examples=128),
    )


def tau(population: Group, value: str, family: Family, sign: int = 1) -> Contrast:
    return weighted(value, (1.0, population), unit="Kendall's tau", sign=sign, family=family)


def claims(scale: Scale, settings: Population) -> tuple[Claim, ...]:
    """Margin: nobody reads a coefficient within 0.1 of 0 as an order."""
    fields, everything = tuple(settings.axes), group("the population", model=settings.model)
    against = (("against_value", "gap_accuracy"), ("least", 0.9))
    across = Family("kendall", (), against, fields)
    batch, rate = (Family("kendall", tuple(name for name in fields if name != axis), against) for axis in ("batch_size", "lr"))
    worst = Family("worst_axis", (), (against[0], ("axes", fields)), fields)
    converged, bootstrap = (Gate("converged", 0.1, "lambda_max"),), "cluster-bootstrap"
    return at_scale(
        scale,
        directional("lambda-across", "over the population a larger lambda_max goes with a larger generalization gap",
                    tau(everything, "lambda_max", across), 0.1, primary=True, gates=converged, test=bootstrap),
        directional("adaptive-across", "over the population a larger adaptive sharpness goes with a larger generalization gap",
                    tau(everything, "adaptive_l2_step", across), 0.1, test=bootstrap),
        directional("lambda-within-batch", "among runs that differ in batch size alone a larger lambda_max goes with a larger "
                    "gap", tau(everything, "lambda_max", batch), 0.1, gates=converged),
        directional("lambda-within-lr", "among runs that differ in learning rate alone a larger lambda_max goes with a larger "
                    "gap", tau(everything, "lambda_max", rate), 0.1, gates=converged),
        directional("lambda-worst", "along the worst hyper-parameter a larger lambda_max goes with a smaller gap (illustration: "
                    "the least of a few noisy coefficients lies low by itself)", tau(everything, "lambda_max", worst, -1), 0.1,
                    gates=converged, test=bootstrap),
        gates=(Gate("min_seeds", settings.environments), Gate("status", 0.1)),
        source="unchecked: tau depends on the population, so that theirs is no number for this one",
    )


QUICK = Population(n_train=2000, batch_sizes=(16, 64, 256), widths=(32, 128), depths=(1, 3), environments=12, seeds=2)
LAPTOP = Population(dataset="cifar10-jpeg", n_train=4000, model=Model.SMALL_CONV, norm=Norm.BATCH, batch_sizes=(32, 128, 512),
                    decays=(0.0, 0.03, 0.1), seeds=2, examples=500)
PAPER = Population(dataset="cifar10", model=Model.RESNET20, norm=Norm.BATCH, batch_sizes=(32, 128, 512), decays=(0.0, 0.03, 0.1),
                   train_loss=0.01, seeds=5, examples=2000)
# pilot of one seed: tau 0.57 with a standard error of 0.101; `sd` is that times sqrt(36 / 2), for 36 clusters stand for seeds
POWER = Power(effect=0.3, sd=0.43, pilot="seed 1000 of all 36 settings", seeds=36)
# `laptop`, pilot of one seed of 15 of the 27 settings: tau 0.85 with a standard error of 0.09. In one without batch norm and with
# weight decay 0.3 test accuracies lay within the spread of seeds and two of 15 runs missed the target within 600 epochs.
LAPTOP_POWER = Power(effect=0.3, sd=0.34, pilot="seed 1000 of 15 settings, at weight decay 0.1 or learning rate 0.001", seeds=27)
NAMES = {
    "lambda_max": "largest Hessian eigenvalue", "norm_scaled_lambda": "eigenvalue × squared norm of the weights",
    "relative_trace": "trace relative to the weights", "adaptive_l2_step": "adaptive sharpness (nats)",
    "pac_bayes_sigma_magnitude": "1 / sigma² of relative noise", "distance_from_start": "distance from the start (a control)",
}
SCATTER = {"x": NAMES, "y": "gap_accuracy", "logarithmic": tuple(NAMES)}

STUDY = Study(
    name="jiang2020",
    title="Sharpness orders networks by their generalization gap, or does it?",
    citation="Jiang, Neyshabur, Mobahi, Krishnan and Bengio, ICLR 2020 (arXiv 1912.02178); Dziugaite et al., NeurIPS 2020 "
    "(arXiv 2010.11924); Andriushchenko et al., ICML 2023 (arXiv 2302.07011)",
    scales=(
        Scale("quick", "72 MLPs on 2,000 images of Fashion-MNIST: 3 batch sizes, 3 learning rates, 2 widths, 2 depths, "
              "2 seeds", "about 1.5 minutes on two cores", QUICK, POWER),
        Scale("laptop", "54 small conv nets with batch norm on 4,000 images of CIFAR-10 (JPEG copy): 3 batch sizes, 3 learning "
              "rates, 3 weight decays, 2 seeds", "about 25 minutes on two cores", LAPTOP, LAPTOP_POWER),
        Scale("paper", "135 ResNet-20s with batch norm on CIFAR-10, 5 seeds", "a GPU; not measured yet", PAPER),
    ),
    stages=(Stage("train", train, measures=measures),),
    claims_of=claims,
    figures=(
        *(figure("scatter", name=f"measures_by_{field}", **SCATTER, arm=(field,)) for field in ("batch_size", "lr")),
        figure("bars", name="within_one_hyperparameter"),
        figure("axis_taus", name="taus", measures=NAMES, axes=("batch_size", "lr", "width", "depth", "weight_decay")),
    ),
    tried=(
        "`quick`, the worst hyper-parameter: the claim is of a smaller gap, so that its effect is minus tau. Along the worst "
        "hyper-parameters, batch size and depth, tau is +0.36 [-0.06, 0.79]; along the learning rate it is 0.65, along the "
        "width 0.89. No hyper-parameter turned the order here, against what Dziugaite et al. find in larger populations, and "
        "36 settings of two seeds do not exclude it. One pilot seed a setting was all that margins and power rest on.",
        "`laptop`, the worst hyper-parameter: along weight decay (0, 0.03 and 0.1) tau of lambda_max is -0.07 [-0.45, 0.30], "
        "and no other measure orders these runs either, as Dziugaite et al. find of some environments; 27 settings of two "
        "seeds cannot tell a small tau from none. The distance from the start, a control, orders the population as closely as "
        "lambda_max does, the other way (-0.77 and 0.72): both follow the learning rate and the batch size.",
    ),
    deviations=(
        "Batch size and learning rate, with width and depth (`quick`) or weight decay, replace the seven hyper-parameters of "
        "Jiang et al.; an MLP (`quick`), a small convolutional network (`laptop`) or a ResNet-20 (`paper`) their network in "
        "network.",
        "AdamW with a constant learning rate in place of three optimizers, because every combination must reach the target.",
        "Training stops at cross-entropy 0.02 (`quick`, `laptop`) or 0.01 (`paper`, theirs); no run is chosen by its fit.",
        "Intervals by a bootstrap of clusters; the papers give tau without one, or resample runs.",
        "The measures are those of `sharpness`: their sharpness magnitude is `pac_bayes_sigma_magnitude`, of no claim here.",
        "`quick` has 2,000 training images of Fashion-MNIST, `laptop` 4,000 of CIFAR-10 (JPEG copy).",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("jiang2020"))
