"""Don't decay the learning rate, increase the batch size (Smith, Kindermans, Ying and Le, ICLR 2018).

The scale of SGD's noise is g ~ lr N / (B (1 - m)). The paper therefore raises the batch size by a factor wherever a schedule
would divide the learning rate by it, and reports the same curves of loss and accuracy against epochs, with fewer updates.

Three arms: a learning rate divided by 10 at half and at three quarters of the budget; a constant one with a batch that grows
tenfold at the same two places; and, so that an equality says something, a constant one with a constant batch.

Run it:  python -m experiments run smith2018 --scale quick
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from experiments.lab.declare.claims import Claim, Contrast, Gate, Group, Kind, Power, ValueScale
from experiments.lab.declare.config import Augment, Budget, Model, Norm, RunConfig, Schedule
from experiments.lab.declare.study import Figure, Record, Request, Scale, Stage, Study


FACTOR = 10
"""by which the schedule `step` divides the learning rate"""


@dataclass(frozen=True)
class Settings:
    """One scale: the run with a constant learning rate and batch, and the margin of test accuracy in percentage points."""

    base: RunConfig
    seeds: int
    margin: float = 0.5


SGD = RunConfig(batch_size=8, lr=0.01, momentum=0.9, budget=Budget.EPOCHS, epochs=16)
SETTINGS = {
    "quick": Settings(SGD.replace(dataset="fashion-mini", n_train=4000, model=Model.MLP, width=128, depth=2), seeds=12),
    "laptop": Settings(SGD.replace(dataset="cifar10-jpeg", n_train=8000, model=Model.SMALL_CONV, epochs=24), seeds=12),
    "paper": Settings(
        SGD.replace(dataset="cifar10", n_train=50_000, model=Model.WRN16_4, norm=Norm.GHOST, norm_batch=50, batch_size=100,
                    lr=0.1, weight_decay=5e-4, augment=Augment.CROP_FLIP, epochs=200),
        seeds=8,
    ),
}


def train(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    settings = SETTINGS[request.scale]
    base = settings.base if request.dataset is None else settings.base.replace(dataset=request.dataset)
    arms = base.replace(schedule=Schedule.STEP), base.replace(batch_growth=FACTOR), base
    return [arm.replace(seed=seed) for seed in request.seed_range(settings.seeds) for arm in arms]


DECAY = (("schedule", "step"), ("batch_growth", 1))
GROWTH = (("schedule", "constant"), ("batch_growth", FACTOR))
CONSTANT = (("schedule", "constant"), ("batch_growth", 1))


def claims_of(scale: str, *, power: Power | None = None, analogue: str = "") -> tuple[Claim, ...]:
    """Margins: 0.5 points of test accuracy, less than half of what the decay gains at `quick`; ln 1.25 for ratios."""
    settings = SETTINGS[scale]
    grown, decayed = Group("batch x 10", 1.0, GROWTH), Group("LR / 10", -1.0, DECAY)
    gates = (Gate("min_seeds", 8), Gate("status", 0.1))
    same, ratio = f"{analogue}raising the batch size {FACTOR}-fold in place of dividing the learning rate", "log ratio"

    def claim(id: str, sentence: str, kind: Kind, contrast: Contrast, margin: float, *, primary: bool = False) -> Claim:
        return Claim(id=f"{scale}-{id}", sentence=sentence, kind=kind, contrast=contrast, margin=margin, primary=primary,
                     gates=gates, scales=(scale,), power=power if primary else None,
                     paper_source="unchecked: no number of the paper is known here")

    return (
        claim("same-test-accuracy", f"{same} ends at the same test accuracy, within {settings.margin} points", Kind.EQUIVALENCE,
              Contrast("test_accuracy", (grown, decayed), 1, "percentage points"), settings.margin, primary=True),
        claim("same-train-loss", f"{same} ends at the same training loss, within a factor of 1.25", Kind.EQUIVALENCE,
              Contrast("train_loss", (grown, decayed), 1, ratio, ValueScale.LOG), log(1.25)),
        claim("fewer-updates", f"{same} takes fewer updates", Kind.DIRECTIONAL,
              Contrast("steps", (grown, decayed), -1, ratio, ValueScale.LOG), log(1.25)),
        claim("decay-helps", f"{analogue}control: dividing the learning rate ends at a higher test accuracy than leaving it "
              "and the batch size as they are", Kind.DIRECTIONAL,
              Contrast("test_accuracy", (Group("LR / 10", 1.0, DECAY), Group("constant", -1.0, CONSTANT)), 1,
                       "percentage points"), settings.margin),
    )


# Pilots (seeds 1000 to 1005): test accuracy 84.48 (SD 0.14) with growth, 84.48 (SD 0.16) with decay, 80.5 (SD 2.0) with neither:
# half of what the decay gains is 2 points, so the margin of 0.5 is the smaller one
POWER = Power(effect=0.0, sd=0.16, pilot="seeds 1000 to 1005, batch x 10 and LR / 10", seeds=12)
CLAIMS = (
    *claims_of("quick", power=POWER, analogue="analogue: "),
    *claims_of("laptop", analogue="analogue: "),
    *claims_of("paper"),
)

STUDY = Study(
    name="smith2018",
    title="Raising the batch size does what decaying the learning rate does, with fewer updates",
    citation="Smith, Kindermans, Ying and Le, ICLR 2018 (arXiv 1711.00489)",
    scales=(
        Scale("quick", "an MLP, 4,000 images of Fashion-MNIST, batches of 8 that grow to 800, 12 seeds",
              "about a minute on two cores"),
        Scale("laptop", "a small conv net, 8,000 images of CIFAR-10 (JPEG copy), batches of 8 that grow to 800, 12 seeds",
              "about an hour on two cores (estimated)"),
        Scale("paper", "WRN-16-4 on CIFAR-10, batches of 100 that grow to 10,000, 8 seeds", "a GPU; not measured yet"),
    ),
    stages=(Stage("train", train),),
    claims=CLAIMS,
    figures=(
        Figure("learning_curves", "learning_curves",
               (("arms", (("LR / 10", DECAY), ("batch x 10", GROWTH), ("both constant", CONSTANT))),)),
        Figure("claims", "bars"),
    ),
    tried=(
        "How many fewer updates the growing batch takes is fixed by the configuration; the claim checks that it is taken.",
    ),
    deviations=(
        "`quick` trains an MLP with two hidden layers of 128 units on 4,000 images of Fashion-MNIST, batches of 8, 80 and 800; "
        "`laptop` a small convolutional network on 8,000 images of CIFAR-10 (JPEG copy), `paper` a WRN-16-4 on CIFAR-10.",
        "One schedule, a factor of 10 at one half and at three quarters of the budget, in place of the paper's own.",
        "At `paper` 50 examples share their normalisation in every arm (ghost batch norm); elsewhere no batch norm.",
        "Heavy-ball momentum 0.9, which stays constant; the paper's variant that raises momentum too is left out.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("smith2018"))
