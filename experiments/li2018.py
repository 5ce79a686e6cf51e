"""Visualizing the loss landscape of neural nets (Li, Xu, Taylor, Studer and Goldstein, NeurIPS 2018).

Between a small-batch and a large-batch minimiser of a network trained without weight decay the large-batch one looks sharper;
with weight decay the small-batch one does, although it still has higher test accuracy (arXiv 1712.09913, section 3, Figure 2).
Weight decay shrinks the weights of the small batch, which makes more updates, and a step of one length is large for small
weights. Along directions scaled to the norm of each filter the large batch looks sharper either way (section 4, Figure 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.lab.declare import Claim, Gate, Group, Measure, Pair, Power, RunConfig, Scale, Settings, Stage, Study, measure
from experiments.lab.declare.contrasts import at_scale, difference, directional, figure, group, log_ratio, minus
from experiments.lab.declare.enums import Budget, Model, Norm, Schedule


@dataclass(frozen=True, kw_only=True)
class Slices(Settings):
    """Batch sizes with weight decay and without, and how far the slices reach."""

    epochs: float | None = 30
    momentum: float = 0.9
    lr: float = 0.1
    norm: Norm = Norm.BATCH
    decay: float = 5e-3
    """weight decay beside 0"""
    radius: float = 8.0
    """length of a raw step"""
    share: float = 0.5
    """length of a filter-normalised step, as a share of the filter's norm"""
    examples: int = 1000

    def sides(self, decay: float) -> tuple[Group, Group]:
        """The runs at the large and at the small batch size."""
        words = f"decay {decay:g}" if decay else "no decay"
        large, small = (group(f"B {size}, {words}", batch_size=size, weight_decay=decay) for size in (self.large, self.small))
        return large, small


def train(settings: Slices, seeds: range) -> list[RunConfig]:
    base = settings.run(schedule=Schedule.STEP, budget=Budget.EPOCHS)
    return [base.replace(batch_size=size, weight_decay=decay, seed=seed)
            for seed in seeds for decay in (0.0, settings.decay) for size in settings.batch_sizes]


def measures(settings: Slices) -> tuple[Measure, ...]:
    return (
        measure("slice_width", examples=settings.examples, radius=settings.radius, directions=6, points=7),
        measure("filter_slice_width", examples=settings.examples, radius=settings.share, directions=6, points=7),
    )


def pairs(settings: Slices, seeds: range, runs: Sequence[RunConfig]) -> list[Pair]:
    """The line from each small-batch minimiser to the large-batch one (Figure 2), two seeds for each weight decay."""
    starts = [run for run in runs if run.batch_size == settings.small and run.seed in seeds[:2]]
    return [Pair(run, run.replace(batch_size=settings.large), measure("slice", examples=2000, points=25)) for run in starts]


def claims(scale: Scale, settings: Slices) -> tuple[Claim, ...]:
    without, with_decay = settings.sides(0.0), settings.sides(settings.decay)
    raw = log_ratio("slice_width", *without)
    one, other, decayed = f"batch size {settings.large}", settings.small, f"with weight decay {settings.decay:g}"
    return at_scale(
        scale,
        directional("decay-flips", f"analogue: weight decay lowers how much sharper {one} looks than {other} along raw "
                    "directions", minus(raw, log_ratio("slice_width", *with_decay)), primary=True),
        directional("raw-without", f"analogue: without weight decay {one} looks sharper than {other} along raw directions", raw),
        directional("raw-decayed", f"analogue: {decayed} batch size {other} looks sharper than {settings.large} along raw "
                    "directions", log_ratio("slice_width", *with_decay, sign=-1)),
        directional("filter-without", f"without weight decay {one} looks sharper than {other} along filter-normalised directions",
                    log_ratio("filter_slice_width", *without)),
        directional("filter-decayed", f"{decayed} {one} looks sharper than {other} along filter-normalised directions",
                    log_ratio("filter_slice_width", *with_decay)),
        directional("tests-worse", f"{decayed} {one} tests worse than {other}",
                    difference("test_accuracy", *with_decay, sign=-1), 0.1),
        gates=(Gate("min_seeds", 8), Gate("status", 0.0)),
        source="unchecked: the paper shows curves; its test errors were not at hand",
    )


QUICK = Slices(n_train=4000, width=128, depth=2, batch_sizes=(32, 640), seeds=8)
LAPTOP = Slices(dataset="cifar10-jpeg", n_train=5000, model=Model.SMALL_CONV, batch_sizes=(32, 800), seeds=8)
PAPER = Slices(dataset="cifar10", model=Model.RESNET20, batch_sizes=(128, 8192), epochs=300, decay=5e-4, examples=5000, seeds=8)
# 4 pilot seeds (1000 to 1003) a cell: effect 2.7, SD as Power says 0.09
POWER = Power(effect=1.0, sd=0.1, pilot="seeds 1000 to 1003 in all four cells", seeds=8)
RISE = {"y": {"train_loss": "rise of the train loss (nats)"}, "rise": True, "arm": ("batch_size", "weight_decay")}

STUDY = Study(
    name="li2018",
    title="Weight decay decides which minimum looks sharp, filter normalisation undoes it",
    citation="Li, Xu, Taylor, Studer and Goldstein, NeurIPS 2018 (arXiv 1712.09913)",
    scales=(
        Scale("quick", "an MLP with batch norm, 4,000 images of Fashion-MNIST, batch sizes 32 and 640, 8 seeds",
              "about a minute on two cores", QUICK, POWER),
        Scale("laptop", "a small conv net with batch norm, 5,000 images of CIFAR-10 (JPEG copy), batch sizes 32 and 800, 8 seeds",
              "about 40 minutes on two cores (estimated)", LAPTOP),
        Scale("paper", "a ResNet-20 on CIFAR-10, batch sizes 128 and 8,192, 8 seeds", "a GPU; not measured yet", PAPER),
    ),
    stages=(Stage("train", train, measures=measures, pairs=pairs),),
    claims_of=claims,
    figures=(
        figure("along_training", name="raw_slices", metric="slice_width", x="places", x_label="distance along a raw direction",
               **RISE),
        figure("along_training", name="filter_slices", metric="filter_slice_width", x="places",
               x_label="share of each filter's norm", **RISE),
        figure("bars", name="claims"),
        figure("parametric_slice"),
    ),
    tried=(
        "The claim that the small batch looks sharper with weight decay is contradicted along random raw directions: four "
        "decays from 0.0005 to 0.01 were tried in pilots and none turned the order, though all lowered the ratio. On the "
        "line between the two minimisers, where the paper draws it, the order does turn (the parametric slice); a claim "
        "needs values of single runs.",
        "The test accuracies with decay differ by 0.2 points at a standard deviation of 0.2: 8 seeds see that with a "
        "probability of 46%; sizes of data and decay at which the small batch is far ahead were not found in pilots.",
        "The primary claim is weaker than the paper's flip, which pilots did not show along random directions.",
    ),
    deviations=(
        "How sharp a minimum looks is a number here: the mean rise of the training loss at a fixed distance along six random "
        "directions and their opposites. The paper shows curves along one, and where it finds the flip it is the line between "
        "the two minimisers (Figure 2; here a figure without a claim): claims along raw directions are analogues.",
        "`quick` trains an MLP with two hidden layers of 128 units and batch norm on 4,000 images of Fashion-MNIST at batch "
        "sizes 32 and 640 (16% of the data, as the paper's 8,192 of CIFAR-10), `laptop` a small convolutional network on "
        "CIFAR-10 (JPEG copy), `paper` a ResNet-20 instead of VGG-9.",
        "Weight decay is 0.005 at `quick` and `laptop`, ten times the paper's: the sum of learning rate times weight decay "
        "over the updates, which is what shrinks the weights, is then nearer to the paper's.",
        "The learning rate is divided by 10 at 1/2 and 3/4 of the epochs; the paper divides it three times. Heavy ball instead "
        "of Nesterov's momentum.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("li2018"))
