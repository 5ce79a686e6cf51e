"""Golden weights: what a few updates make of each network, in float64.

If one of these changes, stored runs no longer come from this code: raise SCIENCE_VERSION in experiments/lab/config.py
and pin the numbers that `PYTHONPATH=tests:. python tests/unit/test_golden.py` prints.
"""

from __future__ import annotations

import math

import pytest
import torch
from toy_runs import NETWORKS, NORMS, SIZES, run, toy_config, toy_data

from experiments.lab.declare.config import Augment, Machine, Model, Norm, Optimizer, Precision, RunConfig, Schedule
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.initial import initial_model

CHANGED = "golden weights changed: raise SCIENCE_VERSION in experiments/lab/config.py, then pin the new numbers"
GOLDEN: dict[str, tuple[float, float]] = {
    "mlp none": (8.554563475464041, -54.7260532889123),
    "mlp batch": (11.75462631388851, -67.4526034348269),
    "mlp ghost": (11.754596848333428, -67.4368627809414),
    "mlp group": (11.750707626926063, -67.3204803300475),
    "mlp layer": (11.750707626926063, -67.3204803300475),
    "small-conv none": (17.287772158258303, -208.30742689771824),
    "small-conv batch": (24.311231389621508, -56.576835300867344),
    "small-conv ghost": (24.31445964965868, -56.57065537380282),
    "small-conv group": (24.300881317520705, -56.39433049374958),
    "small-conv layer": (24.300873171557548, -56.394209762756596),
    "keskar-c1 none": (37.706791865020406, -2338.55890542964),
    "keskar-c1 batch": (53.24924806741247, 1491.9966230771372),
    "keskar-c1 ghost": (53.25915415605241, 1492.4754170404135),
    "keskar-c1 group": (53.245521101427315, 1492.2212849413536),
    "keskar-c1 layer": (53.245478115466014, 1492.217903542336),
    "keskar-c2 none": (97.61651711515664, 26992.767990096894),
    "keskar-c2 batch": (173.67707683330656, -6812.806461787146),
    "keskar-c2 ghost": (142.51702726968423, -6827.121217442182),
    "keskar-c2 group": (137.79731549265443, -6822.189344532377),
    "resnet8 none": (15.774614834613164, 155.75941243375448),
    "resnet8 batch": (27.133601124480517, 1902.197573658757),
    "resnet8 ghost": (27.18134887822287, 1902.2994362819636),
    "resnet8 group": (27.332748128338196, 1902.3605460544552),
    "resnet8 layer": (27.332382820078035, 1902.0975937889625),
    "resnet20 none": (26.399469588705546, 3331.5696868304867),
    "resnet20 batch": (46.50461858812013, -1195.0311492273993),
    "resnet20 ghost": (46.6354431613761, -1193.6524965534368),
    "resnet20 group": (46.22899232966184, -1194.9769532788212),
    "resnet20 layer": (46.29524497306035, -1195.2258073694757),
    "resnet32 batch": (74.16022234698286, 466.97858812252946),
    "resnet44 group": (71.67687763446767, -234.2798847576058),
    "resnet56 layer": (83.35059247626357, -663.1873453720821),
    "wrn16-4 none": (47.59025033976616, -3992.329159699529),
    "wrn16-4 batch": (76.82338579782889, 2952.641168761421),
    "wrn16-4 ghost": (76.82110642634454, 2952.726598224125),
    "wrn16-4 group": (76.81584316858185, 2952.8656260281223),
    "wrn16-4 layer": (76.81574343290787, 2952.8154034788895),
    "vit none": (119.90207556432688, -957.115336000313),
}
OUTCOMES: dict[str, tuple[float, float]] = {
    "sgd": (166.94136263341048, 8.315133307164663),
    "adam": (167.97473315276437, 7.982331272354647),
    "adamw": (169.9871104815646, 7.964308454124019),
    "lars": (167.07840392324513, 8.681282566958414),
    "lamb": (166.89737105489303, 8.593231607919991),
}
INITIAL = (7.117976427095347, 16.296762086166073)


def numbers(weights: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Norm of the weights, and their product with a fixed vector, which sees their order."""
    flat = torch.cat([weights[name].flatten().double() for name in sorted(weights)])
    return flat.norm().item(), (flat @ torch.cos(torch.arange(len(flat), dtype=torch.float64))).item()


def set_weights(model: torch.nn.Module) -> None:
    """Waves of the right size. Not the initial weights: torch's generators differ in their last bit between processors."""
    with torch.no_grad():
        for p in model.parameters():
            wave = torch.cos(torch.arange(p.numel(), dtype=torch.float64)).view(p.shape)
            p.copy_(1 + 0.1 * wave if (p == 1).all() else wave * math.sqrt(2 / p[0].numel()))


def updated(model: Model, norm: Norm) -> tuple[float, float]:
    """Updates of SGD with momentum across the end of an epoch: step 8 of 72 examples."""
    config = toy_config(model=model, **NORMS[norm], precision=Precision.FLOAT64, batch_size=8, lr=0.01, momentum=0.9, seed=7)
    data = toy_data(config, SIZES.get(model, 8))
    engine = SingleEngine(config, Machine(), data, initial_model(config, Machine(), data))
    set_weights(engine.model())
    engine.step = 8
    engine.advance(10)
    return numbers({name: p.detach() for name, p in engine.model().named_parameters()})


def trained(optimizer: Optimizer) -> tuple[float, float]:
    """A whole run with schedule, augmentation, dropout, batch norm and its final evaluation."""
    config: RunConfig = toy_config(
        model=Model.KESKAR_C1, norm=Norm.BATCH, precision=Precision.FLOAT64, augment=Augment.CROP_FLIP,
        optimizer=optimizer, lr=0.001, weight_decay=0.01, schedule=Schedule.COSINE, warmup=0.3, steps=6,
    )
    start = initial_model(config, Machine(), toy_data(config, 10))
    set_weights(start)
    outcome, _ = run(config, size=10, parent=start.state_dict())
    return numbers(outcome.weights)[0], outcome.values["test_loss"]


@pytest.mark.parametrize(("model", "norm"), NETWORKS)
def test_golden_weights(model: Model, norm: Norm) -> None:
    """Stored runs and new ones would be compared as if one code had made them."""
    assert updated(model, norm) == pytest.approx(GOLDEN[f"{model} {norm}"], rel=1e-9), CHANGED


def test_golden_initial_weights() -> None:
    """Another initialiser would make every seed another run; to the last bits of float32."""
    config = toy_config(model=Model.SMALL_CONV, seed=7)
    start = initial_model(config, Machine(), toy_data(config)).state_dict()
    assert numbers(start) == pytest.approx(INITIAL, rel=1e-5), CHANGED


@pytest.mark.parametrize("optimizer", Optimizer)
def test_golden_outcomes(optimizer: Optimizer) -> None:
    """The same, for everything else that a run is made of."""
    assert trained(optimizer) == pytest.approx(OUTCOMES[optimizer], rel=1e-9), CHANGED


if __name__ == "__main__":
    for model, norm in NETWORKS:
        print(f'    "{model} {norm}": {updated(model, norm)},')
    first = toy_config(model=Model.SMALL_CONV, seed=7)
    print(f"INITIAL = {numbers(initial_model(first, Machine(), toy_data(first)).state_dict())}")
    for optimizer in Optimizer:
        print(f'    "{optimizer}": {trained(optimizer)},')
