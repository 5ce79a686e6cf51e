"""Lanczos against numpy's dense eigenvalues, on spectra that break naive iterations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator

from sharpness import top_eigenvalues


def with_spectrum(eigenvalues, n=None, seed=0):
    """A dense symmetric matrix with these eigenvalues (and zeros up to n) in random directions."""
    eigenvalues = np.asarray(eigenvalues, dtype=float)
    n = n or len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, len(eigenvalues))))
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


def outliers(n=600):
    """Like a trained network's Hessian: a few large eigenvalues above a bulk."""
    return np.r_[100.0, 60, 50, 40, 30, 20, 10, np.random.default_rng(1).exponential(0.1, n - 7)]


class Counting:
    """A matrix that counts its products and may compute them in float32."""

    def __init__(self, matrix, dtype=np.float64):
        self.matrix, self.shape = matrix.astype(dtype), matrix.shape
        self.dtype, self.products = np.dtype(dtype), 0

    def __matmul__(self, v):
        self.products += 1
        return self.matrix @ v.astype(self.dtype)


@pytest.mark.parametrize(
    "diagonal",
    [
        [5.0, -5.0, 1.0],  # power iteration oscillates between the two largest magnitudes
        [1e-7, 5e-8, 1e-8],  # an absolute tolerance calls all three converged
        [1e-30, 5e-31, -1e-30],
        [1e100, 3e99, -1e100],
        [-3.0, -2.0, -1.0],
        [3.0],
        [2.0, 2.0, 2.0, 2.0],
    ],
)
def test_small_diagonals_are_exact(diagonal):
    expected = np.sort(diagonal)[::-1]
    for k in range(1, len(diagonal) + 1):
        found = top_eigenvalues(np.diag(diagonal), k)
        np.testing.assert_allclose(found.values, expected[:k], rtol=1e-14)
        assert found.status == "converged" and found.converged and found.value == found.values[0]


def test_which():
    matrix = with_spectrum([6.0, 5.5, -7.0, -1.0, 0.5, *np.linspace(-0.4, 0.4, 295)])
    for which, expected in {"LA": [6, 5.5, 0.5], "SA": [-7, -1, -0.4], "LM": [-7, 6, 5.5]}.items():
        np.testing.assert_allclose(top_eigenvalues(matrix, 3, which=which, tol=1e-8).values, expected, rtol=1e-8)


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_all_copies_of_a_multiple_eigenvalue(tol):
    """A Krylov space of one vector holds one copy only: without fresh starts this returns (7, 3, ...)."""
    matrix = with_spectrum([7.0, 7, 7, *np.linspace(-1, 3, 497)])
    found = top_eigenvalues(matrix, 3, tol=tol)
    assert found.converged
    np.testing.assert_allclose(found.values, [7, 7, 7], rtol=tol)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(matrix @ found.vectors.T - found.vectors.T * found.values, axis=0),
                               found.residuals,
                               atol=1e-9)


def test_multiplicity_beyond_k_and_invariant_subspaces():
    found = top_eigenvalues(with_spectrum([7.0] * 5, n=500), 3)
    np.testing.assert_allclose(found.values, [7, 7, 7], rtol=1e-12)
    assert found.converged and found.matvecs < 20


def test_zero_operator():
    found = top_eigenvalues(np.zeros((500, 500)), 2)
    assert found.converged and found.matvecs < 10
    np.testing.assert_array_equal(found.values, [0, 0])


def test_an_eigenvalue_of_zero_is_known_to_rounding_only():
    """No relative error can be promised for it: the status says so, and the search ends."""
    found = top_eigenvalues(with_spectrum([5.0], n=300), 2)
    assert found.status == "precision" and not found.converged and found.matvecs < 20
    np.testing.assert_allclose(found.values, [5, 0], atol=1e-13)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
def test_tol_is_the_relative_error_and_residuals_are_true(k, tol):
    matrix = with_spectrum(outliers())
    found = top_eigenvalues(matrix, k, tol=tol)
    assert found.converged
    np.testing.assert_allclose(found.values, outliers()[:k], rtol=tol)
    true = np.linalg.norm(matrix @ found.vectors.T - found.vectors.T * found.values, axis=0)
    np.testing.assert_allclose(true, found.residuals, rtol=1e-3, atol=1e-11)


def test_products_are_few_and_counted():
    op = Counting(with_spectrum(outliers()))
    found = top_eigenvalues(op, 1)
    assert found.matvecs == op.products <= 15


def test_a_close_second_is_not_taken_for_the_first():
    """Over 100 seeds some starts are nearly orthogonal to the top; the fresh start must then find it."""
    matrix = with_spectrum([1.0, 0.99, *np.random.default_rng(2).exponential(0.01, 298)])
    values = [top_eigenvalues(matrix, 1, seed=seed).value for seed in range(100)]
    np.testing.assert_allclose(values, 1.0, rtol=1e-3)


def test_a_hidden_eigenvector_is_found_by_the_second_look():
    """The first start is orthogonal to the top eigenvector: only a fresh vector can see it."""
    n = 400
    start = np.random.default_rng(3).standard_normal(n)
    hidden = np.random.default_rng(4).standard_normal(n)
    hidden -= (hidden @ start) / (start @ start) * start
    hidden /= np.linalg.norm(hidden)
    rest = np.eye(n) - np.outer(hidden, hidden)
    spread = rest @ np.diag(np.r_[1.0, np.linspace(0, 0.05, n - 1)]) @ rest
    found = top_eigenvalues(spread + 1.1 * np.outer(hidden, hidden), 1, seed=3)
    assert found.converged
    np.testing.assert_allclose(found.value, 1.1, rtol=1e-3)


def test_no_ghosts_after_many_steps():
    """Without reorthogonalisation the top eigenvalue comes back as a false second one within 100 steps."""
    spectrum = np.r_[1000.0, np.linspace(1, 2, 499)]
    found = top_eigenvalues(with_spectrum(spectrum), 4, tol=1e-9, max_matvecs=500)
    assert found.matvecs > 150
    np.testing.assert_allclose(found.values, np.sort(spectrum)[::-1][:4], rtol=1e-9)


def test_thick_restart_when_the_basis_is_full(monkeypatch):
    """With memory for one vector the basis is limited to 3 k + 20 = 29, which is far from enough here."""
    monkeypatch.setattr("sharpness.linalg.eigen._BASIS_BYTES", 8 * 600)
    matrix = with_spectrum(np.r_[np.linspace(2, 3, 6), np.linspace(-1, 1, 594)])
    found = top_eigenvalues(matrix, 3, tol=1e-8, max_matvecs=1000)
    assert found.converged and found.matvecs > 29
    np.testing.assert_allclose(found.values, [3, 2.8, 2.6], rtol=1e-8)
    true = np.linalg.norm(matrix @ found.vectors.T - found.vectors.T * found.values, axis=0)
    np.testing.assert_allclose(true, found.residuals, rtol=1e-2, atol=1e-11)


def test_float32_products():
    """tol far below float32: stop with "precision" and say so, not loop; tol above it: converge."""
    matrix = with_spectrum(outliers())
    exact = np.linalg.eigvalsh(matrix)[::-1][:5]
    fine = top_eigenvalues(Counting(matrix, np.float32), 5, tol=1e-9)
    assert fine.status == "precision" and not fine.converged and fine.matvecs < 40 and fine.dtype == "float32"
    np.testing.assert_allclose(fine.values, exact, rtol=1e-6)
    assert top_eigenvalues(Counting(matrix, np.float32), 5, tol=1e-3).converged


def test_budget_includes_the_second_look():
    matrix = with_spectrum(outliers())
    needed = top_eigenvalues(matrix, 1).matvecs
    for budget in range(1, needed):
        op = Counting(matrix)
        found = top_eigenvalues(op, 1, max_matvecs=budget)
        assert op.products == found.matvecs == budget
        assert found.status == "max_matvecs" and not found.converged
    assert top_eigenvalues(matrix, 1, max_matvecs=needed).converged


def test_non_finite_products():
    matrix = np.diag([3.0, np.nan, 1.0])
    found = top_eigenvalues(matrix, 1)
    assert found.status == "nonfinite" and not found.converged and np.isnan(found.value) and found.vectors is None
    assert json.loads(json.dumps(found.to_dict()))["values"] == [None]


def test_to_dict_is_json():
    found = top_eigenvalues(np.diag([3.0, 2.0, 1.0]), 2)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    np.testing.assert_allclose(facts["values"], [3, 2])
    assert "vectors" not in facts and facts["matvecs"] == 3 and facts["seed"] == 0


def test_deterministic_and_deaf_to_the_global_generator():
    matrix = with_spectrum(outliers(100))
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = top_eigenvalues(matrix, 2, seed=5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(1)
    np.testing.assert_array_equal(first.vectors, top_eigenvalues(matrix, 2, seed=5).vectors)
    assert not np.array_equal(first.vectors, top_eigenvalues(matrix, 2, seed=6).vectors)


def test_scipy_operators_and_integer_matrices():
    matrix = with_spectrum(outliers(100))
    op = LinearOperator((100, 100), matvec=lambda v: matrix @ v, dtype=np.float64)
    np.testing.assert_allclose(top_eigenvalues(op, 2, tol=1e-8).values, [100, 60], rtol=1e-8)
    assert top_eigenvalues(np.array([[2, 1], [1, 2]])).value == pytest.approx(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 4}, "k is 4"),
        ({"k": 0}, "k is 0"),
        ({"which": "BE"}, "which is 'BE'"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"k": 2, "max_matvecs": 1}, "max_matvecs is 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        top_eigenvalues(np.eye(3), **arguments)


def test_wrong_operators():
    with pytest.raises(ValueError, match="square"):
        top_eigenvalues(np.ones((3, 2)))
    with pytest.raises(ValueError, match="not symmetric"):
        top_eigenvalues(np.triu(np.ones((50, 50))))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(n=st.integers(1, 24), k=st.integers(1, 24), which=st.sampled_from(["LA", "SA", "LM"]),
       seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-20, 1.0, 1e20]), rank=st.integers(0, 24))
def test_random_symmetric_matrices(n, k, which, seed, scale, rank):
    """Any symmetric matrix, singular and degenerate ones included, agrees with eigvalsh."""
    k, rng = min(k, n), np.random.default_rng(seed)
    factor = rng.integers(-2, 3, size=(n, min(rank, n))).astype(float)
    matrix = scale * (factor * rng.choice([-1.0, 1.0, 2.0], size=factor.shape[1])) @ factor.T
    dense = np.linalg.eigvalsh(matrix)
    key = {"LA": -dense, "SA": dense, "LM": -np.abs(dense)}[which]
    expected = dense[np.argsort(key, kind="stable")][:k]
    found = top_eigenvalues(matrix, k, which=which, tol=1e-9).values
    if which == "LM":
        found, expected = np.abs(found), np.abs(expected)  # ties of opposite sign have no order
    np.testing.assert_allclose(found, expected, atol=1e-8 * max(np.abs(dense).max(), 1e-300), rtol=0)


SPECTRA = {
    "power law": 10 / np.arange(1, 1001),
    "outliers and bulk": np.r_[[20, 12, 9, 8.5, 5, 3], np.random.default_rng(0).standard_normal(994) * 0.1],
    "close at the top": np.r_[[20, 19.9, 19.8, 5, 3, 2], np.random.default_rng(1).random(994) * 0.5],
    "log-normal": np.random.default_rng(2).lognormal(-3, 2, 1000),
    "indefinite": np.r_[[5.0, -7.0], np.random.default_rng(3).standard_normal(998) * 0.5],
}


class Diagonal:
    """A diagonal matrix as an operator."""

    def __init__(self, d):
        self.d, self.shape, self.products = d, (len(d), len(d)), 0

    def __matmul__(self, v):
        self.products += 1
        return self.d * v


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("tol", [1e-2, 1e-3])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_tol_keeps_its_word_as_a_relative_error(name, tol, k):
    """An early stop, or a second look that ends too soon, would miss one of two close eigenvalues."""
    d = SPECTRA[name]
    exact = np.sort(d)[::-1][:k]
    for seed in range(20):
        found = top_eigenvalues(Diagonal(d), k, tol=tol, seed=seed)
        assert found.converged
        assert np.all(np.abs(found.values - exact) <= tol * np.abs(exact)), (seed, found.values, exact)


def test_a_warm_start_saves_products():
    """Ignored, it would save nothing; trusted blindly, it would miss what has risen since."""
    d = SPECTRA["outliers and bulk"]
    before = top_eigenvalues(Diagonal(d), 3, tol=1e-6)
    drifted = d * (1 + 1e-3 * np.random.default_rng(5).standard_normal(len(d)))
    cold = top_eigenvalues(Diagonal(drifted), 3, tol=1e-3)
    warm = top_eigenvalues(Diagonal(drifted), 3, tol=1e-3, start=before.vectors)
    assert warm.converged and warm.matvecs < cold.matvecs
    risen = drifted.copy()
    risen[500] = 40.0
    found = top_eigenvalues(Diagonal(risen), 1, start=before.vectors)
    assert abs(found.value - 40.0) < 0.04


def test_a_block_finds_a_cluster():
    d = np.r_[[10.0] * 4, np.random.default_rng(0).random(596)]
    single, block = (top_eigenvalues(Diagonal(d), 4, block=b) for b in (1, 4))
    for found in (single, block):
        assert found.converged
        np.testing.assert_allclose(found.values, 10.0, rtol=1e-3)
    assert block.matvecs <= single.matvecs


def test_starts_of_the_wrong_kind_are_refused():
    for start in (np.ones(3), np.full(1000, np.nan), np.ones((2, 2, 1000))):
        with pytest.raises(ValueError, match="start has shape"):
            top_eigenvalues(Diagonal(SPECTRA["power law"]), start=start)
    with pytest.raises(ValueError, match="block is 0"):
        top_eigenvalues(Diagonal(SPECTRA["power law"]), block=0)
    parallel = np.ones((2, 1000))  # nothing new in the second
    assert top_eigenvalues(Diagonal(SPECTRA["power law"]), start=parallel).converged


@pytest.mark.parametrize("name", list(SPECTRA))
def test_the_second_look_finds_what_the_start_lacks(name):
    """A start orthogonal to the leading eigenvector never sees it: only the second look can."""
    d = np.sort(SPECTRA[name])[::-1].copy()
    for seed in range(10):
        start = np.random.default_rng(seed).standard_normal(len(d))
        start[0] = 0.0
        found = top_eigenvalues(Diagonal(d), start=start, seed=seed, tol=0.03)
        assert found.converged and abs(found.value - d[0]) <= 0.03 * d[0], seed
