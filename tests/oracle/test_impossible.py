"""A statistic that cannot be true is never called "ok": each kind of contradiction, with a control beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy_nets import CROSS_ENTROPY, class_data, quadratic_model, relu_net

from sharpness import (
    average_case_sharpness,
    barrier,
    contradictions,
    effective_rank,
    epsilon_sharpness,
    fisher,
    fisher_rao_norm,
    frobenius_norm,
    ggn,
    gradient_hessian_overlap,
    hessian,
    noise_scale_from_batches,
    norm_scaled,
    random_direction,
    random_perturbation,
    slice_1d,
    slice_2d,
    spectral_density,
    top_eigenvalues,
    trace,
)

torch.set_num_threads(1)


def norms(size, measurements=60, scale=1.0, squared=4.0, noise=200.0, seed=0):
    """|G_size|^2 as logged, `scale` times too large."""
    chi = np.random.default_rng([seed, size]).chisquare(40, measurements) / 40
    return scale * (squared + noise / size) * chi


def test_micro_batches_logged_after_division_by_their_number():
    """|G_small|^2 is 16 times too small: the covariance has a negative trace."""
    right = noise_scale_from_batches(norms(16), norms(64), small=16, big=64)
    wrong = noise_scale_from_batches(norms(16, scale=1 / 16), norms(64), small=16, big=64)
    assert right.status == "ok" and right.interval[0] <= right.value <= right.interval[1]
    assert wrong.trace < 0 and wrong.status == "impossible" and np.isnan([wrong.value, *wrong.interval]).all()


def test_a_squared_norm_below_zero():
    """|G_big|^2 is 16 times too small: the signal is."""
    wrong = noise_scale_from_batches(norms(16), norms(64, scale=1 / 16), small=16, big=64)
    assert wrong.gradient_squared < 0 and wrong.status == "impossible" and np.isnan(wrong.value)
    with pytest.raises(ValueError, match="below 0"):
        noise_scale_from_batches(-norms(16), norms(64), small=16, big=64)


@pytest.mark.parametrize("seed", range(8))
def test_chance_is_not_called_impossible(seed):
    """No noise, or no signal, within the scatter of a few measurements: unresolved at worst, and never beside its interval."""
    for squared, noise in ((4.0, 0.5), (0.001, 200.0)):
        few = {"measurements": 8, "squared": squared, "noise": noise, "seed": seed}
        found = noise_scale_from_batches(norms(16, **few), norms(64, **few), small=16, big=64)
        assert found.status in ("ok", "unresolved")
        assert found.status == "unresolved" or found.interval[0] <= found.value <= found.interval[1]
        assert found.trace >= 0 or np.isnan(found.value)


class Wrong:
    """A matrix that says it has no negative eigenvalues."""

    def __init__(self, eigenvalues, semidefinite=True):
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((len(eigenvalues),) * 2))[0]
        self.matrix, self.semidefinite = (q * eigenvalues) @ q.T, semidefinite
        self.shape, self.dtype = self.matrix.shape, np.dtype("float64")

    def __matmul__(self, v):
        return self.matrix @ v


def of_operator(op):
    """Everything that an operator gives."""
    return {
        "smallest": top_eigenvalues(op, which="SA"),
        "density": spectral_density(op, probes=3, steps=20),
        "hutchinson": trace(op, method="hutchinson", matvecs=20),
        "hutch++": trace(op, matvecs=20),
        "xtrace": trace(op, method="xtrace", matvecs=20),
        "exact": trace(op, matvecs=60),
        "frobenius": frobenius_norm(op, matvecs=60),
    }


def test_negative_eigenvalues_of_a_matrix_that_has_none():
    """A Fisher matrix, by wrong products."""
    values = np.r_[np.linspace(-2, -1, 5), np.zeros(15), np.linspace(0.1, 0.3, 20)]
    assert {found.status for found in of_operator(Wrong(values)).values()} == {"impossible"}
    assert not {"impossible"} & {f.status for f in of_operator(Wrong(values, semidefinite=False)).values()}
    low_rank = np.r_[np.zeros(35), np.linspace(1, 2, 5)]  # rounding may fall below zero
    assert not {"impossible"} & {f.status for f in of_operator(Wrong(low_rank)).values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [fisher, ggn, lambda *a: fisher(*a, kind="empirical"), lambda *a: fisher(*a, kind="sampled")])
def test_no_false_alarm_on_fisher_and_ggn(make, dtype):
    op = make(relu_net(dtype), CROSS_ENTROPY, class_data(24, dtype))
    assert op.semidefinite
    found = of_operator(op)
    assert not {"impossible"} & {f.status for f in found.values()}
    assert not contradictions(*found.values(), semidefinite=True)


def test_ggn_of_a_loss_that_is_not_known_to_be_convex_may_be_indefinite():
    def loss(outputs, targets):
        return -nn.functional.cross_entropy(outputs, targets)

    op = ggn(relu_net(), loss, class_data())
    assert not op.semidefinite and top_eigenvalues(op, which="SA").status == "converged"
    assert not hessian(relu_net(), CROSS_ENTROPY, class_data()).semidefinite


def test_curvature_of_the_gradient_below_zero():
    model, data = relu_net(), class_data()
    n = sum(p.numel() for p in model.parameters())
    op = Wrong(-np.ones(n))
    vectors = np.eye(n)[:2]
    assert gradient_hessian_overlap(model, CROSS_ENTROPY, data, op, vectors, mixtures=2).status == "impossible"
    op.semidefinite = False
    assert gradient_hessian_overlap(model, CROSS_ENTROPY, data, op, vectors, mixtures=2).status == "ok"


def test_effective_rank_outside_its_range():
    """A square estimated below zero is not resolved; a rank below 1 needs negative eigenvalues."""
    mixed = np.r_[np.ones(20), -np.ones(20)]
    found = [effective_rank(Wrong(mixed, semidefinite=False), matvecs=6, seed=seed) for seed in range(12)]
    assert {f.status for f in found if f.value < 0} == {"unresolved"} and any(f.value < 0 for f in found)
    assert effective_rank(Wrong(mixed), matvecs=40).status == "impossible"
    assert effective_rank(Wrong(np.ones(40)), matvecs=10).status == "ok"


def test_stable_rank_outside_its_range():
    norm = frobenius_norm(Wrong(np.ones(40)), matvecs=20)
    assert norm.stable_rank(1.0)[0] == pytest.approx(40)
    for spectral in (10.0, 0.5):  # more than the whole, and less than each
        with pytest.raises(ValueError, match="no matrix"):
            norm.stable_rank(spectral)


def test_results_of_two_matrices_contradict_each_other():
    small, large = Wrong(np.linspace(0.1, 1, 40)), Wrong(np.linspace(0.1, 20, 40))
    top = top_eigenvalues(large)
    assert not contradictions(top, *of_operator(large).values(), semidefinite=True)
    assert "||H||_F" in contradictions(top, frobenius_norm(small, matvecs=20))[0]
    assert "tr H" in contradictions(top, trace(Wrong(np.linspace(0, 0.2, 40))), semidefinite=True)[0]
    assert "density has a node" in contradictions(top_eigenvalues(small), spectral_density(large, steps=20))[0]
    assert "smallest" in contradictions(top_eigenvalues(small), top_eigenvalues(Wrong(np.full(40, 5.0)), which="SA"))[0]
    assert "rows" in contradictions(top, trace(np.eye(3)))[0]
    with pytest.raises(ValueError, match="results holds a float"):
        contradictions(1.0)


def test_density_that_does_not_integrate_to_one():
    op = Wrong(np.linspace(0, 1, 40))
    assert spectral_density(op, steps=20).status == "ok"
    cut = spectral_density(op, steps=20, grid=np.linspace(-1, 0.5, 400))
    assert cut.status == "partial" and np.trapezoid(cut.values, cut.grid) < 0.7
    coarse = spectral_density(op, steps=20, grid=np.linspace(-1, 2, 40), sigma=1e-3)
    assert coarse.status == "coarse" and abs(np.trapezoid(coarse.values, coarse.grid) - 1) > 0.05


def test_a_rise_below_rounding_has_no_error_of_zero():
    """float32 weights do not move by 1e-12: every rise is 0, and so would its standard error be."""
    model, data = relu_net(torch.float32), class_data(dtype=torch.float32)
    for measure, size in ((random_perturbation, {"sigma": 1e-12}), (average_case_sharpness, {"rho": 1e-12})):
        tiny = measure(model, CROSS_ENTROPY, data, draws=4, **size)
        assert tiny.status == "unresolved"
        assert measure(model, CROSS_ENTROPY, data, draws=4, **dict.fromkeys(size, 0.05)).status == "ok"


def test_a_search_that_sees_less_than_its_own_start():
    """A loss that falls from call to call: phi would be 0, the flattest there is."""
    calls = [0]

    def loss(outputs, targets):
        calls[0] += 1
        return nn.functional.mse_loss(outputs, targets) + 1 / calls[0]

    model, data, *_ = quadratic_model()
    try:
        found = epsilon_sharpness(model, loss, data, starts=["origin"], epsilon=1e-9)
    except ValueError:
        return  # refused earlier: better
    assert found.status == "impossible"


def test_barrier_of_a_path_that_misses_its_ends():
    sums = np.cumsum([0.0] + [0.1] * 10)  # ends at 0.9999999999999999
    assert sums[-1] != 1 and barrier(sums, np.r_[1.0, np.full(9, 3.0), 2.0]) == 1.0
    with pytest.raises(ValueError, match="both ends"):
        barrier([0.1, 0.5, 0.9], [1.0, 3.0, 2.0])
    with pytest.raises(ValueError, match="two values at one end"):
        barrier([0.0, 0.0, 1.0], [1.0, 1.5, 2.0])


def test_a_slice_whose_hook_moves_the_weights():
    """The value at 0 would not be the loss there."""
    model, data = relu_net(), class_data()
    ends = {name: t.clone() for name, t in model.state_dict().items()}, {k: 2 * t for k, t in model.state_dict().items()}

    def hook(module):
        with torch.no_grad():
            next(module.parameters()).mul_(0.9)

    with pytest.raises(ValueError, match="recalibrate changed the weights"):
        slice_1d(model, CROSS_ENTROPY, data, start=ends[0], end=ends[1], alphas=[0.0, 1.0], recalibrate=hook)
    plain = slice_1d(model, CROSS_ENTROPY, data, start=ends[0], end=ends[1], alphas=[0.0, 1.0])
    assert plain.losses[0] == CROSS_ENTROPY(model(data[0]), data[1]).item()


def test_cosine_of_very_short_directions():
    """Norms that underflow gave NaN with status "ok"."""
    model, data = relu_net(), class_data(6)
    d = [1e-200 * random_direction(model, seed) for seed in (0, 1)]
    found = slice_2d(model, CROSS_ENTROPY, data, directions=d, alphas=[0.0], betas=[0.0])
    assert abs(found.cosine) < 0.5


def test_error_of_one_example_is_none():
    model, (x, t) = relu_net(), class_data(1)
    assert fisher_rao_norm(model, CROSS_ENTROPY, (x, t)).standard_error is None


def test_scaled_eigenvalues_of_other_parameters_or_unconverged():
    model, data = relu_net(), class_data()
    all_of_it = top_eigenvalues(hessian(model, CROSS_ENTROPY, data))
    with pytest.raises(ValueError, match="params select"):
        norm_scaled(all_of_it, model, params=["0.weight"])
    rough = top_eigenvalues(hessian(model, CROSS_ENTROPY, data), tol=1e-9, max_matvecs=3)
    assert norm_scaled(rough, model).status == rough.status == "max_matvecs"
