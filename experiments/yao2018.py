"""Hessian-based analysis of large batch training and robustness to adversaries (Yao et al., NeurIPS 2018).

The paper trains with SGD at several batch sizes and finds that larger batches end at points whose Hessian has a noticeably
larger top eigenvalue and a wider spectrum: large batches are attracted by sharper regions.
"""

from dataclasses import dataclass
from math import log2

from experiments.lab.declare import Claim, Family, Gate, Group, Measure, Power, RunConfig, Scale, Settings, Stage, Study, measure
from experiments.lab.declare.contrasts import at_scale, directional, figure, group, log_ratio, weighted
from experiments.lab.declare.enums import Budget, Model, Norm


@dataclass(frozen=True, kw_only=True)
class Spectra(Settings):
    """Every batch size at equal epochs, and at the same training loss."""

    lr: float = 0.1
    epochs: float | None = 20
    target: float = 0.1
    """training cross-entropy in nats of the matched arm"""
    max_epochs: float = 400
    """within which the matched arm must have met its target"""
    examples: int = 1000
    """that curvature is measured on"""

    def ends(self, budget: Budget) -> tuple[Group, Group]:
        """The runs at the largest and at the smallest batch size."""
        large, small = (group(f"B {size}", batch_size=size, budget=budget) for size in (self.large, self.small))
        return large, small


def train(settings: Spectra, seeds: range) -> list[RunConfig]:
    equal = settings.run(budget=Budget.EPOCHS, max_epochs=None)
    matched = settings.run(budget=Budget.TRAIN_LOSS, epochs=None, train_loss=settings.target)
    return [arm.replace(batch_size=size, seed=seed)
            for seed in seeds for arm in (matched, equal) for size in settings.batch_sizes]


def measures(settings: Spectra, seeds: range, config: RunConfig) -> tuple[Measure, ...]:
    examples = settings.examples
    found = (measure("lambda_max", examples=examples, tol=1e-2), measure("trace", examples=examples, products=12))
    return (*found, measure("spectrum", examples=examples)) if config.seed in seeds[:2] else found


def claims(scale: Scale, settings: Spectra) -> tuple[Claim, ...]:
    """Margins: ln 1.25 of ratios; the slopes' are ln 1.25 over the doublings between the smallest and the largest batch."""
    small, large = settings.small, settings.large
    # the unit is part of the claim's hash, so that its words stay: doublings of lambda_max per doubling of B
    grows_matched, grows = (
        weighted("lambda_max", (1.0, group("all batch sizes", budget=budget)), unit="doublings a doubling of B",
                 family=Family("slope")) for budget in (Budget.TRAIN_LOSS, Budget.EPOCHS)
    )
    margin, matched = round(log2(1.25) / log2(large / small), 4), settings.ends(Budget.TRAIN_LOSS)
    certain, same = Gate("converged", 0.1, "lambda_max"), Gate("matched", 0.1, "train_loss")
    return at_scale(
        scale,
        directional("sharper-matched", f"at the same training loss batch size {large} ends at a larger lambda_max than {small}",
                    log_ratio("lambda_max", *matched), gates=(certain, same), primary=True),
        directional("grows-matched", "at the same training loss lambda_max grows with the batch size", grows_matched, margin,
                    gates=(certain,)),
        directional("trace-matched", f"at the same training loss batch size {large} ends at a larger trace than {small}",
                    log_ratio("trace", *matched), gates=(same,)),
        directional("sharper-epochs", f"after the same epochs batch size {large} ends at a larger lambda_max than {small}",
                    log_ratio("lambda_max", *settings.ends(Budget.EPOCHS)), gates=(certain,)),
        directional("grows-epochs", "after the same epochs lambda_max grows with the batch size", grows, margin,
                    gates=(certain,)),
        source="unchecked: no number is known to us",
    )


QUICK = Spectra(n_train=2000, width=64, depth=2, batch_sizes=(32, 100, 320, 1000), seeds=8)
LAPTOP = Spectra(dataset="cifar10-jpeg", n_train=2000, model=Model.SMALL_CONV, batch_sizes=(16, 64, 256), seeds=8, examples=500)
PAPER = Spectra(dataset="cifar10", model=Model.KESKAR_C1, norm=Norm.BATCH, batch_sizes=(16, 128, 512, 2048), epochs=100, seeds=8,
                examples=5000)
# 3 pilot seeds: ln lambda_max 2.31 (SD 0.19) at 32 and 2.96 (SD 0.05) at 1,000
POWER = Power(effect=0.4, sd=0.14, pilot="seeds 1000 to 1002 at batch sizes 32 and 1,000", seeds=8)

STUDY = Study(
    name="yao2018",
    title="Larger batches end where the Hessian's spectrum is wider",
    citation="Yao, Gholami, Lei, Keutzer and Mahoney, NeurIPS 2018 (arXiv 1802.08241)",
    scales=(
        Scale("quick", "an MLP on 2,000 images of Fashion-MNIST, 4 batch sizes, equal epochs and equal training loss, 8 seeds",
              "about 2 minutes on two cores", QUICK, POWER),
        Scale("laptop", "a small convolutional network on 2,000 images of CIFAR-10 (JPEG copy), 3 batch sizes, 8 seeds",
              "an hour on two cores (an estimate: not measured)", LAPTOP),
        Scale("paper", "Keskar's C1 on CIFAR-10, 4 batch sizes, 8 seeds", "a GPU; not measured yet", PAPER),
    ),
    stages=(Stage("train", train, measures=measures),),
    claims_of=claims,
    figures=(
        figure("spectra"),
        figure("values_vs_batch", name="curvature_vs_batch", values=("lambda_max", "trace"), logarithmic=True, arm=("budget",)),
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
