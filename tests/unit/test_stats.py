"""The statistics against scipy, hand computation, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis.stats import Estimate, contrast, crossed_bootstrap, holm, mean_interval, permutation_p, power, power_within

GROUPS = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=15).filter(lambda x: np.ptp(x) > 0.01)


@given(first=GROUPS, second=GROUPS)
@settings(deadline=None, max_examples=60)
def test_difference_is_welch(first: list[float], second: list[float]) -> None:
    """Another p, degrees of freedom or interval than Welch's."""
    ours, theirs = contrast([first, second], [1, -1]), scipy_stats.ttest_ind(first, second, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert ours.p_two_sided() == pytest.approx(theirs.pvalue, rel=1e-6)
    assert ours.df == pytest.approx(theirs.df, rel=1e-9)
    assert ours.interval() == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_contrast_of_four_and_of_one() -> None:
    """Weights that are not +1 and -1: a difference in differences, and a mean against 0."""
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.normal(i, 1, 6) for i in range(4))
    four = contrast([a, b, c, d], [1, -1, -1, 1])
    assert four.estimate == pytest.approx((a.mean() - b.mean()) - (c.mean() - d.mean()))
    assert four.se == pytest.approx(math.sqrt(sum(x.var(ddof=1) / 6 for x in (a, b, c, d))))
    assert contrast([b], [2]).interval() == pytest.approx(
        tuple(2 * x for x in scipy_stats.ttest_1samp(b, 0).confidence_interval(0.95))
    )


@pytest.mark.parametrize("group", [[1.0], [], [1.0, math.nan], [1.0, math.inf]])
def test_unknown_variance_is_refused(group: list[float]) -> None:
    """A NaN interval would pass for an answer."""
    with pytest.raises(ValueError, match="two values"):
        contrast([group, [1.0, 2.0]], [1, -1])


def test_no_spread_leaves_no_doubt() -> None:
    """0 / 0 where every run gives the same value, and an underflow where nearly every one does."""
    equal, apart = contrast([[1, 1], [1, 1]], [1, -1]), contrast([[2, 2], [1, 1]], [1, -1])
    assert (equal.p_two_sided(), apart.p_two_sided()) == (1.0, 0.0)
    assert apart.interval() == (1.0, 1.0)
    assert contrast([[0, 1e-90], [0, 1e-90]], [1, -1]).df == pytest.approx(2)


@given(estimate=st.floats(-2, 2), se=st.floats(0.05, 2), df=st.floats(1, 100), margin=st.floats(0.01, 3))
@settings(deadline=None)
def test_tost_is_the_larger_of_two_t_tests(estimate: float, se: float, df: float, margin: float) -> None:
    """Equivalence declared where the 90% interval leaves the margins, or the other way round."""
    effect = Estimate(estimate, se, df)
    t = scipy_stats.t(df)
    p = effect.p_equivalent(margin)
    assert p == pytest.approx(max(t.sf((estimate + margin) / se), t.cdf((estimate - margin) / se)), abs=1e-12)
    low, high = effect.interval(0.9)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (-margin < low and high < margin)


def test_holm_by_hand() -> None:
    """p .01 .04 .03 .005 at 5%: thresholds .0125 .0167 .025 reject .005 and .01, .03 stops, .04 keeps its level."""
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert [a.p for a in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [a.level for a in found] == pytest.approx([1 - 0.05 / 3, 0.975, 0.975, 0.9875])
    assert holm([]) == []


@given(st.lists(st.tuples(st.floats(-6, 6), st.floats(0.5, 2), st.integers(2, 40)), min_size=1, max_size=7))
@settings(deadline=None)
def test_adjusted_interval_excludes_zero_iff_rejected(effects: list[tuple[float, float, int]]) -> None:
    """A p value and an interval that contradict each other in one row of the table."""
    estimates = [Estimate(x, se, df) for x, se, df in effects]
    for estimate, adjusted in zip(estimates, holm([e.p_two_sided() for e in estimates]), strict=True):
        low, high = estimate.interval(adjusted.level)
        if abs(adjusted.p - 0.05) > 1e-9:
            assert (low > 0 or high < 0) == (adjusted.p < 0.05)


def test_interval_covers() -> None:
    """Intervals that are too short for unequal groups: 2,000 experiments, 95% of them within 4 standard errors."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(2000):
        low, high = contrast([rng.normal(1, 3, 6), rng.normal(0, 1, 15)], [1, -1]).interval()
        hits += low <= 1 <= high
    assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize(("effect", "sd", "seeds"), [(0.45, 0.34, 12), (1.0, 1.0, 8), (0.0, 1.0, 5)])
def test_power_is_the_rate_of_rejection(effect: float, sd: float, seeds: int) -> None:
    """A study planned with too few seeds; under no effect the power is the level."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(effect, sd, (20000, seeds)), rng.normal(0, sd, (20000, seeds))
    rate = float((scipy_stats.ttest_ind(x, y, axis=1).pvalue < 0.05).mean())
    expected = power(effect, sd, seeds)
    assert abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / 20000)


def test_power_far_out_is_one() -> None:
    """scipy gives NaN there, and a pilot's table would show it."""
    assert all(power(0.9434, 0.09543, n) == pytest.approx(1) for n in (8, 10, 12, 20))


@pytest.mark.parametrize("one_sided", [False, True])
def test_power_within_is_the_rate_of_equivalence(one_sided: bool) -> None:
    """An equivalence claim planned with too few seeds."""
    rng, margin, sd, n = np.random.default_rng(0), 0.5, 0.4, 12
    first, second = rng.normal(0, sd, (2, 4000, n))
    estimates = [contrast([a, b], [1, -1]) for a, b in zip(first, second, strict=True)]
    met = [e.p_above(-margin) < 0.05 if one_sided else e.p_equivalent(margin) < 0.05 for e in estimates]
    assert np.mean(met) == pytest.approx(power_within(margin, sd, n, one_sided=one_sided), abs=0.02)


@pytest.mark.parametrize(("sd", "seeds"), [(0.0, 8), (1.0, 1), (math.nan, 8)])
def test_power_without_spread_or_seeds_is_refused(sd: float, seeds: int) -> None:
    """A power of NaN."""
    with pytest.raises(ValueError, match="power needs"):
        power(1.0, sd, seeds)


def test_permutation_by_hand() -> None:
    """Three against three, wholly apart: 2 of the 20 exchanges are as extreme."""
    assert permutation_p([1, 2, 3], [7, 8, 9]) == pytest.approx(2 / 20)
    rng = np.random.default_rng(3)
    sampled = permutation_p(rng.normal(3, 1, 20), rng.normal(0, 1, 20), resamples=999)
    assert sampled == pytest.approx(2 / 1000)  # two-sided: twice (0 + 1) / (999 + 1)


def test_crossed_bootstrap_has_its_closed_variance() -> None:
    """An interval that forgets the test examples or the seeds: variance of the replicates in closed form."""
    rng = np.random.default_rng(4)
    n, E = 6, 150
    groups = [rng.normal(m, 1, (n, 1)) + rng.normal(0, 5, (1, E)) + rng.normal(0, 1, (n, E)) for m in (1, 0)]
    weights = (1.0, -0.5)

    def second_moment(k: int) -> np.ndarray:
        """E[u u^T] of multinomial weights u / k."""
        return np.full((k, k), 1 / k**2) + (np.eye(k) - 1 / k) / k**2

    both, total, mean = second_moment(E), 0.0, sum(w * g.mean() for w, g in zip(weights, groups, strict=True))
    for i, (v, x) in enumerate(zip(weights, groups, strict=True)):
        for j, (w, y) in enumerate(zip(weights, groups, strict=True)):
            seeds = second_moment(n) if i == j else np.full((n, n), 1 / n**2)
            total += v * w * np.trace(seeds @ x @ both @ y.T)
    low, high = crossed_bootstrap(groups, weights, resamples=8000)
    assert (high - low) / (2 * 1.96) == pytest.approx(math.sqrt(total - mean**2), rel=0.05)
    assert low < mean < high


def test_mean_of_one_seed_has_no_interval() -> None:
    """An interval of width 0 where nothing is known of the spread."""
    mean, low, high = mean_interval([3.0])
    assert mean == 3.0 and math.isnan(low) and math.isnan(high)
    assert all(math.isnan(end) for end in mean_interval([1.0, 3.0])[1:])
    assert mean_interval([1.0, 3.0, 4.0])[1:] == pytest.approx(contrast([[1.0, 3.0, 4.0]], [1]).interval())
