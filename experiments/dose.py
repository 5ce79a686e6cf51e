"""How much of the small batch's advantage is the noise of its gradients?

Two things tell a small batch from a large one at an equal number of steps: its gradients are noisier, and it sees less data.
Here the large batch gets the noise alone: the examples of every batch of size B are weighted by 1 + s xi, xi Gaussian with
sum 0 and s^2 = B/b - 1. The gradient keeps its mean, and batch and weights together have the covariance Cov / b of a batch of
size b. If noise is what helps, the large batch then tests as the small one does.

Every run has a `noise_batch` b: the batch size whose noise it has (b = B: none added). Sharpness-aware minimisation with a
radius that ends at the same lambda_max asks whether what the noise does is to find flatter minima.

Wu et al. (ICML 2020, arXiv 1906.07405) inject such noise at single levels; this is a dose-response of our own.

Run it:  python -m experiments run dose --scale quick
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import log, log2

from experiments.lab.declare.claims import Claim, Contrast, Gate, Group, Kind, Power, ValueScale
from experiments.lab.declare.config import Budget, Model, Norm, RunConfig, Schedule
from experiments.lab.declare.study import Figure, Measure, Record, Request, Scale, Stage, Study, measure


@dataclass(frozen=True)
class Settings:
    """One scale: `base` is the large batch without noise."""

    base: RunConfig
    doses: tuple[int, ...]
    """batch sizes b whose noise is injected, and which are trained themselves"""
    dose: int
    """the one that the claims compare"""
    rho: float
    """SAM's radius"""
    straight: int = 64
    """smallest dose of the line through the doses"""
    margin: float = 0.1
    """percentage points of test accuracy"""
    equivalent: float = 0.25
    """a third of the gap that pilots show, in percentage points"""
    seeds: int = 8

    @property
    def large(self) -> int:
        return self.base.batch_size

    def noise(self) -> list[RunConfig]:
        return [self.base, *(self.base.replace(noise_batch=b) for b in self.doses)]

    def small(self) -> list[RunConfig]:
        return [self.base.replace(batch_size=b, noise_batch=b) for b in self.doses]

    def sam(self) -> list[RunConfig]:
        return [self.base.replace(sam_rho=self.rho)]


SGD = RunConfig(batch_size=512, noise_batch=512, lr=0.05, momentum=0.9, schedule=Schedule.COSINE, budget=Budget.STEPS, steps=640)
QUICK = SGD.replace(dataset="fashion-mini", n_train=4096, model=Model.MLP, width=128, depth=2)
CIFAR = SGD.replace(dataset="cifar10-jpeg", n_train=8192, model=Model.SMALL_CONV, norm=Norm.GROUP, steps=1024)
SETTINGS = {
    "quick": Settings(QUICK, (32, 64, 128, 256), 128, 0.03),
    "laptop": Settings(CIFAR, (64, 128), 128, 0.03, equivalent=0.9),
    "overnight": Settings(CIFAR.replace(batch_size=2048, noise_batch=2048), (64, 128, 256, 512), 128, 0.03),
}


def runs_of(request: Request, configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Every seed in turn, so that an early look is a balanced one."""
    own = configs if request.dataset is None else [c.replace(dataset=request.dataset) for c in configs]
    return [config.replace(seed=seed) for seed in request.seed_range(SETTINGS[request.scale].seeds) for config in own]


def noise_runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return runs_of(request, SETTINGS[request.scale].noise())


def small_runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return runs_of(request, SETTINGS[request.scale].small())


def sam_runs(request: Request, records: Sequence[Record]) -> list[RunConfig]:
    return runs_of(request, SETTINGS[request.scale].sam())


def measures(config: RunConfig) -> tuple[Measure, ...]:
    # of no claim: curvature along the noisy gradients; the learning rate ends at 0, so that 2/lr bounds nothing there
    examples = 1000 if config.dataset == "fashion-mini" else 500
    return measure("lambda_max", examples=examples), measure("own_batch_sharpness", batches=8)


def claims_of(scale: str, power: Power | None = None, analogue: str = "") -> tuple[Claim, ...]:
    """Margins: `margin` points of test accuracy (equivalence: a third of the pilots' gap), ln 1.25 for ratios."""
    s = SETTINGS[scale]
    large, dose = s.large, s.dose

    def group(stage: str, weight: float, b: int, name: str) -> Group:
        return Group(name, weight, (("stage", stage), ("noise_batch", b)))

    def plain(weight: float) -> Group:
        return group("noise", weight, large, f"B {large}")

    def noisy(weight: float, b: int = dose) -> Group:
        return group("noise", weight, b, f"noise {b}")

    def small(weight: float) -> Group:
        return group("small", weight, dose, f"B {dose}")

    def sam(weight: float) -> Group:
        return group("sam", weight, large, "SAM")

    # the slope of the least-squares line over the halvings of b
    levels = {large: 0.0, **{b: log2(large / b) for b in sorted(s.doses, reverse=True) if b >= s.straight}}
    centre = sum(levels.values()) / len(levels)
    total = sum((x - centre) ** 2 for x in levels.values())
    line = tuple((plain if b == large else partial(noisy, b=b))((x - centre) / total) for b, x in levels.items())
    points, seeds, flat = "percentage points", Gate("min_seeds", 8), Gate("converged", 0.1, "lambda_max")

    def claim(id: str, sentence: str, contrast: Contrast, *gates: Gate, kind: Kind = Kind.DIRECTIONAL, d: float = s.margin,
              primary: bool = False, diverged_as: float | None = 10.0) -> Claim:
        return Claim(
            id=f"{scale}-{id}", sentence=analogue + sentence, kind=kind, contrast=contrast, margin=d, primary=primary,
            gates=(seeds, *gates), scales=(scale,), diverged_as=diverged_as, power=power if primary else None,
            paper_source="unchecked: a study of our own; Wu et al. 2020 inject such noise at single levels",
        )

    with_noise = f"batch size {large} with the noise of {dose}"
    return (
        claim("noise-recovers", f"{with_noise} recovers more than half of the test accuracy by which batch size {dose} is ahead "
              "at equal steps and learning rate",
              Contrast("test_accuracy", (noisy(1.0), plain(-0.5), small(-0.5)), 1, points), primary=True),
        claim("small-tests-better", f"batch size {dose} tests better than batch size {large} at equal steps and learning rate",
              Contrast("test_accuracy", (small(1.0), plain(-1.0)), 1, points)),
        claim("noise-flattens", f"{with_noise} ends at a smaller lambda_max than without",
              Contrast("lambda_max", (noisy(1.0), plain(-1.0)), -1, "log ratio", ValueScale.LOG), flat, d=log(1.25),
              diverged_as=None),
        claim("as-flat-as-small", f"{with_noise} ends within 25% of the lambda_max of batch size {dose}",
              Contrast("lambda_max", (noisy(1.0), small(-1.0)), 1, "log ratio", ValueScale.LOG), flat, kind=Kind.EQUIVALENCE,
              d=log(1.25), diverged_as=None),
        # the words are part of the claim's hash and stay: points per halving of b
        claim("dose-response", f"the more noise, from none to that of batch size {min(levels)}, the better batch size "
              f"{large} tests: points a halving of b", Contrast("test_accuracy", line, 1, points)),
        claim("sam-recovers-as-much", f"at equal steps and a matched lambda_max, SAM at batch size {large} tests within "
              f"{s.equivalent} points of {with_noise}", Contrast("test_accuracy", (sam(1.0), noisy(-1.0)), 1, points),
              Gate("matched", 0.25, "lambda_max"), flat, kind=Kind.EQUIVALENCE, d=s.equivalent),
    )


# Pilots (seeds 1000 to 1005): test accuracy 83.90 (SD 0.22) at B 512, 84.57 (0.15) with the noise of 128, 84.69 (0.21) at B 128;
# lambda_max 38.9, 18.7 and 18.1, with SAM 18.6. The noise is 0.28 points above half of the gap; `sd` is that of the contrast
# over the root of 2, which is what a comparison of two groups would need.
POWER = Power(effect=0.27, sd=0.16, pilot="seeds 1000 to 1005 at B 512, with the noise of 128 and at B 128", seeds=8)
# `laptop` (seeds 1000 and 1001): 48.94 (SD 0.48) at B 512, 51.62 (0.39) with the noise of 128, 51.61 (0.21) at B 128; lambda_max
# is smaller without noise (2.5 against 3.4), for B 512 has fitted its data (train loss 0.015) and the others have not (0.5).
LAPTOP_POWER = Power(effect=1.0, sd=0.33, pilot="seeds 1000 and 1001 at B 512, with the noise of 128 and at B 128", seeds=8)
CLAIMS = (*claims_of("quick", POWER, "analogue: "), *claims_of("laptop", LAPTOP_POWER), *claims_of("overnight"))
ARMS = (
    ("large batch, noise alone", (("stage", "noise"),)),
    ("true batch size", (("stage", "small"),)),
    ("large batch, SAM", (("stage", "sam"),)),
)
AXES = (("x", "noise_batch"), ("arms", ARMS))

STUDY = Study(
    name="dose",
    title="How much of the small batch's advantage is the noise?",
    citation="a study of our own, after Wu et al. (arXiv 1906.07405) and Smith, Elsen and De (arXiv 2006.15081), both ICML 2020",
    scales=(
        Scale("quick", "an MLP, 4,096 images of Fashion-MNIST, B 512 with the noise of 4 batch sizes, 8 seeds",
              "about 2 minutes on two cores"),
        Scale("laptop", "a small conv net, 8,192 images of CIFAR-10 (JPEG copy), B 512, noise of 2 batch sizes, 8 seeds",
              "about 16 minutes on two cores"),
        Scale("overnight", "a small conv net, 8,192 images of CIFAR-10 (JPEG copy), B 2,048, noise of 4 batch sizes, 8 seeds",
              "an hour and a half on two cores (estimated)"),
    ),
    stages=(
        Stage("noise", noise_runs, measures=measures),
        Stage("small", small_runs, measures=measures),
        Stage("sam", sam_runs, measures=measures),
    ),
    claims=CLAIMS,
    figures=(
        Figure("dose_response", "values_vs_batch",
               (("values", ("test_accuracy", "train_loss", "lambda_max")), ("logarithmic", ("train_loss", "lambda_max")), *AXES)),
        Figure("batch_sharpness", "values_vs_batch",
               (("values", ("lambda_max", ("own_batch_sharpness", "batch sharpness"))), ("logarithmic", True), *AXES)),
        Figure("claims", "bars"),
    ),
    tried=(
        "`quick`, SAM against noise: 8 seeds see an effect of 0 within 0.25 points with 92% power at the pilot's spread; the "
        "interval reaches from -0.31 to -0.01 points, so that SAM is at best a little behind the noise. Its radius was "
        "matched on lambda_max in pilots and met it (19.8 against 18.8); other radii were not run with verdict seeds.",
        "The more noise, the better: the claim is of a least-squares line. Noise of 64 tests a little worse than noise of 128 "
        "at both scales (`quick` 84.28 against 84.53, `laptop` 51.16 against 51.43).",
        "`laptop`: without noise batch size 512 fits its images (training loss 0.014 nats, with the noise of 128 0.46), and "
        "the curvature of cross-entropy vanishes with the residuals: lambda_max is smaller without noise, not larger. At "
        "equal steps it compares unlike losses, so that no radius of SAM was sought that meets it; at 0.03 SAM fits as "
        "closely and tests as badly as the plain large batch.",
    ),
    deviations=(
        "The study is our own; Wu et al. inject such noise at one level for each network, with other noise models beside it.",
        "One learning rate for all arms, at `quick` the one of pilots at which the small batch gains most on the large one; "
        "the dose is the small batch size at which it does. `laptop` takes the rate over; its batch size and updates were "
        "chosen after a pilot in which noise of 64 had no time to train. Tuned learning rates are the subject of `smith2020`.",
        "`quick` trains an MLP on 4,096 images of Fashion-MNIST with B = 512, a quarter of the B of `overnight`.",
        "The radius of SAM is matched on lambda_max in pilots at `quick` alone; elsewhere a gate says whether it is.",
    ),
    module=__name__,
)

if __name__ == "__main__":
    from experiments.__main__ import run_study

    raise SystemExit(run_study("dose"))
