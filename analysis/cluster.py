"""The cluster bootstrap: what a statistic of a whole population of runs would be, had other clusters been drawn.

Runs that share their hyper-parameters are alike, so they are no independent sample of anything; whole clusters are resampled.
Sources: Field and Welsh 2007 (J. R. Stat. Soc. B 69, resampling clusters), Efron and Tibshirani 1993 (section 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.stats import Estimate

CLUSTER = "cluster-bootstrap"
"""the `test` of a claim whose family is a population of runs in clusters"""
RESAMPLES = 1000
USABLE = 0.99
"""fraction of replicates whose statistic must be defined"""

Statistic = Callable[[pd.DataFrame], float]
Statistics = Callable[[pd.DataFrame], float | NDArray[np.float64]]
"""one number of a population, or several"""


@dataclass(frozen=True)
class Population:
    """The runs of one group: `frame` has a row per run, `cluster` [runs] numbers their clusters from 0."""

    frame: pd.DataFrame
    cluster: NDArray[np.int64]

    @property
    def clusters(self) -> int:
        return len(np.unique(self.cluster))


def clustered(frame: pd.DataFrame, fields: Sequence[str]) -> Population:
    """Clusters are runs of equal `fields` (columns of the frame)."""
    cluster = frame.groupby(list(fields), dropna=False, sort=False).ngroup()
    return Population(frame, np.asarray(cluster, np.int64))


def replicates(drawn: Population, statistic: Statistics, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """The statistic [resamples], or statistics [resamples, k], of populations of as many clusters, drawn with replacement."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(drawn.cluster == k) for k in range(drawn.clusters)]
    chosen = rng.integers(0, len(rows), (resamples, len(rows)))
    return np.array([statistic(drawn.frame.iloc[np.concatenate([rows[k] for k in draw])]) for draw in chosen])


def estimate(
    populations: Sequence[Population], weights: Sequence[float], statistic: Statistic, *, resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate | None:
    """sum_g w_g T_g with the bootstrap's standard error, judged by Student's t with one degree of freedom fewer than the
    smallest group has clusters.

    Of Kendall's tau over 20 to 36 clusters of two runs this interval is 6 to 9% wider than the replicates' percentiles, and holds
    the truth in 93 to 97% of trials (300 each); `tests/unit/test_cluster.py` counts again.
    None where the statistic is not defined, or is not in more than 1% of the replicates.
    """
    found, spread = 0.0, np.zeros(resamples)
    for k, (drawn, weight) in enumerate(zip(populations, weights, strict=True)):
        found += weight * statistic(drawn.frame)
        spread += weight * replicates(drawn, statistic, resamples=resamples, seed=seed + k)
    known = spread[np.isfinite(spread)]
    least = min((drawn.clusters for drawn in populations), default=0)
    if least < 2 or not math.isfinite(found) or len(known) < USABLE * resamples:
        return None
    return Estimate(found, float(known.std(ddof=1)), least - 1)
