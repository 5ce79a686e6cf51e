"""Don't decay the learning rate, increase the batch size (Smith, Kindermans, Ying and Le, ICLR 2018).

The scale of SGD's noise is g ~ lr N / (B (1 - m)). The paper therefore raises the batch size by a factor wherever a schedule
would divide the learning rate by it, and reports the same curves of loss and accuracy against epochs, with fewer updates.

Three arms: a learning rate divided by 10 at half and at three quarters of the budget; a constant one with a batch that grows
tenfold at the same two places; and, so that an equality says something, a constant one with a constant batch.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from experiments.lab.declare import Claim, Power, RunConfig, Scale, Settings, Stage, Study
from experiments.lab.declare.contrasts import at_scale, difference, directional, equivalent, figure, group, log_ratio
from experiments.lab.declare.enums import Augment, Budget, Model, Norm, Schedule

FACTOR = 10  # by which the schedule `step` divides the learning rate, and by which the batch grows


@dataclass(frozen=True, kw_only=True)
class Growth(Settings):
    """The batch grows twice, from the first of the three batch sizes to the last."""

    momentum: float = 0.9
    sizes: ClassVar[tuple[str, ...]] = ()  # of tens: none would be left in place
    margin: float = 0.5  # percentage points of test accuracy: less than half of what the decay gains at `quick`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_sizes != tuple(self.small * FACTOR**k for k in range(3)):
            raise ValueError(f"batch_sizes must grow tenfold twice, as the learning rate falls: {self.small},...")


def train(settings: Growth, seeds: range) -> list[RunConfig]:
    base = settings.run(budget=Budget.EPOCHS)
    arms = base.replace(schedule=Schedule.STEP), base.replace(batch_growth=FACTOR), base
    return [arm.replace(seed=seed) for seed in seeds for arm in arms]


DECAY, CONSTANT = group("LR / 10", schedule="step", batch_growth=1), group("constant", schedule="constant", batch_growth=1)
GROWTH = group("batch x 10", schedule="constant", batch_growth=FACTOR)


def claims(scale: Scale, settings: Growth) -> tuple[Claim, ...]:
    same = f"raising the batch size {FACTOR}-fold in place of dividing the learning rate"
    d, accuracy, loss = settings.margin, difference("test_accuracy", GROWTH, DECAY), log_ratio("train_loss", GROWTH, DECAY)
    return at_scale(
        scale,
        equivalent("same-test-accuracy", f"{same} ends at the same test accuracy, within {d} points", accuracy, d, primary=True),
        equivalent("same-train-loss", f"{same} ends at the same training loss, within a factor of 1.25", loss),
        directional("fewer-updates", f"{same} takes fewer updates", log_ratio("steps", GROWTH, DECAY, sign=-1)),
        directional("decay-helps", "control: dividing the learning rate ends at a higher test accuracy than leaving it and the "
                    "batch size as they are", difference("test_accuracy", DECAY, CONSTANT), d),
        source="unchecked: no number of the paper is known here",
    )


QUICK = Growth(n_train=4000, width=128, depth=2, batch_sizes=(8, 80, 800), lr=0.01, epochs=16, seeds=12)
LAPTOP = replace(QUICK, dataset="cifar10-jpeg", n_train=8000, model=Model.SMALL_CONV, width=None, depth=None, epochs=24)
PAPER = Growth(dataset="cifar10", n_train=50_000, model=Model.WRN16_4, norm=Norm.GHOST, norm_batch=50, weight_decay=5e-4,
               augment=Augment.CROP_FLIP, batch_sizes=(100, 1000, 10_000), lr=0.1, epochs=200, seeds=8)
# Pilots (seeds 1000 to 1005): test accuracy 84.48 (SD 0.14) with growth, 84.48 (SD 0.16) with decay, 80.5 (SD 2.0) with neither:
# half of what the decay gains is 2 points, so the margin of 0.5 is the smaller one
POWER = Power(effect=0.0, sd=0.16, pilot="seeds 1000 to 1005, batch x 10 and LR / 10", seeds=12)

STUDY = Study(
    name="smith2018", module=__name__, citation="Smith, Kindermans, Ying and Le, ICLR 2018 (arXiv 1711.00489)",
    title="Raising the batch size does what decaying the learning rate does, with fewer updates",
    scales=(
        Scale("quick", "an MLP, 4,000 images of Fashion-MNIST, batches of 8 that grow to 800, 12 seeds",
              "about a minute on two cores", QUICK, POWER, analogue=True),
        Scale("laptop", "a small conv net, 8,000 images of CIFAR-10 (JPEG copy), batches of 8 that grow to 800, 12 seeds",
              "about an hour on two cores (estimated)", LAPTOP, analogue=True),
        Scale("paper", "WRN-16-4 on CIFAR-10, batches of 100 that grow to 10,000, 8 seeds", "a GPU; not measured yet", PAPER),
    ),
    stages=(Stage("train", train),), claims_of=claims,
    figures=(figure("learning_curves", arms={"LR / 10": DECAY, "batch x 10": GROWTH, "both constant": CONSTANT}),
             figure("bars", name="claims")),
    tried=("How many fewer updates the growing batch takes is fixed by the configuration; the claim checks that it is taken.",),
    deviations=(
        "`quick` trains an MLP with two hidden layers of 128 units on 4,000 images of Fashion-MNIST, batches of 8, 80 and 800; "
        "`laptop` a small convolutional network on 8,000 images of CIFAR-10 (JPEG copy), `paper` a WRN-16-4 on CIFAR-10.",
        "One schedule, a factor of 10 at one half and at three quarters of the budget, in place of the paper's own.",
        "At `paper` 50 examples share their normalisation in every arm (ghost batch norm); elsewhere no batch norm.",
        "Heavy-ball momentum 0.9, which stays constant; the paper's variant that raises momentum too is left out.",
    ),
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("smith2018"))
