"""Sharpness-aware minimisation for efficiently improving generalization (Foret et al., ICLR 2021).

SAM takes each gradient at w + rho g / ||g||, where the loss is highest nearby to first order. The paper reports that this
lowers the test error of the networks it tries, and that the minima have smaller Hessian eigenvalues. An update costs two
gradients, so that the baseline is owed twice the epochs.

Here the three questions are asked apart: does SAM have higher test accuracy at equal epochs, and against twice the epochs
(equal gradients); is its minimum flatter; and is that why? Curvature falls with the training loss, which SAM leaves higher, so
that flatness is compared twice: at equal epochs, as the paper does, and at equal training loss. That flatness is the reason
cannot be shown, but it can fail: what ends flatter by a measure (lambda_max, adaptive sharpness) would then have higher test
accuracy. The figure shows every run by both.
"""

from dataclasses import dataclass
from typing import ClassVar

from experiments.lab.declare.claims import Claim, Gate, Power
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.contrasts import at_scale, difference, directional, figure, group, log_ratio
from experiments.lab.declare.enums import Augment, Budget, Model, Norm, Schedule
from experiments.lab.declare.settings import Settings
from experiments.lab.declare.study import Comparison, Measure, PaperRow, Scale, Stage, Study, measure


@dataclass(frozen=True, kw_only=True)
class Ascent(Settings):
    """SGD at `lr` for `epochs` and for twice as many, SAM and ASAM at `sam_lr` for `epochs`, all at one batch size."""

    fewest: ClassVar[int] = 1
    network: str
    momentum: float = 0.9
    weight_decay: float = 5e-4
    sam_lr: float
    rho: float
    adaptive_rho: float
    target: float = 0.15
    """training cross-entropy in nats at which the matched arms stop"""
    margin: float = 0.4
    examples: int = 500


def arms(settings: Ascent) -> dict[str, RunConfig]:
    """Stage -> its run."""
    sgd = settings.run(budget=Budget.EPOCHS, schedule=Schedule.COSINE)
    sam = sgd.replace(lr=settings.sam_lr, sam_rho=settings.rho)
    matched = sam.replace(budget=Budget.TRAIN_LOSS, epochs=None, train_loss=settings.target, max_epochs=200,
                          schedule=Schedule.CONSTANT)
    return {
        "sgd": sgd, "twice": sgd.replace(epochs=2 * (sgd.epochs or 0)), "sam": sam,
        "asam": sam.replace(sam_rho=settings.adaptive_rho, sam_adaptive=True),
        "sgd matched": matched.replace(sam_rho=0.0), "sam matched": matched,
    }


def stage(name: str) -> Stage:
    """One arm."""
    return Stage(name, lambda settings, seeds: [arms(settings)[name].replace(seed=seed) for seed in seeds], measures=measures)


def measures(settings: Ascent) -> tuple[Measure, ...]:
    examples = settings.examples
    return (
        measure("lambda_max", examples=examples), measure("norm_scaled_lambda", examples=examples),
        measure("adaptive_l2_step", examples=min(examples, 1024), rho=0.5, m=128),
    )


SGD, TWICE, SAM, ASAM = (
    group("SGD", stage="sgd"), group("SGD, twice the epochs", stage="twice"),
    group("SAM", stage="sam"), group("ASAM", stage="asam"),
)
SGD_MATCHED, SAM_MATCHED = group("SGD matched", stage="sgd matched"), group("SAM matched", stage="sam matched")


def claims(scale: Scale, settings: Ascent) -> tuple[Claim, ...]:
    """Margins: half of the paper's 0.8 points of test error (WRN-28-10, unchecked), at `quick` an eighth; ln 1.25 for ratios."""
    of, d, flat = settings.network, settings.margin, Gate("converged", 0.1, "lambda_max")
    matched = Gate("status", 0.1), Gate("matched", 0.1, "train_loss")
    at_equal_loss = f"{of}: at equal training loss ({settings.target:g} nats) and learning rate, SAM ends at a smaller"
    return at_scale(
        scale,
        directional("tests-better", f"{of}: SAM tests better than SGD at equal epochs", difference("test_accuracy", SAM, SGD), d,
                    primary=True, paper_value=0.8, paper_source="unchecked: WRN-28-10 on CIFAR-10, test error 3.5 to 2.7%"),
        directional("tests-better-equal-gradients", f"{of}: SAM tests better than SGD of twice the epochs (equal gradients)",
                    difference("test_accuracy", SAM, TWICE), d),
        directional("smaller-lambda", f"{of}: SAM ends at a smaller lambda_max than SGD at equal epochs",
                    log_ratio("lambda_max", SAM, SGD, sign=-1), gates=(flat,)),
        directional("smaller-adaptive", f"{of}: SAM ends at a smaller adaptive sharpness than SGD at equal epochs",
                    log_ratio("adaptive_l2_step", SAM, SGD, sign=-1)),
        directional("smaller-lambda-matched", f"{at_equal_loss} lambda_max than SGD",
                    log_ratio("lambda_max", SAM_MATCHED, SGD_MATCHED, sign=-1), gates=(*matched, flat)),
        directional("smaller-adaptive-matched", f"{at_equal_loss} adaptive sharpness than SGD",
                    log_ratio("adaptive_l2_step", SAM_MATCHED, SGD_MATCHED, sign=-1), gates=matched),
        directional("asam-tests-better", f"{of}: ASAM tests better than SGD at equal epochs",
                    difference("test_accuracy", ASAM, SGD), d),
        gates=(Gate("min_seeds", 8),), diverged_as=10.0,
    )


QUICK = Ascent(network="an MLP", n_train=2000, width=128, depth=2, batch_sizes=(64,), lr=0.08, epochs=60, sam_lr=0.02, rho=0.2,
               adaptive_rho=4.0, margin=0.1, seeds=8, examples=2000)
LAPTOP = Ascent(network="a small conv net", dataset="cifar10-jpeg", n_train=8192, model=Model.SMALL_CONV, norm=Norm.GROUP,
                batch_sizes=(128,), lr=0.04, epochs=40, sam_lr=0.04, rho=0.05, adaptive_rho=0.5, seeds=8)
PAPER = Ascent(network="WRN-28-10", dataset="cifar10", model=Model.WRN28_10, norm=Norm.BATCH, augment=Augment.CROP_FLIP,
               batch_sizes=(256,), lr=0.1, epochs=200, sam_lr=0.1, rho=0.05, adaptive_rho=0.5, target=0.05, seeds=8)
# Pilots (seeds 1000 to 1005): test accuracy of SGD 82.40 (SD 0.17), of twice the epochs 82.23 (0.43), SAM 83.42 (0.06), ASAM
# 82.94 (0.30); lambda_max 2.8, 0.7, 3.0. The study is sized for half of the difference and an SD above SGD's and SAM's.
POWER = Power(effect=0.5, sd=0.3, pilot="seeds 1000 to 1005, four arms", seeds=8)

STUDY = Study(
    name="foret2021",
    title="SAM has higher test accuracy; does it find flatter minima, and is that why?",
    citation="Foret, Kleiner, Mobahi and Neyshabur, ICLR 2021 (arXiv 2010.01412); ASAM: Kwon et al. 2021 (arXiv 2102.11600)",
    scales=(
        Scale("quick", "an MLP on 2,000 images of Fashion-MNIST, SGD (once and twice the epochs), SAM, ASAM, 8 seeds",
              "about 1.5 minutes on two cores", QUICK, POWER, analogue=True),
        Scale("laptop", "a small conv net on 8,192 images of CIFAR-10 (JPEG copy), the same arms, 8 seeds",
              "about 20 minutes on two cores (estimated)", LAPTOP),
        Scale("paper", "WRN-28-10 on CIFAR-10, 200 epochs, the same arms, 8 seeds", "a GPU; not measured yet", PAPER),
    ),
    stages=tuple(stage(name) for name in arms(QUICK)),
    claims_of=claims,
    figures=(
        figure("scatter", name="accuracy_against_sharpness", x=("lambda_max", "adaptive_l2_step"), y="test_accuracy",
               logarithmic=("lambda_max", "adaptive_l2_step"),
               arms={"SGD": SGD, "SGD, twice the epochs": TWICE, "SAM": SAM, "ASAM": ASAM, "SGD, matched": SGD_MATCHED,
                     "SAM, matched": SAM_MATCHED}),
        figure("bars", name="claims"),
    ),
    paper=(PaperRow("text", "WRN-28-10", "test accuracy", "test_accuracy", 96.5, 97.3, source="unchecked"),),
    conditions=("SGD", "SAM"),
    comparisons_of=lambda scale, settings: [Comparison(scale.name, "WRN-28-10", settings.network, SGD, SAM)],
    tried=(
        "At equal epochs SAM and SGD end at training losses that differ several times, each at its own best learning "
        "rate, and flatness falls with the loss: hence the two claims at equal training loss and learning rate, added "
        "after a pilot had shown it, in which SAM is flatter in both measures.",
    ),
    deviations=(
        "Learning rates and radii are those of each method that do best on held-out training images in pilots (`quick`; SGD of "
        "twice the epochs has SGD's). At `laptop` and `paper` all have one learning rate, rho = 0.05 and Kwon et al.'s 0.5.",
        "In the matched arms, which are not the paper's, both methods have SAM's learning rate, constant.",
        "The ascent is of the whole batch; the paper averages ascents of parts of it, one an accelerator.",
        "ASAM without the constant that Kwon et al. add to |w|: weights of exactly 0 stay.",
        "`quick` trains an MLP with two hidden layers of 128 units on 2,000 images of Fashion-MNIST without augmentation, "
        "`laptop` a small conv net on 8,192 images of CIFAR-10 (JPEG copy).",
        "At scale `paper` crops and flips replace the paper's stronger augmentations beside them (cutout, AutoAugment).",
        "Sharpness is measured on the first 2,000 training examples (`laptop`: 500).",
        "Learning rates and radii are those of pilots, on small grids of pairs: SGD's 0.08, SAM's 0.2 and ASAM's 4 at `quick` "
        "are the largest tried there.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("foret2021"))
