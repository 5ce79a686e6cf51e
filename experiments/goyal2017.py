"""Accurate, large minibatch SGD: training ImageNet in 1 hour (Goyal et al. 2017).

The paper multiplies the learning rate of SGD with momentum by k where the batch size is multiplied by k, raises it gradually
over the first 5 of 90 epochs, and reports that ResNet-50 on ImageNet keeps its error from batch size 256 up to 8k and no
further; without the warm-up, without scaling or with its square root the error at 8k is higher.

Run it:  python -m experiments run goyal2017 --scale quick
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.lab.declare.claims import Claim, Contrast, Gate, Group, Kind, Power
from experiments.lab.declare.config import Augment, Budget, Model, Norm, RunConfig, Scaling, Schedule
from experiments.lab.declare.study import Comparison, Figure, PaperRow, Record, Request, Scale, Stage, Study


@dataclass(frozen=True)
class Settings:
    """One scale: the run at the base batch size (linear scaling, warm-up), the factors k, and how many seeds there are."""

    base: RunConfig
    moderate: int
    """k at which scaling is claimed to hold"""
    late: int
    """k at which the warm-up is tried"""
    largest: int
    """k at which scaling is claimed to have broken"""
    others: tuple[int, ...]
    seeds: int
    other_seeds: int

    def rules(self) -> dict[str, RunConfig]:
        warm = self.base
        return {
            WARM: warm, COLD: warm.replace(warmup=0.0), ROOT: warm.replace(scaling=Scaling.SQRT),
            UNSCALED: warm.replace(scaling=Scaling.NONE, base_batch_size=None),
        }

    def runs(self, request: Request) -> list[RunConfig]:
        """What the claims compare first, seed by seed; then every rule at every batch size with fewer seeds."""
        m, late, top, rules = self.moderate, self.late, self.largest, self.rules()
        seeds = request.seed_range(self.seeds)
        compared = [(WARM, 1), (WARM, m), (ROOT, m), (UNSCALED, m), (WARM, late), (COLD, late), (WARM, top)]
        cells = [(seed, *cell) for seed in seeds for cell in compared]
        cells += [(seed, rule, k) for seed in seeds[: self.other_seeds] for rule in rules for k in (*self.others, m, late, top)]
        changes = {} if request.dataset is None else {"dataset": request.dataset}
        runs = [rules[rule].replace(batch_size=k * self.base.batch_size, seed=seed, **changes) for seed, rule, k in cells]
        return list(dict.fromkeys(runs))


WARM, COLD, ROOT, UNSCALED = "linear, warm-up", "linear, no warm-up", "square root", "unscaled"
SGD = RunConfig(batch_size=32, lr=0.01, scaling=Scaling.LINEAR, base_batch_size=32, momentum=0.9, weight_decay=1e-4, warmup=0.2,
                schedule=Schedule.STEP, budget=Budget.EPOCHS, epochs=16)
QUICK = SGD.replace(dataset="fashion-mini", n_train=4096, model=Model.MLP, width=128, depth=2)
GHOST: dict[str, Any] = {"norm": Norm.GHOST, "norm_batch": 32}
LAPTOP = SGD.replace(dataset="cifar10-jpeg", n_train=8192, model=Model.SMALL_CONV, lr=0.05, **GHOST)
CIFAR = SGD.replace(dataset="cifar10", model=Model.RESNET20, augment=Augment.CROP_FLIP, batch_size=128, base_batch_size=128,
                    lr=0.1, epochs=90, warmup=5 / 90, **GHOST)
SETTINGS = {
    "quick": Settings(QUICK, 8, 16, 32, (2, 4), seeds=12, other_seeds=3),
    "laptop": Settings(LAPTOP, 8, 32, 64, (4, 16), seeds=8, other_seeds=2),
    "paper": Settings(CIFAR, 8, 32, 64, (2, 4, 16), seeds=8, other_seeds=8),
}


def train_runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return SETTINGS[request.scale].runs(request)


SOURCE = "secondary: ResNet-50 on ImageNet, top-1 error"


def cell(scale: str, rule: str, k: int, weight: float) -> Group:
    config, size = SETTINGS[scale].rules()[rule], k * SETTINGS[scale].base.batch_size
    where = (("scaling", config.scaling.value), ("warmup", config.warmup), ("batch_size", size))
    return Group(f"{rule}, B {size}", weight, where)


def claims_of(scale: str, power: Power | None = None) -> tuple[Claim, ...]:
    """Margin 0.5 points: less than half of the smallest difference that the paper calls one (1.10 points)."""
    settings = SETTINGS[scale]
    moderate, largest, small = settings.moderate, settings.largest, settings.base.batch_size
    m, late, top = moderate * small, settings.late * small, largest * small

    def claim(id: str, sentence: str, better: tuple[str, int], worse: tuple[str, int], paper: float, **options: Any) -> Claim:
        groups = (cell(scale, *better, 1), cell(scale, *worse, -1))
        fields: dict[str, Any] = {
            "id": f"{scale}-{id}", "sentence": f"analogue, equal epochs: {sentence}", "kind": Kind.DIRECTIONAL,
            "contrast": Contrast("test_accuracy", groups, 1, "percentage points"), "margin": 0.5,
            "gates": (Gate("min_seeds", 8), Gate("status", 0.1)), "scales": (scale,), "paper_value": paper,
            "paper_source": SOURCE, "diverged_as": 10.0,
        }
        return Claim(**fields | options)

    return (
        claim("linear-holds", f"linear scaling with warm-up tests within 0.5 points of batch size {small} at batch size {m}",
              (WARM, 1), (WARM, moderate), 0.14, kind=Kind.EQUIVALENCE, primary=True, power=power),
        claim("linear-breaks", f"linear scaling with warm-up tests worse at batch size {top} than at {small}",
              (WARM, 1), (WARM, largest), 1.19),
        claim("warm-up", f"at batch size {late} linear scaling tests better with warm-up than without",
              (WARM, settings.late), (COLD, settings.late), 1.10),
        claim("unscaled-worse", f"at batch size {m} linear scaling tests better than an unscaled learning rate",
              (WARM, moderate), (UNSCALED, moderate), 17.93),
        claim("root-worse", f"at batch size {m} linear scaling tests better than square-root scaling",
              (WARM, moderate), (ROOT, moderate), 2.48),
    )


# 6 pilot seeds: test accuracy 84.43 (SD 0.06) at batch size 32, 84.14 (SD 0.28) at 256
POWER = Power(effect=0.0, sd=0.28, pilot="seeds 1000 to 1005 at batch sizes 32 and 256", seeds=12)
CLAIMS = (*claims_of("quick", POWER), *claims_of("laptop"), *claims_of("paper"))

ROWS = ((WARM, "moderate", 23.74, 0.09), (WARM, "largest", 24.79, None), (COLD, "late", 24.84, None),
        (ROOT, "moderate", 26.22, None), (UNSCALED, "moderate", 41.67, None))
"""rule, our batch size (`Settings`), and the paper's validation error in percent (at 8k; `largest` with warm-up: 16k)"""
PAPER = tuple(
    PaperRow("ImageNet validation error", f"{rule}, {where}", "test accuracy", "test_accuracy", 76.4, round(100 - error, 2),
             0.12, sd, source="secondary")
    for rule, where, error, sd in ROWS
)


def comparisons(scale: str) -> tuple[Comparison, ...]:
    k = {"moderate": SETTINGS[scale].moderate, "late": SETTINGS[scale].late, "largest": SETTINGS[scale].largest}
    base = cell(scale, WARM, 1, 1)
    found = [(f"{rule}, {where}", cell(scale, rule, k[where], 1)) for rule, where, _, _ in ROWS]
    return tuple(Comparison(scale, network, group.name, base, group) for network, group in found)


STUDY = Study(
    name="goyal2017",
    title="Linear scaling with warm-up holds, up to a point",
    citation="Goyal, Dollar, Girshick, Noordhuis, Wesolowski, Kyrola, Tulloch, Jia and He 2017 (arXiv 1706.02677)",
    scales=(
        Scale("quick", "an MLP, 4,096 images of Fashion-MNIST, batch sizes 32 to 1,024, 12 seeds at those compared",
              "about a minute on two cores"),
        Scale("laptop", "a small conv net, 8,192 images of CIFAR-10 (JPEG copy), batch sizes 32 to 2,048, 8 seeds",
              "about half an hour on two cores (estimated)"),
        Scale("paper", "ResNet-20 on CIFAR-10, batch sizes 128 to 8,192, 8 seeds", "a GPU; not measured yet"),
    ),
    stages=(Stage("train", train_runs),),
    claims=CLAIMS,
    figures=(
        Figure("accuracy_vs_batch", "values_vs_batch",
               (("values", ("test_accuracy", "train_accuracy")),
                ("arms", ((WARM, (("scaling", "linear"), ("warmup", (0.2, 5 / 90)))),
                          (COLD, (("scaling", "linear"), ("warmup", 0.0))),
                          (ROOT, (("scaling", "sqrt"),)), (UNSCALED, (("scaling", "none"),)))))),
        Figure("training_curves", "training_curves"),
    ),
    paper=PAPER,
    comparisons=tuple(c for scale in SETTINGS for c in comparisons(scale)),
    conditions=("base batch size", "large batch"),
    tried=(
        "Of learning rates 0.01, 0.02 and 0.05 at batch size 32, 0.01 keeps its accuracy the farthest (pilots).",
        "In pilots at batch size 512 the warm-up made the result worse by 0.85 points, where ghost batch norm over 32 examples "
        "and a learning rate of 0.1 made it better by 2 (one seed).",
        "At 0.02, which has higher test accuracy at batch size 32, k = 8 lost 1.4 points (one seed): reproduced means here that "
        "such a regime exists.",
    ),
    deviations=(
        "No ImageNet. `quick` trains an MLP with two hidden layers of 128 units and no batch norm on 4,096 images of "
        "Fashion-MNIST, `laptop` a small convolutional network on 8,192 images of CIFAR-10 (JPEG copy), `paper` ResNet-20 on "
        "CIFAR-10.",
        "Batch sizes are small as the data sets are: the largest of `quick` is a quarter of the training set and makes 64 "
        "updates in all. The paper's 8k is 0.6% of ImageNet, in 14,000 updates.",
        "At `quick` and `laptop` the warm-up takes a fifth of the run, because 5 in 90 epochs would be 4 of 64 updates; it "
        "starts at 0, where the paper starts at the base learning rate.",
        "The learning rate is divided by 10 at 1/2 and 3/4 of the run, in the paper after 30, 60 and 80 of 90 epochs.",
        "The paper compares warm-ups at 8k, where scaling still holds; here it is done at twice the batch size at which "
        "scaling is claimed to hold, or four times.",
        "The paper's constant warm-up (25.88% error) is left out; unscaled and square-root arms keep the gradual one.",
        "Batch norm, where there is any, is ghost batch norm over 32 examples: the paper's is over a worker's 32 images.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("goyal2017"))
