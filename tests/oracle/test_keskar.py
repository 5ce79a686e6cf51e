"""Keskar's metric against closed forms, enumerated vertices and a direct transcription of its protocol."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from sharpness import epsilon_sharpness, hessian, top_eigenvalues
from sharpness.flatness.box import Start, maximise_in_box
from sharpness.flatness.keskar import STARTS


def quadratic(matrix, center):
    """f(y) = (y - c)^T H (y - c) / 2 with its gradient."""
    return lambda y: (float((y - center) @ matrix @ (y - center)) / 2, matrix @ (y - center))


def starts_for(radius, seed=0, number=12):
    rng = np.random.default_rng(seed)
    interior = [Start(f"interior {i}", rng.uniform(-radius, radius)) for i in range(number)]
    return interior + [Start(f"signs {i}", rng.uniform(-radius, radius), 10) for i in range(number)]


def by_vertices(function, radius):
    """The maximum of a convex function over the box is at a vertex."""
    return max(function(np.array(signs) * radius)[0] for signs in itertools.product((-1.0, 1.0), repeat=len(radius)))


def test_diagonal_quadratic_at_its_minimum():
    """The origin has no gradient: exactly 0 in one evaluation. The other starts: the closed form."""
    curvature, radius = np.array([1e4, 3.0, 1e-3, 0.0, 50.0]), np.array([1e-3, 2e-3, 1e-3, 5e-3, 1e-4])
    function = quadratic(np.diag(curvature), np.zeros(5))
    origin = maximise_in_box(function, -radius, radius, [Start("origin", np.zeros(5))])
    assert origin.value == 0.0 and origin.ascents[0].evaluations == 1
    best = maximise_in_box(function, -radius, radius, starts_for(radius))
    assert best.value == pytest.approx((curvature * radius**2).sum() / 2, rel=1e-12)


def test_diagonal_quadratic_off_its_minimum_and_with_negative_curvature():
    """Per coordinate: the farther face where curvature is positive, the centre where it is negative."""
    curvature, center = np.array([4.0, 1.0, -3.0, -2.0, 0.5]), np.array([0.3, -0.2, 0.5, 9.0, 0.0])
    radius = np.array([1.0, 0.5, 2.0, 1.0, 3.0])
    candidates = np.stack([-radius, radius, np.clip(center, -radius, radius)])
    expected = (curvature * (candidates - center) ** 2 / 2).max(axis=0).sum()
    function = quadratic(np.diag(curvature), center)
    best = maximise_in_box(function, -radius, radius, starts_for(radius), iterations=50)
    assert best.value == pytest.approx(expected, rel=1e-9)
    assert np.all(np.abs(best.point) <= radius) and function(best.point)[0] == best.value


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), p=st.integers(1, 7))
def test_dense_convex_quadratics_against_all_vertices(seed, p):
    """Never above the true maximum, and equal to it with enough starts."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((p, p))
    radius, center = rng.uniform(0.1, 2.0, p), 0.3 * rng.standard_normal(p)
    function = quadratic(factor @ factor.T, center)
    best = maximise_in_box(function, -radius, radius, starts_for(radius, number=40))
    assert best.value == pytest.approx(by_vertices(function, radius), rel=1e-9)


def test_the_best_point_counts_not_the_last():
    """The sign step jumps from near the top of a cosine far below it, and there the search is cut off."""

    def function(y):
        return float(np.cos(3 * y).sum()), -3 * np.sin(3 * y)

    near = np.full(3, -0.01)
    found = maximise_in_box(function, -np.ones(3), np.ones(3), [Start("a", near, 3, 2)])
    assert found.ascents[0].evaluations == 2 and found.value == function(near)[0]
    np.testing.assert_array_equal(found.point, near)


def test_limits_and_non_finite_values():
    def cliff(y):
        return (float(y.sum()), np.ones(2)) if y.sum() < 0.5 else (np.inf, np.ones(2))

    box = np.ones(2)
    found = maximise_in_box(cliff, -box, box, [Start("a", np.zeros(2)), Start("b", box)])
    assert found.value == 0.0 and [a.status for a in found.ascents] == ["nonfinite", "nonfinite"]
    assert found.ascents[1].value is None
    limited = maximise_in_box(quadratic(np.diag([1.0, 3.0]), box / 3), -box, box, [Start("a", 0.1 * box, 0, 2)])
    assert limited.ascents[0].evaluations == 2 and limited.ascents[0].status == "evaluations"
    with pytest.raises(ValueError, match="outside the box"):
        maximise_in_box(cliff, -box, box, [Start("a", 2 * box)])


class Weights(nn.Module):
    """Outputs its weights for every example, so that the loss below is an exact quadratic in them."""

    def __init__(self, weights):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, x):
        return self.w.expand(len(x), -1)


def quadratic_problem(matrix, minimum, weights, height=0.0):
    """Model, loss and data with f(w) = height + (w - minimum)^T matrix (w - minimum) / 2."""
    h = torch.tensor(matrix, dtype=torch.float64)

    def loss(outputs, targets):
        d = outputs - targets
        return height + (torch.einsum("bi,ij,bj->b", d, h, d) / 2).mean()

    target = torch.tensor(minimum, dtype=torch.float64).expand(7, -1)
    return Weights(weights), loss, (torch.zeros(7, 1), target)


def test_phi_at_a_minimum_has_its_closed_form():
    curvature, weights, epsilon = np.array([300.0, 20.0, 1.0, 0.0]), np.array([0.5, -2.0, 0.0, 1.0]), 1e-3
    found = epsilon_sharpness(*quadratic_problem(np.diag(curvature), weights, weights, height=0.25), batch_size=3)
    expected = 100 * (curvature * (epsilon * (np.abs(weights) + 1)) ** 2).sum() / 2 / 1.25
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.value_origin == 0.0 and found.loss == pytest.approx(0.25)
    assert found.start != "origin" and found.examples == 7 and found.n == 4 and found.status == "ok"


def test_phi_off_the_minimum_has_its_closed_form():
    curvature, weights, epsilon = np.array([300.0, 20.0, 1.0]), np.array([0.5, -2.0, 0.0]), 5e-4
    offset = np.array([0.01, -0.02, 0.3])
    found = epsilon_sharpness(*quadratic_problem(np.diag(curvature), weights - offset, weights), epsilon=epsilon)
    at_x = (curvature * offset**2).sum() / 2
    highest = (curvature * (np.abs(offset) + epsilon * (np.abs(weights) + 1)) ** 2).sum() / 2
    for value in (found.value, found.value_origin):
        assert value == pytest.approx(100 * (highest - at_x) / (1 + at_x), rel=1e-9)


def directions(n, p, seed):
    """A [n, p] as epsilon_sharpness draws it."""
    state = np.random.SeedSequence([seed, 0]).generate_state(1, np.uint64)[0]
    return torch.randn((p, n), generator=torch.Generator().manual_seed(int(state) >> 1)).double().numpy().T


def test_subspace_phi_against_all_vertices():
    """A is [n, p] from N(0, 1), the box that of A+ x: unit-norm columns or the box of x are far off."""
    rng = np.random.default_rng(5)
    factor, weights = rng.standard_normal((20, 20)), rng.standard_normal(20)
    matrix = factor @ factor.T
    found = epsilon_sharpness(*quadratic_problem(matrix, weights, weights), subspace=4, seed=9, epsilon=1e-2)
    basis = directions(20, 4, seed=9)
    radius = 1e-2 * (np.abs(np.linalg.pinv(basis) @ weights) + 1)
    highest = by_vertices(quadratic(basis.T @ matrix @ basis, np.zeros(4)), radius)
    assert found.value == pytest.approx(100 * highest, rel=1e-6)
    assert found.value_origin == 0.0 and found.subspace == 4


def test_directions_are_drawn_from_the_standard_normal():
    """Uniform or unit-norm columns would change phi, which depends on their scale."""
    basis = directions(40_000, 3, seed=2)
    np.testing.assert_allclose(basis.T @ basis / len(basis), np.eye(3), atol=0.03)
    assert (np.abs(basis) > 1.96).mean() == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize("start", ["origin", "sign-ascent"])
def test_subspace_of_many_float32_weights(start):
    """Sums over 70,000 products in float32 would drift: compare with the float64 model in the same directions.

    n is beyond the length at which sums change to float64.
    """
    rng, n = np.random.default_rng(4), 70_000
    weights, scale = rng.standard_normal(n), torch.from_numpy(rng.uniform(0.0, 2.0, n))
    found = []
    for dtype in (torch.float64, torch.float32):
        model = Weights(weights).to(dtype)
        loss = lambda out, _: (out[0] ** 2 * scale.to(out)).double().mean()  # noqa: E731
        data = (torch.zeros(1, 1, dtype=dtype), torch.zeros(1))
        found.append(epsilon_sharpness(model, loss, data, subspace=5, epsilon=1e-2, starts=[start]))
    exact, rough = found
    basis, curvature = directions(n, 5, seed=0), 2 * scale.numpy() / n
    radius = 1e-2 * (np.abs(np.linalg.lstsq(basis, weights)[0]) + 1)
    at_x, slope = (curvature * weights**2).sum() / 2, basis.T @ (curvature * weights)
    rise = by_vertices(quadratic(basis.T @ (curvature[:, None] * basis), np.zeros(5)), radius)
    assert exact.value <= 100 * (rise + np.abs(slope) @ radius) / (1 + at_x)
    assert rough.value == pytest.approx(exact.value, rel=1e-4) and exact.value > 0


def test_a_given_eigenvector_is_used_for_its_signs_alone(make_case):
    """Products would be spent again, or a vector of other length or scale would move the corners."""
    case = make_case("mlp")
    first = epsilon_sharpness(case.model, case.loss, case.data, subspace=3)
    assert 0 < first.hessian_products <= 12
    op = hessian(case.model, case.loss, case.data)
    vector = top_eigenvalues(op, tol=0.05, max_matvecs=12).vectors[0]
    given = epsilon_sharpness(case.model, case.loss, case.data, subspace=3, eigenvector=vector)
    scaled = epsilon_sharpness(case.model, case.loss, case.data, subspace=3, eigenvector=1e-3 * vector)
    assert given.hessian_products == 0 and given.starts == scaled.starts == first.starts
    unused = epsilon_sharpness(case.model, case.loss, case.data, starts=["origin"], eigenvector=vector)
    assert [s.name for s in unused.starts] == ["origin"]
    for wrong in (vector[:-1], 0 * vector, np.nan * vector, vector[None]):
        with pytest.raises(ValueError, match="eigenvector has shape"):
            epsilon_sharpness(case.model, case.loss, case.data, eigenvector=wrong)


def test_the_origin_start_is_the_papers_protocol(make_case):
    """Ten iterations of scipy's L-BFGS-B from y = 0, transcribed on the dense weights with plain autograd."""
    case = make_case("mlp")
    parameters = list(case.model.parameters())
    x = torch.nn.utils.parameters_to_vector(parameters).detach().numpy().copy()
    found = epsilon_sharpness(case.model, case.loss, case.data, starts=["origin"], epsilon=1e-2, batch_size=4)
    seen = []

    def negative(y):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(x + y), parameters)
        value = case.loss(case.model(case.inputs), case.targets)
        seen.append(value.item())
        return -seen[-1], -torch.nn.utils.parameters_to_vector(torch.autograd.grad(value, parameters)).numpy()

    bounds = [(-r, r) for r in 1e-2 * (np.abs(x) + 1)]
    options = {"maxiter": 10, "ftol": 0, "gtol": 0}
    minimize(negative, np.zeros_like(x), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    assert found.value_origin == pytest.approx(100 * (max(seen) - seen[0]) / (1 + seen[0]), rel=1e-6)
    assert found.value == found.value_origin and found.start == "origin"
    assert found.starts[0].iterations <= 10


def test_more_starts_never_lower_it_and_stay_affordable(make_case):
    case = make_case("mlp")
    all_starts = epsilon_sharpness(case.model, case.loss, case.data, starts=STARTS)
    usual = epsilon_sharpness(case.model, case.loss, case.data)
    assert usual.starts == tuple(s for s in all_starts.starts if s.name != "interior")
    assert all_starts.value == max(s.value for s in all_starts.starts) >= all_starts.value_origin > 0
    assert all_starts.evaluations <= 80 and all_starts.hessian_products <= 12
    assert [s.name for s in all_starts.starts] == ["origin", "interior", "eigenvector+", "eigenvector-", "sign-ascent"]
    assert all_starts.evaluations == 1 + sum(s.evaluations for s in all_starts.starts)
    facts = json.loads(json.dumps(all_starts.to_dict(), allow_nan=False))
    assert facts["value"] == all_starts.value and len(facts["starts"]) == 5
    assert epsilon_sharpness(case.model, case.loss, case.data, starts=["interior"]).value_origin is None


@pytest.mark.parametrize("subspace", [None, 6])
def test_batches_and_repetition_change_nothing_and_seeds_do(make_case, subspace):
    case = make_case("bn eval")
    first, again, batched, other = (
        epsilon_sharpness(
            case.model, case.loss, case.data, subspace=subspace, starts=STARTS, batch_size=b, seed=s
        )
        for b, s in ((None, 0), (None, 0), (4, 0), (None, 1))
    )
    assert first == again and batched.value == pytest.approx(first.value, rel=1e-6)
    assert first.starts[1].name == "interior" and first.starts[1] != other.starts[1]


def test_float32_models_are_measured_at_a_minimum(make_case):
    """Differences of a float32 loss in a box of 1e-3 must not drown: compare with the float64 model."""
    case = make_case("mlp")
    optimizer = torch.optim.LBFGS(case.model.parameters(), max_iter=200)
    regularised = lambda out, targets: case.loss(out, targets) + 0.1 * (out**2).mean()  # noqa: E731

    def closure():
        optimizer.zero_grad()
        value = regularised(case.model(case.inputs), case.targets)
        value.backward()
        return value

    optimizer.step(closure)
    exact = epsilon_sharpness(case.model, regularised, case.data)
    case.model.float()
    rough = epsilon_sharpness(case.model, regularised, (case.inputs.float(), case.targets))
    assert rough.dtype == "float32" and exact.value > exact.value_origin
    assert rough.value == pytest.approx(exact.value, rel=0.02)


def test_a_loss_not_finite_within_the_box_is_said():
    """log(w) at w = 5e-4, in a box that reaches below zero: NaN must neither win nor stay unsaid."""
    model = Weights([5e-4])
    data = (torch.zeros(4, 1), torch.zeros(4))
    found = epsilon_sharpness(model, lambda out, _: -torch.log(out[:, 0]).mean(), data)
    assert found.status == "nonfinite" and np.isfinite(found.value)
    assert "nonfinite" in {s.status for s in found.starts}


def test_wrong_input_is_refused(make_case):
    case = make_case("mlp")
    for options, message in [
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"subspace": 0}, "subspace is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"starts": "origin"}, "starts is 'origin'"),
        ({"starts": ["corner"]}, "starts is"),
        ({"starts": []}, "starts is"),
    ]:
        with pytest.raises(ValueError, match=message):
            epsilon_sharpness(case.model, case.loss, case.data, **options)
    with pytest.raises(ValueError, match="above -1"):
        epsilon_sharpness(case.model, lambda out, _: out.mean() * 0 - 2, case.data)
