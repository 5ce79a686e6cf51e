"""Every row of the decision table: on intervals alone, and from a store of runs to its verdict."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from synthetic import Truth, claim

from analysis.load import from_store
from analysis.stats import Estimate
from analysis.verdicts import CONTRADICTED, INCONCLUSIVE, NO_EFFECT, REPRODUCED, Verdict, decide, gather, verdicts
from experiments.lab.declare.claims import Contrast, Gate, Group, Kind
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import Stage, Study
from experiments.lab.store.records import Store

DIRECTIONAL, EQUIVALENCE, NON_INFERIORITY = Kind.DIRECTIONAL, Kind.EQUIVALENCE, Kind.NON_INFERIORITY
LARGE_BATCH = synthetic.SIZES[-1]


@pytest.mark.parametrize(
    ("kind", "ci90", "ci", "expected"),
    [
        (DIRECTIONAL, (-0.5, 0.5), (-0.6, 0.6), NO_EFFECT),
        (DIRECTIONAL, (0.2, 0.8), (0.1, 0.9), NO_EFFECT),
        (DIRECTIONAL, (-0.8, -0.2), (-0.9, -0.1), NO_EFFECT),
        (DIRECTIONAL, (0.2, 1.0), (0.1, 1.1), REPRODUCED),
        (DIRECTIONAL, (2.0, 3.0), (1.9, 3.1), REPRODUCED),
        (DIRECTIONAL, (-1.0, -0.2), (-1.1, -0.1), CONTRADICTED),
        (DIRECTIONAL, (0.1, 1.5), (0.0, 1.6), INCONCLUSIVE),
        (DIRECTIONAL, (-3.0, 3.0), (-4.0, 4.0), INCONCLUSIVE),
        (EQUIVALENCE, (-0.5, 0.9), (-0.6, 1.1), REPRODUCED),
        (EQUIVALENCE, (1.3, 2.0), (1.1, 2.1), CONTRADICTED),
        (EQUIVALENCE, (-2.0, -1.3), (-2.1, -1.1), CONTRADICTED),
        (EQUIVALENCE, (0.5, 1.0), (0.4, 1.1), INCONCLUSIVE),
        (NON_INFERIORITY, (-0.9, 5.0), (-1.1, 6.0), REPRODUCED),
        (NON_INFERIORITY, (1.3, 2.0), (1.1, 2.1), REPRODUCED),
        (NON_INFERIORITY, (-2.0, -1.3), (-2.1, -1.1), CONTRADICTED),
        (NON_INFERIORITY, (-1.0, 0.5), (-1.1, 0.6), INCONCLUSIVE),
    ],
)
def test_row_of_the_table(kind: Kind, ci90: tuple[float, float], ci: tuple[float, float], expected: str) -> None:
    """A row changed, or two rows swapped; the margin is 1."""
    assert decide(kind, 1.0, ci90, ci, 0.95)[0] == expected


INTERVALS = {"estimate": st.floats(-3, 3), "se": st.floats(0.01, 2), "df": st.floats(1, 60),
             "margin": st.floats(0.05, 2), "level": st.floats(0.95, 0.999)}


@given(**INTERVALS)
@settings(deadline=None, max_examples=150)
def test_table_is_consistent(estimate: float, se: float, df: float, margin: float, level: float) -> None:
    """A case without an answer, or an answer that its own intervals deny."""
    effect, mirrored = Estimate(estimate, se, df), Estimate(-estimate, se, df)

    def answer(kind: Kind, e: Estimate) -> str:
        return decide(kind, margin, e.interval(0.9), e.interval(level), level)[0]

    (low, high), (low90, high90) = effect.interval(level), effect.interval(0.9)
    directional = answer(DIRECTIONAL, effect)
    assert (directional == NO_EFFECT) == (-margin < low90 and high90 < margin) == (answer(EQUIVALENCE, effect) == REPRODUCED)
    assert directional != REPRODUCED or (low > 0 and high90 >= margin)
    assert directional != CONTRADICTED or (high < 0 and low90 <= -margin)
    assert directional != INCONCLUSIVE or low <= 0 <= high
    opposite = {REPRODUCED: CONTRADICTED, CONTRADICTED: REPRODUCED}
    assert answer(DIRECTIONAL, mirrored) == opposite.get(directional, directional)
    assert answer(EQUIVALENCE, mirrored) == answer(EQUIVALENCE, effect)
    assert (answer(NON_INFERIORITY, effect) == REPRODUCED) == (low90 > -margin)
    assert (answer(NON_INFERIORITY, effect) == CONTRADICTED) == (high < -margin)


def answer(root: Path, truth: Truth | None = None, stages: tuple[Stage, ...] | None = None, **options: Any) -> Verdict:
    """The verdict on one claim from a store written as `truth` says."""
    study = synthetic.study((claim("it", primary=True, **options),), stages)
    return verdicts(from_store(study, "quick", synthetic.write(root, study, truth or Truth())))[0]


def rising(B: int) -> float:
    return 84 + 0.15 * math.log2(B)


@pytest.mark.parametrize(
    ("truth", "options", "expected"),
    [
        (Truth(), {}, REPRODUCED),
        (Truth(test_accuracy=rising), {}, CONTRADICTED),
        (Truth(), {"margin": 2.0}, NO_EFFECT),
        (Truth(accuracy_sd=1.0), {}, INCONCLUSIVE),
        (Truth(), {"kind": EQUIVALENCE, "margin": 2.0}, REPRODUCED),
        (Truth(), {"kind": EQUIVALENCE}, CONTRADICTED),
        (Truth(), {"kind": NON_INFERIORITY}, REPRODUCED),
        (Truth(test_accuracy=rising), {"kind": NON_INFERIORITY}, CONTRADICTED),
    ],
)
def test_known_effect(tmp_path: Path, truth: Truth, options: dict[str, Any], expected: str) -> None:
    """An effect lost or turned around on its way from the records to the verdict."""
    found = answer(tmp_path, truth, **options)
    assert (found.verdict, found.n_seeds, found.missing, found.source) == (expected, 8, 0, "store")
    if options == {"margin": 2.0}:
        assert found.ci_low is not None and found.ci_low > 0  # no effect, though 0 is excluded
    assert found.effect is not None
    slope = -truth.test_accuracy(LARGE_BATCH) + truth.test_accuracy(16)
    assert abs(found.effect - slope) < 4 * truth.accuracy_sd * math.sqrt(2 / 8)


def test_numbers_of_a_verdict(tmp_path: Path) -> None:
    """Effect, interval and p other than Welch's on the stored values; a log ratio not multiplied out."""
    study = synthetic.study()
    tables = from_store(study, "quick", synthetic.write(tmp_path, study))
    worse, sharper, *_ = verdicts(tables)
    by_size = {size: part["test_accuracy"] for size, part in tables.runs.groupby("batch_size")}
    welch = scipy_stats.ttest_ind(by_size[16], by_size[500], equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert (worse.ci_low, worse.ci_high) == pytest.approx((interval.low, interval.high))
    assert worse.p_value == worse.p_adjusted == pytest.approx(welch.pvalue)
    assert worse.level == 0.95 and worse.ratio is None
    assert worse.p_permutation is not None and worse.p_permutation < 0.01
    assert worse.both_low is not None and worse.ci_low is not None and worse.both_low < worse.ci_low
    assert worse.magnitude_agrees is bool(interval.low <= 0.5 <= interval.high)
    logs = tables.measurements[tables.measurements["metric"] == "lambda_max"].merge(tables.runs, on="run_id")
    means = np.log(logs["value"]).groupby(logs["batch_size"]).mean()
    assert sharper.effect == pytest.approx(means[500] - means[16])
    assert sharper.ratio == pytest.approx(math.exp(means[500] - means[16]))
    assert sharper.p_adjusted is not None and sharper.p_value is not None and sharper.p_adjusted >= sharper.p_value


def some(count: int, status: str | None) -> Any:
    """Status of a run: the first `count` seeds of the largest batch size are `status`."""
    return lambda c: status if c.batch_size == LARGE_BATCH and c.seed < count else "done"


def unconverged(metric: str, c: RunConfig) -> str:
    return "unconverged" if c.seed < 2 else "converged"


@pytest.mark.parametrize(
    ("gate", "truth", "options", "reason"),
    [
        (Gate("min_seeds", 9), Truth(), {}, "8 seeds"),
        (
            Gate("matched", 0.1, "train_loss"),
            Truth(train_loss=lambda B: 0.009 + 1e-5 * B),
            {},
            "differs between the groups",
        ),
        (Gate("status", 0.1), Truth(status=some(2, "capped")), {}, "2 of 16 runs did not end as planned (budget exhausted)"),
        (Gate("converged", 0.1, "lambda_max"), Truth(measured=unconverged), {"value": "lambda_max"}, "4 of 16"),
        (Gate("converged", 0.1, "lamda"), Truth(), {"value": "lambda_max"}, "no measurement of lamda"),
        (Gate("edge_lr", 0), Truth(), {}, "no grid"),
    ],
    ids=lambda x: x.kind if isinstance(x, Gate) else "",
)
def test_failed_gate(tmp_path: Path, gate: Gate, truth: Truth, options: dict[str, Any], reason: str) -> None:
    """A comparison that says nothing gets a verdict all the same, even where no effect would be found."""
    found = answer(tmp_path, truth, gates=(gate,), **{"margin": 50.0} | options)
    assert found.verdict == INCONCLUSIVE and reason in found.decided_by
    assert found.effect is not None and found.p_adjusted is None


def test_gates_that_hold(tmp_path: Path) -> None:
    """A gate that always fails: each at a value it has to let pass."""
    gates = Gate("min_seeds", 8), Gate("matched", 0.1, "train_loss"), Gate("status", 0.1), Gate("converged", 0.1, "lambda_max")
    truth = Truth(status=some(1, "capped"), measured=lambda m, c: "unconverged" if c.seed == 0 and c.batch_size == 16 else "ok")
    assert answer(tmp_path, truth, gates=gates).verdict == REPRODUCED


@pytest.mark.parametrize(("lr", "expected"), [(1e-3, REPRODUCED), (2e-3, INCONCLUSIVE), (5e-4, INCONCLUSIVE)])
def test_learning_rate_on_the_edge(tmp_path: Path, lr: float, expected: str) -> None:
    """A batch size blamed for a learning rate that was never tuned to its optimum."""

    def tune(request: object, records: object) -> list[RunConfig]:
        return [synthetic.config(size, 1000, lr=x) for size in (16, 500) for x in (5e-4, 1e-3, 2e-3)]

    def final(request: object, records: object) -> list[RunConfig]:
        return [synthetic.config(size, seed, lr=lr) for size in (16, 500) for seed in range(8)]

    def untuned(request: object, records: object) -> list[RunConfig]:
        return [c.replace(lr=x) for c in final(request, records) for x in (1e-5, lr, 1.0)]

    groups = tuple(Group(g.name, g.weight, (*g.where, ("stage", "final"))) for g in (synthetic.LARGE, synthetic.SMALL))
    contrast = Contrast("test_accuracy", groups, -1, "points")
    tuned = replace(claim("it", primary=True, gates=(Gate("edge_lr", 0),)), contrast=contrast)
    study = synthetic.study((tuned,), (Stage("tune", tune), Stage("final", final), Stage("untuned", untuned)))
    tables = from_store(study, "quick", synthetic.write(tmp_path, study))
    assert tables.correct["run_id"].is_unique, "a run of two stages counts once"
    (found,) = verdicts(tables)
    assert found.verdict == expected and found.n_seeds == 8
    assert ("edge of its grid" in found.decided_by) == (expected == INCONCLUSIVE)


def test_missing_runs_or_measurements_leave_no_verdict(tmp_path: Path) -> None:
    """An answer from the runs that happen to be there."""
    found = answer(tmp_path / "a", Truth(status=some(1, None)), gates=(Gate("min_seeds", 8),))
    assert found.verdict is None and found.missing == 1 and "1 of 16" in found.decided_by
    assert (found.effect, found.ci_low, found.p_value) == (None, None, None)
    lacks = Truth(measured=lambda metric, c: None if c.seed == 0 else "converged")
    assert answer(tmp_path / "b", lacks, value="lambda_max").missing == 2
    assert answer(tmp_path / "c", lacks).verdict == REPRODUCED  # a claim about something else


def test_waiting_stage_leaves_no_verdict(tmp_path: Path) -> None:
    """A claim answered before the runs of a later stage are known."""
    stages = (Stage("train", synthetic.runs), Stage("more", lambda request, records: [], at_most=lambda request: 4))
    study = synthetic.study((claim("it"),), stages)
    store = synthetic.write(tmp_path, study, Truth(status=lambda c: None if c.batch_size == 64 else "done"))
    (found,) = verdicts(from_store(study, "quick", store))
    assert found.verdict is None and "earlier stages" in found.decided_by


def test_group_without_runs_leaves_no_verdict(tmp_path: Path) -> None:
    """A misspelt batch size in a claim: refused where runs are planned, no verdict on records that are there."""
    nobody = replace(synthetic.LARGE, where=(("batch_size", 501),))
    wrong = replace(claim("it"), contrast=Contrast("test_accuracy", (nobody, synthetic.SMALL), -1, "points"))
    study = synthetic.study((claim("it"),))
    tables = from_store(study, "quick", synthetic.write(tmp_path, study))
    (found,) = verdicts(replace(tables, study=synthetic.study((wrong,))))
    assert found.verdict is None and "declares no run" in found.decided_by


def test_diverged_runs_count(tmp_path: Path) -> None:
    """Divergence dropped in silence: without a value it blocks the verdict, with one it enters the mean."""
    truth = Truth(status=some(2, "diverged"))
    blocked = answer(tmp_path / "a", truth)
    assert (blocked.verdict, blocked.diverged) == (INCONCLUSIVE, 2) and "2 of 16 runs diverged" in blocked.decided_by
    counted = answer(tmp_path / "b", truth, diverged_as=10.0)
    assert (counted.diverged, counted.n_seeds, counted.missing) == (2, 8, 0)
    assert counted.effect is not None and counted.effect > 0.25 * (84 - 10)
    assert counted.both_low is None  # no predictions to resample


def test_logarithm_of_nothing(tmp_path: Path) -> None:
    """log of a value that is not positive."""
    options = {"value": "lambda_max", "contrast": ("ratio", synthetic.ValueScale.LOG), "gates": (Gate("status", 0.1),)}
    found = answer(tmp_path, Truth(lambda_max=lambda B: -1.0), **options)
    assert found.verdict == INCONCLUSIVE and "not positive" in found.decided_by and found.effect is None


def test_holm_family_is_the_declared_one(tmp_path: Path) -> None:
    """A claim that cannot be judged leaves the family, so that the others are judged more mildly than planned."""
    blocked = claim("blocked", "distance_from_start", -1, gates=(Gate("min_seeds", 99),))
    others = tuple(claim(name) for name in ("one", "two"))
    study = synthetic.study((claim("first", primary=True), blocked, *others))
    store: Store = synthetic.write(tmp_path, study)
    found = {v.claim: v for v in verdicts(from_store(study, "quick", store))}
    assert sorted(v.level for v in found.values() if not v.primary) == pytest.approx([0.95, 0.975, 1 - 0.05 / 3])
    one = found["one"]
    assert one.p_value is not None and one.p_adjusted == pytest.approx(3 * one.p_value)


def test_magnitude_is_no_part_of_the_verdict(tmp_path: Path) -> None:
    """A paper's effect that is a hundred times ours turns the verdict."""
    far, near = (answer(tmp_path / str(x), paper_value=x) for x in (50.0, 0.7))
    assert (far.verdict, far.magnitude_agrees) == (REPRODUCED, False)
    assert (near.verdict, near.magnitude_agrees) == (REPRODUCED, True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    study = synthetic.study((claim("it", primary=True, margin=0.1),))
    return study, synthetic.write(tmp_path_factory.mktemp("toy"), study)


@pytest.mark.parametrize("effect", [1.0, 0.0])
def test_controls(toy: tuple[Study, Store], effect: float) -> None:
    """Labels shuffled 400 times: at most 5% reproduced (and 5% contradicted); with a planted effect all are."""
    tables, rng = from_store(toy[0], "quick", toy[1]), np.random.default_rng(5)
    compared = tables.runs["batch_size"].isin([16, LARGE_BATCH])
    centred = tables.runs["test_accuracy"] - tables.runs.groupby("batch_size")["test_accuracy"].transform("mean")
    values, count = centred[compared].to_numpy(), {REPRODUCED: 0, CONTRADICTED: 0, NO_EFFECT: 0, INCONCLUSIVE: 0}
    large = (tables.runs.loc[compared, "batch_size"] == LARGE_BATCH).to_numpy()
    repeats = 400 if effect == 0 else 50
    for _ in range(repeats):
        shuffled = tables.runs.copy()
        shuffled.loc[compared, "test_accuracy"] = 84 + rng.permutation(values) - effect * large
        found = gather(toy[0].claims[0], replace(tables, runs=shuffled))
        assert found.estimate is not None
        verdict, _ = decide(DIRECTIONAL, 0.1, found.estimate.interval(0.9), found.estimate.interval(), 0.95)
        count[verdict] += 1
    if effect:
        assert count[REPRODUCED] == repeats
    else:
        bound = scipy_stats.binom.ppf(0.999, repeats, 0.05)
        assert count[REPRODUCED] <= bound and count[CONTRADICTED] <= bound
        assert count[REPRODUCED] + count[CONTRADICTED] > 0  # the test does reject at times
