"""The statistics behind a verdict: pure functions of arrays, each with its equation.

Sources: Welch 1947 and Satterthwaite 1946 (degrees of freedom), Schuirmann 1987 (two one-sided tests), Holm 1979
(step-down), Owen 2007 (the crossed, or pigeonhole, bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

ALPHA = 0.05
"""two-sided level of a single test"""


@dataclass(frozen=True)
class Estimate:
    """A linear contrast sum_g w_g mean_g with its standard error and Welch-Satterthwaite degrees of freedom.

    estimate = sum_g w_g mean_g,  se^2 = sum_g v_g  with  v_g = w_g^2 s_g^2 / n_g,  df = se^4 / sum_g v_g^2 / (n_g - 1).
    With se = 0 (all values of each group equal) df is infinite: intervals have no width and tests no doubt.
    """

    estimate: float
    se: float
    df: float

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """estimate -+ t_{(1 + level) / 2, df} se."""
        half = float(stats.t.ppf((1 + level) / 2, self.df)) * self.se if self.se else 0.0
        return self.estimate - half, self.estimate + half

    def p_two_sided(self) -> float:
        """P(|T| >= |estimate| / se) under a contrast of 0."""
        return min(1.0, 2 * self._upper_tail(abs(self.estimate)))

    def p_above(self, bound: float) -> float:
        """One-sided p of "the contrast is at most `bound`", against above it."""
        return self._upper_tail(self.estimate - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p of "the contrast is at least `bound`", against below it."""
        return self._upper_tail(bound - self.estimate)

    def p_equivalent(self, margin: float) -> float:
        """Two one-sided tests of "the contrast lies outside (-margin, margin)": the larger p. Below 5% exactly when the
        90% interval lies inside."""
        return max(self.p_above(-margin), self.p_below(margin))

    def _upper_tail(self, distance: float) -> float:
        if self.se == 0:
            return 0.0 if distance > 0 else 1.0
        return float(stats.t.sf(distance / self.se, self.df))


def contrast(groups: Sequence[ArrayLike], weights: Sequence[float]) -> Estimate:
    """The contrast sum_g weights[g] * mean(groups[g]); groups [g][n_g].

    Raises ValueError with fewer than two values in a group: its variance is then unknown.
    """
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    for group in values:
        if group.size < 2 or not np.isfinite(group).all():
            raise ValueError("each group of a contrast needs at least two values, all finite")
    means = np.array([group.mean() for group in values])
    counts = np.array([group.size for group in values])
    parts = np.square(weights) * np.array([group.var(ddof=1) for group in values]) / counts
    variance = float(parts.sum())
    df = 1 / float(((parts / variance) ** 2 / (counts - 1)).sum()) if variance else math.inf
    return Estimate(float(np.dot(weights, means)), math.sqrt(variance), df)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """first - second of two independent samples: se^2 = se_1^2 + se_2^2, df = se^4 / (se_1^4 / df_1 + se_2^4 / df_2)."""
    se = math.hypot(first.se, second.se)
    doubt = first.se**4 / first.df + second.se**4 / second.df
    return Estimate(first.estimate - second.estimate, se, se**4 / doubt if doubt else math.inf)


def permutation_p(first: ArrayLike, second: ArrayLike, *, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p of a difference in means when the labels of two groups [n], [m] are exchanged.

    Exact when there are at most `resamples` exchanges, else (b + 1) / (resamples + 1) (Phipson and Smyth 2010).
    """

    def difference(x: Floats, y: Floats, axis: int) -> Floats:
        return np.mean(x, axis=axis) - np.mean(y, axis=axis)

    samples = (np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    result = stats.permutation_test(
        samples, difference, vectorized=True, n_resamples=resamples, rng=np.random.default_rng(seed)
    )
    return float(result.pvalue)


@dataclass(frozen=True)
class Adjusted:
    """One hypothesis of a Holm family: its adjusted p and the level of the interval that agrees with it."""

    p: float
    level: float


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[Adjusted]:
    """Holm's step-down over p_values [m]: adjusted p_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)).

    The interval of rank i has level 1 - alpha / (m - i + 1). After the first rank k + 1 that is not rejected the level
    stays 1 - alpha / (m - k): so an interval excludes 0 exactly when its hypothesis is rejected.
    """
    m = len(p_values)
    adjusted: list[Adjusted] = [Adjusted(math.nan, math.nan)] * m
    largest, share, stopped = 0.0, alpha, False
    for i, index in enumerate(sorted(range(m), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (m - i) * p_values[index]))
        if not stopped:
            share = alpha / (m - i)
            stopped = p_values[index] > share
        adjusted[index] = Adjusted(largest, 1 - share)
    return adjusted


def crossed_bootstrap(
    groups: Sequence[NDArray[np.floating]], weights: Sequence[float], *, level: float = 1 - ALPHA,
    resamples: int = 2000, seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of sum_g weights[g] * mean(groups[g]) over seeds and test examples; groups [g][n_g, E].

    Each replicate draws seeds within every group and, independently, one set of test examples shared by all groups, so
    the interval speaks of new seeds on a new test set. The variance is overstated by the seed x example interaction
    (Owen 2007), which makes it conservative.
    """
    rng = np.random.default_rng(seed)
    examples = groups[0].shape[1]
    values = np.zeros(resamples)
    for block in np.array_split(np.arange(resamples), max(1, resamples * examples // 4_000_000)):
        # counts of positions drawn: as `multinomial`, ten times as fast for many examples
        drawn = np.stack([np.bincount(rng.integers(0, examples, examples), minlength=examples) for _ in block]) / examples
        for group, weight in zip(groups, weights, strict=True):
            n = len(group)
            seeds = rng.multinomial(n, np.full(n, 1 / n), size=len(block)) / n
            values[block] += weight * np.einsum("re,re->r", seeds @ group, drawn)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def power(effect: float, sd: float, seeds: int, alpha: float = ALPHA) -> float:
    """Power of the two-sided two-sample t-test with `seeds` runs per group of standard deviation `sd`.

    1 - F(t) + F(-t), F the noncentral t with df = 2 seeds - 2 and noncentrality effect / (sd sqrt(2 / seeds)),
    t the central quantile at 1 - alpha / 2.
    """
    if seeds < 2 or not sd > 0:
        raise ValueError("power needs at least two seeds per group and a standard deviation above 0")
    df = 2 * seeds - 2
    noncentrality = abs(effect) / (sd * math.sqrt(2 / seeds))
    critical = float(stats.t.ppf(1 - alpha / 2, df))
    return min(1.0, _beyond(critical, df, noncentrality) + _beyond(critical, df, -noncentrality))


def _beyond(critical: float, df: float, noncentrality: float) -> float:
    """P(T > critical), T noncentral t; where scipy's series does not end (far out), the normal limit."""
    found = float(stats.nct.sf(critical, df, noncentrality))
    return found if math.isfinite(found) else float(stats.norm.sf(critical - noncentrality))


def power_within(margin: float, sd: float, seeds: int, *, one_sided: bool = False, alpha: float = ALPHA) -> float:
    """Power of the two one-sided tests of a difference within +-margin where there is none (one-sided: above -margin).

    With se = sd sqrt(2 / seeds), df = 2 seeds - 2 and b = P(T > t_{1 - alpha}), T noncentral t at margin / se: b where
    one-sided, else max(0, 2 b - 1) (Schuirmann 1987; exact for a known se, close for a few degrees of freedom).
    """
    if seeds < 2 or not sd > 0:
        raise ValueError("power needs at least two seeds per group and a standard deviation above 0")
    df = 2 * seeds - 2
    b = _beyond(float(stats.t.ppf(1 - alpha, df)), df, margin / (sd * math.sqrt(2 / seeds)))
    return b if one_sided else max(0.0, 2 * b - 1)


def mean_interval(values: ArrayLike, level: float = 1 - ALPHA) -> tuple[float, float, float]:
    """Mean and t interval of values [n]; NaN for fewer than three, for of two it is 13 standard errors to either side."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 3:
        return float(array.mean()), math.nan, math.nan
    estimate = contrast([array], [1.0])
    return estimate.estimate, *estimate.interval(level)
