"""Every public function with wrong arguments of each kind: ValueError, in one sentence, never another function's traceback."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from toy_nets import CROSS_ENTROPY, own_labels, relu_net

import sharpness
from sharpness import flat_weights, random_direction, top_eigenvalues

torch.set_num_threads(1)
NET = relu_net(torch.float64)
NORMED = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.BatchNorm1d(3)).double()
DATA = own_labels()
N = sum(p.numel() for p in NET.parameters())
STATE = {k: t.clone() for k, t in NET.state_dict().items()}
OTHER = {k: 2 * t for k, t in STATE.items()}
MATRIX = np.diag(np.arange(1.0, 9.0))
DIRECTIONS = [random_direction(NET, seed) for seed in (0, 1)]
W = flat_weights(NET)


def make_model():
    return relu_net()


RIGHT: dict[str, dict[str, Any]] = {
    "add_offset": {"model": NET, "inputs": DATA[0]},
    "average_case_sharpness": {"rho": 0.1, "draws": 2},
    "barrier": {"alphas": [0, 0.5, 1], "losses": [1.0, 2.0, 1.0]},
    "basin_radius": {"directions": 2, "tolerance": 0.1},
    "batch_sharpness": {"batch": 4, "batches": 2},
    "connect": {"start": STATE, "end": OTHER, "steps": 1, "points": 3},
    "contradictions": {},
    "cost_estimate": {"metrics": "fisher_rao_norm"},
    "diagonal": {"op": MATRIX},
    "effective_rank": {"op": MATRIX},
    "epsilon_sharpness": {"starts": ["origin"], "iterations": 1},
    "filter_normalise": {"model": NET, "direction": W},
    "fisher": {},
    "fisher_rao_norm": {},
    "flat_weights": {"model": NET},
    "frobenius_norm": {"op": MATRIX},
    "ggn": {},
    "gradient_hessian_overlap": {"op": np.eye(N), "vectors": np.eye(N)[:2], "mixtures": 2},
    "gradient_noise": {},
    "hessian": {},
    "layers": {"model": NET},
    "local_entropy": {"gamma": 1e4, "samples": 4},
    "named_tensors": {"model": NET, "v": W},
    "noise_scale_from_batches": {"small_squared": [4.0, 5.0, 4.5], "big_squared": [3.0, 2.9, 3.1], "small": 2, "big": 8},
    "norm_scaled": {"eigenvalues": [1.0], "model": NET},
    "pac_bayes_sigma": {"draws": 2, "tolerance": 0.5},
    "panel": {"metrics": "fisher_rao_norm"},
    "plane_through": {"a": W, "b": 2 * W, "c": DIRECTIONS[0]},
    "random_direction": {"model": NET, "seed": 0},
    "random_perturbation": {"sigma": 0.01, "draws": 2},
    "recalibrate_batch_norm": {"model": NORMED, "batches": [DATA]},
    "relative_trace": {"probes": 2},
    "slice_1d": {"start": STATE, "end": OTHER, "alphas": [0.0, 1.0]},
    "slice_2d": {"directions": DIRECTIONS, "alphas": [0.0], "betas": [0.0, 1.0]},
    "spectral_density": {"op": MATRIX, "probes": 2, "steps": 3},
    "top_eigenvalues": {"op": MATRIX},
    "trace": {"op": MATRIX},
    "trajectory_directions": {"checkpoints": [W, 2 * W, DIRECTIONS[0]]},
    "worst_case_sharpness": {"rho": 0.1, "steps": 2},
}
FUNCTIONS = [name for name in sharpness.__all__ if inspect.isfunction(getattr(sharpness, name))]

COUNT = (-1, 1.5, "3", math.nan, True, [3])
REAL = (-1.0, 0, math.nan, math.inf, "0.1", True, [0.1], torch.ones(2))
CHOICE = ("no such", 3, ["l2"])
VECTOR = ("path.pt", [1.0, "a"], np.ones((2, 3, 4)), object(), {"a": 1}, np.array([np.nan] * N), np.array(["x"]))
WEIGHTS = ("weights.pt", [1.0], {"0.weight": torch.ones(2)}, {**STATE, "0.bias": STATE["0.bias"].numpy()}, NET, make_model)
OPERATOR = (make_model, "H.npy", [[1.0]], NET, np.ones(3), np.ones((2, 3)), np.zeros((0, 0)), np.eye(3) * 1j, None, dict)
MODEL = (make_model, type(NET), "model.pt", None, STATE, DATA, CROSS_ENTROPY.forward)
LOSS = ("mse", None, DATA, 0.5, STATE)
INPUTS = (DATA[0].numpy(), DATA[1].numpy())
DATA_WRONG = ("train.pt", None, 3, NET, INPUTS, DATA[0], (DATA[0], DATA[1][:-1]), [1, 2], iter([DATA]), make_model, [])
FLAG = ("yes", 1.5, None)
WRONG: dict[str, tuple[Any, ...]] = {
    "model": MODEL, "loss": LOSS, "data": DATA_WRONG, "op": OPERATOR,
    "params": ("0.weight", ["no such"], [], 3, [0], {"0.weight", 1}), "batch_size": (0, *COUNT), "mode": CHOICE,
    "seed": (-1, 1.5, "0", None, 2**64, True), "progress": ("yes", 3),
    "rho": REAL, "sigma": REAL, "gamma": REAL, "temperature": REAL, "rise": REAL, "tolerance": REAL, "tol": (*REAL, 1.0),
    "learning_rate": REAL, "loss_rise": REAL, "accuracy_drop": (*REAL, 1.0), "epsilon": (-1.0, math.nan, "0.1", True, [0.1]),
    "k": (0, 10**9, *COUNT), "steps": COUNT, "starts": COUNT, "m": (0, 10**9, *COUNT), "draws": (0, *COUNT),
    "samples": (0, 5, *COUNT), "directions": (0, 1, *COUNT), "probes": (0, 1, *COUNT), "matvecs": (0, 1, *COUNT),
    "mixtures": (0, 1, *COUNT), "batch": (0, 10**9, *COUNT), "batches": (0, *COUNT), "block": (0, *COUNT),
    "max_matvecs": (0, *COUNT), "iterations": (0, *COUNT), "subspace": (0, *COUNT), "points": (2, *COUNT),
    "examples": (0, *COUNT), "small": (0, *COUNT), "big": (0, *COUNT), "order": (0, *COUNT),
    "norm": CHOICE, "scale": CHOICE, "scaling": CHOICE, "method": CHOICE, "which": CHOICE, "kind": CHOICE, "labels": CHOICE,
    "quantity": CHOICE, "curve": CHOICE, "bn_mode": CHOICE, "above": CHOICE, "about": CHOICE, "normalise": CHOICE, "by": CHOICE,
    "adaptive": FLAG, "antithetic": FLAG, "logit_normalised": FLAG, "exact": FLAG, "shared": FLAG,
    "start": WEIGHTS, "end": WEIGHTS, "weights": WEIGHTS, "center": VECTOR, "direction": VECTOR, "vectors": VECTOR, "v": VECTOR,
    "eigenvector": VECTOR, "a": VECTOR, "b": VECTOR, "c": VECTOR, "checkpoints": ([W], [W, W[:-1]], "w.pt", W, [STATE, STATE]),
    "alphas": ("0", [], [[0.0]], [math.nan], None, ["a"]), "betas": ("0", [], [math.inf], None),
    "losses": ("0", [1.0], None, ["a", "b", "c"]), "grid": ("0", [], [[0.0]], [math.nan]),
    "small_squared": ("a", [1.0], None, [[[1.0]]]), "big_squared": ("a", [1.0], None, [-1.0, 1.0, 1.0]),
    "eigenvalues": ("a", {"a": 1}, None, np.ones((2, 2))), "metrics": ("no such", 3, ["lambda_max", 3], None),
    "recalibrate": ("hook", 3), "calibration": ("train.pt", 3), "checkpoint": (3, ["a"]), "devices": ("cpu", []),
    "memory": ("2G", -1, None), "weight": ("words", 3), "at": ("no such", 3, None), "inputs": ("x", None, DATA[1]),
    "semidefinite": (),
}
OF: dict[tuple[str, str], tuple[Any, ...]] = {
    ("basin_radius", "tolerance"): (*REAL, 1.0),
    ("epsilon_sharpness", "epsilon"): REAL,
    ("epsilon_sharpness", "starts"): ("origin", [], ["x"], 3),
    ("named_tensors", "v"): (*VECTOR[:5], W[:-1]),
    ("noise_scale_from_batches", "big"): (1, *COUNT),
    ("noise_scale_from_batches", "examples"): (1, 2.5, "a"),
    ("random_direction", "weights"): WEIGHTS,
    ("recalibrate_batch_norm", "batches"): (3, [], [1], None, NET),
    ("slice_2d", "directions"): (DIRECTIONS[:1], "ab", 3, [W, W], [W, W[:-1]], STATE, None),
    ("spectral_density", "sigma"): REAL,
    ("spectral_density", "steps"): (0, *COUNT),
    ("top_eigenvalues", "start"): ("x", np.ones(3), [np.nan] * 8),
    ("worst_case_sharpness", "steps"): (0, *COUNT),
}
NEEDS: dict[tuple[str, str], dict[str, str]] = {
    ("pac_bayes_sigma", "epsilon"): {"scaling": "magnitude"},
    ("pac_bayes_sigma", "loss_rise"): {"quantity": "loss"},
    ("random_perturbation", "epsilon"): {"scaling": "magnitude"},
    ("slice_1d", "calibration"): {"bn_mode": "recalibrate"},
    ("slice_2d", "calibration"): {"bn_mode": "recalibrate"},
    ("slice_2d", "recalibrate"): {"bn_mode": "recalibrate"},
}
CASES = [pytest.param(name, argument, index, id=f"{name}-{argument}-{index}")
         for name in FUNCTIONS
         for argument in inspect.signature(getattr(sharpness, name)).parameters
         for index in range(len(OF.get((name, argument), WRONG.get(argument, ()))))]


def call(name: str, **change: Any) -> Any:
    function = getattr(sharpness, name)
    given = {"model": NET, "loss": CROSS_ENTROPY, "data": DATA}
    takes = inspect.signature(function).parameters
    arguments = {k: v for k, v in given.items() if k in takes} | RIGHT[name] | change
    if name == "contradictions":
        return function(*arguments.pop("results", ()), **arguments)
    found = function(**arguments)
    return list(found) if name == "panel" else found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_right_arguments_are_right(name):
    """Else every refusal below would be for nothing; and no argument is forgotten there."""
    call(name)
    arguments = set(inspect.signature(getattr(sharpness, name)).parameters)
    assert arguments - WRONG.keys() - {"starts", "results", "options", "wide"} == set()


def refused(name: str, **change: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call(name, **change)
    assert type(caught.value) is ValueError
    return str(caught.value)


@pytest.mark.parametrize("name, argument, index", CASES)
def test_wrong_arguments_are_refused_in_one_sentence(name, argument, index):
    wrong = OF.get((name, argument), WRONG.get(argument, ()))[index]
    said = refused(name, **NEEDS.get((name, argument), {}), **{argument: wrong})
    assert "\n" not in said and 10 < len(said) < 330, said


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if "loss" in inspect.signature(getattr(sharpness, n)).parameters])
def test_swapped_arguments(name):
    """Loss and data exchanged, model and loss exchanged: as people who remember another order write them."""
    for change in ({"loss": DATA, "data": CROSS_ENTROPY}, {"model": CROSS_ENTROPY, "loss": NET}, {"model": DATA, "data": NET}):
        said = refused(name, **change)
        assert "\n" not in said and len(said) < 330, said


def test_methods_of_results():
    density = sharpness.spectral_density(MATRIX, probes=2, steps=3)
    for order in COUNT:
        with pytest.raises(ValueError, match="order is"):
            density.moments(order)
    for level in (0, 1, "0.95", math.nan):
        with pytest.raises(ValueError, match="level is"):
            sharpness.trace(MATRIX).confidence_interval(level)
    for size in REAL:
        with pytest.raises(ValueError, match="spectral_norm is"):
            sharpness.frobenius_norm(MATRIX).stable_rank(size)


def test_numbers_of_numpy_and_tensors_are_accepted():
    """A count or a radius out of numpy is a number too, and a matrix may be a tensor."""
    found = top_eigenvalues(torch.from_numpy(MATRIX).float(), np.int64(2), tol=np.float32(1e-3))
    assert found.values[0] == pytest.approx(8) and found.dtype == "float64"
    right = sharpness.random_perturbation(NET, CROSS_ENTROPY, DATA, sigma=0.01, draws=2).value
    assert sharpness.random_perturbation(NET, CROSS_ENTROPY, DATA, sigma=np.float64(0.01), draws=np.int32(2)).value == right
    scaled = sharpness.filter_normalise(NET, torch.from_numpy(W).requires_grad_())
    np.testing.assert_array_equal(scaled, sharpness.filter_normalise(NET, W))
