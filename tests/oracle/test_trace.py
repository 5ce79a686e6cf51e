"""Trace, Frobenius norm and effective rank against dense matrices; their errors against the true ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sharpness.linalg.traces import effective_rank, frobenius_norm, trace
from sharpness.operators.curvature import hessian

METHODS = ("hutchinson", "hutch++", "xtrace")
N = 60
SPECTRA = {
    "fast decay": 2.0 ** -np.arange(N),
    "slow decay": 0.9 ** np.arange(N),
    "flat": 1 + 0.5 * np.random.default_rng(1).random(N),
    "indefinite": np.random.default_rng(2).standard_normal(N),
}


def dense(eigenvalues):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))
    return (q * eigenvalues) @ q.T


def calibration(estimate, truth, trials):
    """Root mean square of the stated error over that of the true one."""
    found = [estimate(seed) for seed in range(trials)]
    assert all(f.status in ("ok", "unresolved") for f in found)  # a square estimated below 0
    stated = np.mean([f.standard_error**2 for f in found])
    return np.sqrt(stated / np.mean([(f.value - truth) ** 2 for f in found]))


@pytest.mark.parametrize("spectrum", ["flat", "indefinite", "slow decay"])
def test_hutchinson_interval_covers(spectrum):
    matrix = dense(SPECTRA[spectrum])
    found = [trace(matrix, method="hutchinson", matvecs=30, seed=s) for s in range(4000)]
    intervals = [f.confidence_interval() for f in found]
    covered = np.mean([low <= np.trace(matrix) <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.97, covered


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("matvecs", [12, 45])
@pytest.mark.parametrize("method", METHODS)
def test_stated_error_is_the_true_one(method, matvecs, spectrum):
    """The published error of XTrace, without the covariance, is 0.64 of the true one for slow decay."""
    matrix = dense(SPECTRA[spectrum])
    ratio = calibration(lambda s: trace(matrix, method=method, matvecs=matvecs, seed=s), matrix.trace(), 500)
    assert 0.8 <= ratio <= 1.5, ratio


@pytest.mark.parametrize("method", METHODS)
def test_unbiased(method):
    matrix = dense(SPECTRA["slow decay"])
    errors = [trace(matrix, method=method, matvecs=24, seed=s).value - matrix.trace() for s in range(2000)]
    assert abs(np.mean(errors)) < 3.5 * np.std(errors) / np.sqrt(2000)


def test_xtrace_is_its_definition():
    """Each probe against an explicit basis of the others' images."""
    matrix, k = dense(SPECTRA["indefinite"]), 5
    omega = np.random.default_rng(3).standard_normal((k, N)).T
    each = []
    for i in range(k):
        q, _ = np.linalg.qr(matrix @ np.delete(omega, i, 1))
        w = omega[:, i] - q @ (q.T @ omega[:, i])
        each.append(np.trace(q.T @ matrix @ q) + (N - k + 1) / (w @ w) * (w @ matrix @ w))
    found = trace(matrix, method="xtrace", matvecs=2 * k, seed=3)
    np.testing.assert_allclose(found.value, np.mean(each), rtol=1e-11)
    paper = np.std(each, ddof=1) / np.sqrt(k)
    assert paper * (1 - 1e-9) <= found.standard_error <= 2 * paper * (1 + 1e-9)


def test_decay_pays():
    """Hutch++ and XTrace must beat Hutchinson where the spectrum decays: a lost sketch would go unseen."""
    matrix = dense(SPECTRA["fast decay"])
    found = [[trace(matrix, method=m, matvecs=30, seed=s).value for s in range(50)] for m in METHODS]
    plain, sketched, exchanged = np.mean((np.array(found) - matrix.trace()) ** 2, axis=1)
    assert exchanged < 0.1 * sketched < 1e-5 * plain


@pytest.mark.parametrize("method", METHODS)
def test_low_rank_is_exact(method):
    """A rank below the sketch: its basis is degenerate, and must not divide by zero."""
    matrix = dense(np.r_[5.0, -3, 1, np.zeros(N - 3)])
    found = trace(matrix, method=method, matvecs=30)
    assert found.status == "ok"
    if method != "hutchinson":
        assert abs(found.value - 3) < 1e-11 and found.standard_error < 1e-11


@pytest.mark.parametrize("method", METHODS)
def test_edges(method):
    for matrix, expected in ((np.diag([5.0, -5, 1]), 1), (np.eye(1) * 3, 3), (dense(SPECTRA["flat"]), None)):
        n = len(matrix)
        found = trace(matrix, method=method, matvecs=n)
        np.testing.assert_allclose(found.value, matrix.trace() if expected is None else expected, rtol=1e-13)
        assert (found.status, found.standard_error, found.matvecs) == ("exact", 0, n)
        assert found.confidence_interval() == (found.value, found.value)
    zero = trace(np.zeros((9, 9)), method=method, matvecs=8)
    assert (zero.value, zero.standard_error, zero.status) == (0, 0, "ok")
    huge = trace(1e200 * dense(SPECTRA["flat"]), method=method, matvecs=30, seed=1)
    same = trace(dense(SPECTRA["flat"]), method=method, matvecs=30, seed=1)
    np.testing.assert_allclose(huge.standard_error, 1e200 * same.standard_error, rtol=1e-6)
    for bad in (np.nan, np.inf):
        found = trace(np.full((9, 9), bad), method=method, matvecs=8)
        assert found.status == "nonfinite" and np.isnan([found.value, found.standard_error]).all()
        assert json.loads(json.dumps(found.to_dict()))["value"] is None


def test_diagonal_without_spread():
    """Sign probes see a diagonal exactly: here an error of 0 is right."""
    found = trace(np.diag([5.0, -5, 1]), method="hutchinson", matvecs=2)
    assert found.value == 1 and found.standard_error == 0 and found.status == "ok"


def test_refusals():
    matrix = dense(SPECTRA["flat"])
    for method, least in (("hutchinson", 2), ("hutch++", 4), ("xtrace", 4)):
        trace(matrix, method=method, matvecs=least)
        with pytest.raises(ValueError, match=f"{least} or more"):
            trace(matrix, method=method, matvecs=least - 1)
    for f, least in ((frobenius_norm, 2), (effective_rank, 3)):
        f(matrix, matvecs=least)
        with pytest.raises(ValueError, match=f"{least} or more"):
            f(matrix, matvecs=least - 1)
    for wrong in (0, True, 10.0, -1):
        with pytest.raises(ValueError, match="matvecs"):
            trace(matrix, matvecs=wrong)
    with pytest.raises(ValueError, match="method"):
        trace(matrix, method="hutch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="square"):
        trace(np.ones((2, 3)))
    with pytest.raises(ValueError, match="level"):
        trace(matrix).confidence_interval(95)


@pytest.mark.parametrize("method", METHODS)
def test_network(make_case, method):
    """On a real Hessian: near the dense trace, and two seeds agree within their errors."""
    case = make_case("mlp")
    h, op = case.dense_hessian(), hessian(case.model, case.loss, case.data)
    found = [trace(op, method=method, matvecs=30, seed=s) for s in (0, 1)]
    for f in found:
        low, high = f.confidence_interval(0.999)
        assert low <= np.trace(h) <= high
        assert (f.n, f.examples, f.mode, f.dtype) == (len(h), 13, "eval", "float64")
    together = np.hypot(found[0].standard_error, found[1].standard_error)
    assert 0 < abs(found[0].value - found[1].value) < 3.5 * together
    before = op.matvecs
    exact = trace(op, method=method, matvecs=len(h))
    assert op.matvecs - before == exact.matvecs == len(h)
    np.testing.assert_allclose(exact.value, np.trace(h), rtol=1e-10)


def test_same_seed_same_bits():
    matrix = dense(SPECTRA["flat"])
    for method in METHODS:
        first, second, other = (trace(matrix, method=method, matvecs=20, seed=s) for s in (0, 0, 1))
        assert first.matvecs == 20 and first == second and first.value != other.value


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_norm_and_rank_errors(spectrum):
    matrix = dense(SPECTRA[spectrum])
    norm = np.linalg.norm(matrix)
    assert 0.8 < calibration(lambda s: frobenius_norm(matrix, matvecs=30, seed=s), norm, 600) < 1.5
    rank = (np.trace(matrix) / norm) ** 2
    assert 0.8 < calibration(lambda s: effective_rank(matrix, matvecs=30, seed=s), rank, 600) < 1.5


def test_norm_and_rank_edges(make_case):
    h = make_case("mlp").dense_hessian()
    found, rank = frobenius_norm(h, matvecs=len(h)), effective_rank(h, matvecs=len(h))
    np.testing.assert_allclose(found.value, np.linalg.norm(h), rtol=1e-13)
    np.testing.assert_allclose(rank.value, (np.trace(h) / np.linalg.norm(h)) ** 2, rtol=1e-12)
    assert found.status == rank.status == "exact" and found.standard_error == rank.standard_error == 0
    assert effective_rank(np.eye(7)).value == pytest.approx(7)
    assert effective_rank(np.diag([5.0, -5, 1])).value == pytest.approx(1 / 51)
    ratio, _ = found.stable_rank(np.linalg.norm(h, 2))
    assert ratio == pytest.approx((np.linalg.norm(h) / np.linalg.norm(h, 2)) ** 2)
    for matvecs in (5, 9):
        zero, none = (f(np.zeros((9, 9)), matvecs=matvecs) for f in (frobenius_norm, effective_rank))
        assert zero.value == zero.standard_error == 0
        assert none.status == "zero" and np.isnan(none.value)
        for f in (frobenius_norm, effective_rank):
            bad = f(np.full((9, 9), np.nan), matvecs=matvecs)
            assert bad.status == "nonfinite" and np.isnan(bad.value)
    same = effective_rank(h, matvecs=20, seed=4)
    assert same.trace == trace(h, method="hutchinson", matvecs=20, seed=4).value
    assert same.frobenius_norm == frobenius_norm(h, matvecs=20, seed=4).value
    with pytest.raises(ValueError, match="positive"):
        found.stable_rank(0.0)


def test_chunks_change_nothing(monkeypatch):
    """Large n: probes go a few at a time, and the unit vectors of a later chunk are later ones."""
    matrix = dense(SPECTRA["indefinite"])
    for m in (20, N):
        whole = trace(matrix, method="hutchinson", matvecs=m), effective_rank(matrix, matvecs=m)
        with monkeypatch.context() as patch:
            patch.setattr("sharpness.linalg.traces._CHUNK_BYTES", 8 * N * 7)
            parts = trace(matrix, method="hutchinson", matvecs=m), effective_rank(matrix, matvecs=m)
        for one, other in zip(whole, parts, strict=True):
            assert (one.matvecs, one.status) == (other.matvecs, other.status)
            assert one.value == pytest.approx(other.value, rel=1e-12)
