"""Train longer, generalize better: closing the generalization gap in large batch training (Hoffer et al., NeurIPS 2017).

The paper trains with momentum SGD and batch norm at a small batch (128) and a large one (4,096). At equal epochs the large
batch has lower test accuracy; with the learning rate scaled by the square root of the batch size, with batch norm over "ghost"
batches of the small size, and with as many updates as the small batch made ("regime adaptation"), it tests as well (Table 1).
The distance from the initial weights grows like the logarithm of the number of updates (Section 3, Figure 2).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.lab.declare.claims import Claim, Group, Power
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.contrasts import at_scale, difference, directional, figure, group, non_inferior, weighted
from experiments.lab.declare.enums import Augment, Budget, Model, Norm, Scaling, Schedule
from experiments.lab.declare.settings import Settings
from experiments.lab.declare.study import Comparison, PaperRow, Scale, Stage, Study, measure


@dataclass(frozen=True, kw_only=True)
class Regime(Settings):
    """One network (`name`), or several as (name, dataset, model, margin), at two batch sizes."""

    name: str = ""
    networks: tuple[tuple[str, str, Model, float], ...] = ()
    lr: float = 0.1
    momentum: float = 0.9
    norm: Norm = Norm.BATCH
    walk_steps: int = 2000
    margin: float = 0.6
    """percentage points of test accuracy"""


@dataclass(frozen=True)
class Arms:
    """The runs of one network: the small batch, the large one with one ingredient after another, and the small batch's walk."""

    name: str
    margin: float
    small: RunConfig
    plain: RunConfig
    ghost: RunConfig
    adapted: RunConfig
    scaled: RunConfig
    walk: RunConfig


def arms(settings: Regime) -> Iterator[Arms]:
    given = settings.networks or ((settings.name, settings.dataset, settings.model, settings.margin),)
    for name, dataset, model, margin in given:
        small = settings.run(schedule=Schedule.STEP, budget=Budget.EPOCHS, dataset=settings.dataset or dataset, model=model)
        plain = small.replace(batch_size=settings.large)
        scaled = plain.replace(scaling=Scaling.SQRT, base_batch_size=settings.small)
        ghost = scaled.replace(norm=Norm.GHOST, norm_batch=settings.small)
        adapted = ghost.replace(epochs=(settings.epochs or 0) * settings.large / settings.small)
        walk = small.replace(budget=Budget.STEPS, epochs=None, steps=settings.walk_steps, schedule=Schedule.CONSTANT)
        yield Arms(name, margin, small, plain, ghost, adapted, scaled, walk)


def train(settings: Regime, seeds: range) -> list[RunConfig]:
    return [run.replace(seed=seed) for a in arms(settings) for seed in seeds
            for run in (a.small, a.plain, a.scaled, a.ghost, a.adapted)]


def walk(settings: Regime, seeds: range) -> list[RunConfig]:
    return [network.walk.replace(seed=seed) for network in arms(settings) for seed in seeds]


TABLE = {
    "F1": (98.27, 97.05, 98.53, "secondary"), "C1": (87.80, 83.95, 88.20, "secondary"),
    "C3": (61.25, 51.50, 63.20, "secondary"), "ResNet44": (92.83, 86.10, 93.07, "unchecked"),
}
"""network -> small batch, large batch, adapted large batch; how the numbers are known"""
PAPER = tuple(
    PaperRow("Table 1", f"{network}{rule}", "test accuracy", "test_accuracy", small, second, source=source)
    for network, (small, large, adapted, source) in TABLE.items()
    for rule, second in (("", large), (", adapted", adapted))
)


def of(name: str, run: RunConfig) -> Group:
    fields = ("model", "dataset", "batch_size", "scaling", "norm", "epochs", "schedule")
    return group(name, **{field: getattr(run, field) for field in fields})


def of_table(network: str, first: int, second: int) -> dict[str, object]:
    """What Table 1 prints of a claim: one column minus another."""
    if network not in TABLE:
        return {}
    row = TABLE[network]
    return {"paper_value": round(float(row[first]) - float(row[second]), 2), "paper_source": f"{row[3]}: Table 1, {network}"}


def claims(scale: Scale, settings: Regime) -> Iterator[Claim]:
    """Margins: half of the published gap between small and large batch (F1's where the network is ours)."""
    few, many = settings.small, settings.large
    for place, network in enumerate(arms(settings)):
        says, d = network.name, network.margin
        name = says.split()[0]
        at = name.lower()
        small, plain = of(f"B {few}", network.small), of(f"B {many}", network.plain)
        ghost, adapted = of(f"B {many}, LR and ghost", network.ghost), of(f"B {many}, adapted", network.adapted)
        walked = of(f"B {few}, constant LR", network.walk)
        yield from at_scale(
            scale,
            non_inferior(f"{at}-adapted", f"{says}: adapted batch size {many} tests no worse than batch size {few}",
                         difference("test_accuracy", adapted, small), d, primary=place == 0, **of_table(name, 2, 0)),
            directional(f"{at}-gap", f"{says}: at equal epochs batch size {many} tests worse than batch size {few}",
                        difference("test_accuracy", plain, small, sign=-1), d, **of_table(name, 0, 1)),
            directional(f"{at}-longer", f"{says}: adapted batch size {many} tests better than at equal epochs",
                        difference("test_accuracy", adapted, plain), d, **of_table(name, 2, 1)),
            directional(f"{at}-ingredients", f"{says}: at equal epochs the scaled learning rate and ghost "
                        f"batch norm make batch size {many} test better", difference("test_accuracy", ghost, plain), d),
            directional(f"{at}-walk", f"{says}: batch size {few}: log t describes the distance from the start "
                        "better than a power law", weighted("distance_along", (1.0, walked), unit="difference of R²"), 0.005),
        )


def comparisons(scale: Scale, settings: Regime) -> Iterator[Comparison]:
    for network in arms(settings):
        for rule, run in (("", network.plain), (", adapted", network.adapted)):
            yield Comparison(scale.name, f"{network.name.split()[0]}{rule}", f"{network.name}{rule or ', equal epochs'}",
                             of(f"B {settings.small}", network.small), of(f"B {settings.large}{rule}", run))


QUICK = Regime(name="F1 in small", n_train=2048, width=64, depth=2, batch_sizes=(32, 512), epochs=10, seeds=12)
LAPTOP = Regime(name="small conv", dataset="cifar10-jpeg", n_train=4096, model=Model.SMALL_CONV, augment=Augment.CROP_FLIP,
                batch_sizes=(32, 512), epochs=20, seeds=8)
F1, C1 = ("F1", "mnist", Model.MLP, 0.6), ("C1", "cifar10", Model.KESKAR_C1, 1.9)
C3, RESNET44 = ("C3", "cifar100", Model.KESKAR_C1, 4.8), ("ResNet44", "cifar10", Model.RESNET44, 3.3)
WHOLE = Regime(networks=(F1, C1, C3, RESNET44), dataset="", batch_sizes=(128, 4096), epochs=100, walk_steps=20_000, seeds=8)
POWER = Power(effect=0.0, sd=0.3, pilot="seeds 1000 to 1004 (sd 0.20, at 20 epochs), 1500 and 1501", seeds=12)
# `laptop` (seeds 1000 and 1001): 52.37 (SD 0.10) at B 32, 49.78 (0.27) at B 512, adapted 60.09 (0.49)
LAPTOP_POWER = Power(effect=0.0, sd=0.36, pilot="seeds 1000 and 1001 at B 32 and adapted B 512", seeds=8)

STUDY = Study(
    name="hoffer2017",
    title="Trained longer, a large batch tests as well as a small one",
    citation="Hoffer, Hubara and Soudry, NeurIPS 2017 (arXiv 1705.08741)",
    scales=(
        Scale("quick", "an MLP with batch norm on 2,048 images of Fashion-MNIST, batch sizes 32 and 512, 12 seeds",
              "about a minute on two cores", QUICK, POWER, analogue=True),
        Scale("laptop", "a small convolutional network with batch norm on 4,096 images of CIFAR-10 (JPEG copy), 8 seeds",
              "about 18 minutes on two cores", LAPTOP, LAPTOP_POWER, analogue=True),
        Scale("paper", "F1, C1, C3 and ResNet44 at batch sizes 128 and 4,096, 8 seeds", "a GPU; not measured yet", WHOLE),
    ),
    stages=(Stage("train", train),
            Stage("walk", walk, measures=lambda: (measure("distance_along", points=40, first=10),))),
    claims_of=claims,
    figures=(
        figure("bars", name="ingredients"), figure("training_curves"),
        figure("along_training", name="walk", metric="distance_along", log_x=True, y={"distance": "distance from the start"}),
    ),
    paper=PAPER,
    comparisons_of=comparisons,
    tried=(
        "`quick`: the adapted large batch makes 16 times the epochs of the small one and is 1.1 points behind at full "
        "training accuracy, where the small batch, after 10 epochs, has not fitted its data: there the longer regime "
        "overfits. Twelve seeds decide it; pilots saw the same order at 20 epochs.",
        "`laptop`: with crops and flips the adapted large batch is 7.6 points ahead; without them it was 4.9 points behind in "
        "pilots. Crops and twice the epochs were chosen after that pilot.",
        "No small batch was trained for as many epochs as the adapted large one, so that what the batch size itself does is "
        "not separated from what longer training does.",
        "Distance from the start: a power law beats log t over the 2.3 decades from update 10 to 2,000, for every seed. Both "
        "fits have two parameters and minimise the same squared distances.",
        "`laptop`, scaled learning rate and ghost batch norm at equal epochs: no gain is seen, and 8 seeds do not exclude one "
        "of 0.4 points.",
    ),
    deviations=(
        "`quick` trains an MLP with batch norm, F1 in small, on 2,048 images of Fashion-MNIST at batch sizes 32 and 512; "
        "`laptop` a small convolutional network with batch norm on 4,096 images of CIFAR-10 (JPEG copy), cropped and flipped.",
        "At `quick` the small batch is trained for 10 epochs, not to the end (train loss 0.2 nats in pilots), because with 20 "
        "or more both batch sizes fit these few images and test within half a point: no gap would be left to close. At "
        "`laptop` it is not trained to the end either: 60% of the training images after 20 epochs, where the adapted large "
        "batch has 96% after 320.",
        "Learning rate 0.1 with momentum 0.9, divided by 10 at 1/2 and at 3/4 of the budget; the paper's own schedules differ "
        "between networks and are not known to us in full.",
        "Batch-norm statistics are recomputed on training examples before evaluation; the paper uses running averages.",
        "The paper clips gradients at first and tries multiplicative noise; neither is here.",
        "The walk of the weights is that of the small batch alone, at a constant learning rate, without the schedule.",
        "WResNet16-4, VGG and the ImageNet runs are left out.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("hoffer2017"))
