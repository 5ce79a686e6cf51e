"""The cluster bootstrap: how often its interval holds the truth, and how often it sees what is not there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from scipy import stats as scipy_stats

from analysis import cluster, families
from analysis.cluster import CLUSTER, clustered
from analysis.figures import axis_taus
from analysis.load import check_families, from_published, from_store
from analysis.pilot import rows
from analysis.stats import ALPHA
from analysis.verdicts import REPRODUCED, verdicts
from experiments.lab.declare.checkout import FIGURES
from experiments.lab.declare.claims import Claim, Contrast, Family, Gate, Group, Kind
from experiments.lab.declare.errors import UsageError

CLUSTERS, RUNS = 20, 3
TRIALS = 100


def drawn(rng: np.random.Generator, correlation: float, clusters: int = CLUSTERS, runs: int = RUNS) -> pd.DataFrame:
    """Two values that share most of their variance within a cluster, as runs of equal hyper-parameters do."""
    first = rng.standard_normal(clusters)
    second = correlation * first + math.sqrt(1 - correlation**2) * rng.standard_normal(clusters)
    setting = np.repeat(np.arange(clusters), runs)
    x, y = (v[setting] + 0.2 * rng.standard_normal(clusters * runs) for v in (first, second))
    return pd.DataFrame({"lr": setting / 100, "x": x, "y": y})


def tau(frame: pd.DataFrame) -> float:
    x, y = frame["x"].to_numpy(), frame["y"].to_numpy()
    signs = [np.sign(v[:, None] - v[None, :]) for v in (x, y)]
    return float((signs[0] * signs[1]).sum() / math.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum()))


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_coverage(correlation: float) -> None:
    """An interval that holds the truth less often than 95%, or so often that it says nothing; a null seen as an effect.

    Treating the runs as independent fails here: its intervals miss the truth several times as often.
    """
    rng = np.random.default_rng(3)
    truth = tau(drawn(rng, correlation, clusters=1000))
    held = naive = 0
    for trial in range(TRIALS):
        frame = drawn(rng, correlation)
        found = cluster.estimate([clustered(frame, ["lr"])], [1.0], tau, resamples=50, seed=trial)
        assert found is not None
        low, high = found.interval()
        held += low <= truth <= high
        assert (found.p_two_sided() < ALPHA) == (not low <= 0 <= high)
        if correlation == 0:
            alone = cluster.estimate([clustered(frame.assign(lr=frame.index), ["lr"])], [1.0], tau, resamples=50, seed=trial)
            assert alone is not None
            naive += alone.interval()[0] <= truth <= alone.interval()[1]
    assert 0.91 <= held / TRIALS <= 0.99
    assert correlation or naive < held - 0.03 * TRIALS


def test_standard_error_of_a_mean() -> None:
    """Replicates of single runs, or of fewer clusters: the standard error of a mean is then not that of cluster means."""
    frame = drawn(np.random.default_rng(0), 0.5)
    found = cluster.estimate([clustered(frame, ["lr"])], [1.0], lambda f: float(f["x"].mean()), resamples=4000)
    means = frame.groupby("lr")["x"].mean()
    assert found is not None and found.estimate == pytest.approx(means.mean())
    assert found.se == pytest.approx(float(means.std(ddof=0)) / math.sqrt(CLUSTERS), rel=0.05) and found.df == CLUSTERS - 1
    difference = cluster.estimate([clustered(frame, ["lr"])] * 2, [1.0, -1.0], lambda f: float(f["x"].mean()), resamples=500)
    assert difference is not None and difference.estimate == 0 and difference.se > found.se
    assert cluster.estimate([clustered(frame, ["lr"])], [1.0], lambda f: math.nan, resamples=10) is None


def test_worst_axis() -> None:
    """Pairs that differ in two fields are counted, or seeds; the best axis is reported."""
    rng = np.random.default_rng(1)
    rows = [(b, lr, seed) for b in (1, 2, 3) for lr in (0.1, 0.2) for seed in range(3)]
    frame = pd.DataFrame(rows, columns=["b", "lr", "seed"])
    frame["x"] = frame["b"] + 10 * frame["lr"] + 0.01 * rng.random(len(frame))
    frame["y"] = frame["b"] - 30 * frame["lr"]
    options = {"against_value": "x", "axes": ("b", "lr")}
    assert families.axis_taus(frame, "y", **options).tolist() == [1.0, -1.0]
    assert families.worst_axis(frame, "y", **options) == -1.0
    assert families.worst_axis(frame.assign(y=frame["b"] + frame["lr"]), "y", **options) == 1.0
    half = frame.assign(y=frame["b"] * np.where(frame["lr"] == 0.1, 1, -1) + 100 * frame["lr"])
    assert families.worst_axis(half, "y", **options) == 0.0
    assert families.worst_axis(frame.assign(x=rng.random(len(frame))), "y", **options) < 0.5
    assert math.isnan(families.worst_axis(frame.assign(b=1), "y", **options))


def test_figure_and_claim_agree() -> None:
    """A picture of the taus with another interval than the verdict's."""
    folder = FIGURES / "jiang2020" / "quick"
    tables = from_published(folder)
    options = {**axis_taus.settings(), "axes": ("batch_size", "lr", "width", "depth")}
    data = axis_taus.load_data(tables, options).set_index("panel")
    found = {v["claim"]: v for v in json.loads((folder / "verdicts.json").read_text())}
    across, worst = found["quick-lambda-across"], found["quick-lambda-worst"]
    drawn = data.loc[axis_taus.WHOLE, ["tau", "low", "high"]].tolist()
    assert drawn == pytest.approx([across["effect"], across["ci_low"], across["ci_high"]], rel=1e-9)
    assert data[data.index.str.startswith("within")]["tau"].min() == pytest.approx(-worst["effect"])


CLAIM = Claim(
    "it", "sharpness orders the runs as their gap does", Kind.DIRECTIONAL,
    Contrast("gap_accuracy", (Group("all runs", 1.0, ()),), 1, "Kendall's tau",
             family=Family("kendall", (), (("against_value", "lambda_max"),), ("batch_size", "seed"))),
    0.1, primary=True, gates=(Gate("min_seeds", 8),), test=CLUSTER,
)


def test_from_a_store_to_a_verdict(tmp_path: Path) -> None:
    """Clusters of other fields, a verdict that counts runs as seeds, a pilot without power."""
    study = synthetic.study((CLAIM,))
    tables = from_store(study, "quick", synthetic.write(tmp_path, study))
    (found,) = verdicts(tables)
    clusters = len(synthetic.SIZES) * synthetic.SEEDS
    assert (found.verdict, found.n_seeds, found.p_permutation) == (REPRODUCED, clusters, None)
    values = tables.measurements[tables.measurements["metric"] == "lambda_max"].merge(tables.runs, on="run_id")
    by_hand = scipy_stats.kendalltau(values["gap_accuracy"], values["value"]).statistic
    assert found.effect == pytest.approx(by_hand)
    assert "clusters of runs of equal batch_size, seed" in found.population
    (row,) = rows(tables)
    assert row["sd"] > 0 and row["power"][20] > 0.5 and row["groups"][0]["n"] == clusters
    family = CLAIM.contrast.family
    assert family is not None
    few = replace(CLAIM, contrast=replace(CLAIM.contrast, family=replace(family, clusters=("batch_size",))))
    (found,) = verdicts(replace(tables, study=synthetic.study((few,))))
    assert found.verdict == "inconclusive" and "4 clusters of runs, fewer than 8" in found.decided_by
    with pytest.raises(UsageError, match="clusters belong to the test cluster-bootstrap"):
        check_families(synthetic.study((replace(CLAIM, test="welch"),)))
