"""Published, yours, agree: each answer, from made-up tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from analysis.agree import AGREES, DIFFERS, SAME, Agreement, Comparison, compare, text, with_published
from analysis.load import Tables, from_store
from analysis.stats import Estimate, contrast, difference
from analysis.verdicts import Evidence, Verdict, gather, verdicts

LEVELS = (0.95, 0.95)
STUDY = synthetic.study()


def made(root: Path, **truth: Any) -> Tables:
    return from_store(STUDY, "quick", synthetic.write(root, STUDY, synthetic.Truth(**truth)))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return made(tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Other values of the same runs, and another processor."""
    return made(tmp_path_factory.mktemp("there"), accuracy_sd=0.21, extra={"hardware": "Other X9, 4 cores"})


def evidence(of: Tables, effect: float | None = None, se: float = 0.1) -> Evidence:
    found = gather(STUDY.claims[0], of)
    return found if effect is None else replace(found, estimate=Estimate(effect, se, 20.0))


def test_same_bits_are_the_same(here: Tables) -> None:
    assert compare(evidence(here), evidence(here), LEVELS)[0] == SAME


@pytest.mark.parametrize(
    ("ours", "theirs", "answer"),
    [(0.63, 0.44, AGREES), (0.70, 0.44, AGREES), (0.80, 0.44, DIFFERS), (0.90, 0.44, DIFFERS), (-0.1, 0.44, DIFFERS)],
)
def test_effects_are_compared_as_two_samples(here: Tables, there: Tables, ours: float, theirs: float, answer: str) -> None:
    """Two draws of one truth would count as different, or two truths as one: with a standard error of 0.1 each, 0.29 decides."""
    assert compare(evidence(here, ours), evidence(there, theirs), LEVELS)[0] == answer


def test_effects_may_differ_though_intervals_overlap(here: Tables, there: Tables) -> None:
    """Overlap alone hides a difference: [0.24, 0.64] and [0.59, 1.01] share a piece."""
    answer, why = compare(evidence(here, 0.80), evidence(there, 0.44), LEVELS)
    assert answer == DIFFERS and "do not overlap" not in why
    assert "do not overlap" in compare(evidence(here, 1.2), evidence(there, 0.44), LEVELS)[1]


def test_rounding_is_no_difference(here: Tables, there: Tables) -> None:
    """A constant that is exact on one processor and off by one bit on another."""
    one, other = evidence(here, 1.0, 0.0), evidence(there, 1.0 + 1e-12, 0.0)
    assert compare(one, other, LEVELS)[0] == AGREES
    assert compare(one, evidence(there, 1.1, 0.0), LEVELS)[0] == DIFFERS


def test_more_claims_ask_for_more(here: Tables, there: Tables) -> None:
    """A study of many claims would cry wolf in most of its repetitions."""
    ours, theirs = evidence(here, 0.76), evidence(there, 0.44)
    assert compare(ours, theirs, LEVELS, claims=1)[0] == DIFFERS and compare(ours, theirs, (0.99, 0.99), claims=5)[0] == AGREES


def test_no_effect_on_one_side_differs(here: Tables, there: Tables) -> None:
    """What diverged on one processor alone would pass for agreement."""
    gone = replace(evidence(here), estimate=None, gate="3 of 16 runs diverged")
    assert compare(gone, evidence(there), LEVELS) == (DIFFERS, "no effect here: 3 of 16 runs diverged")
    assert compare(evidence(here), replace(gone, cells=()), LEVELS)[0] == DIFFERS
    assert compare(gone, replace(gone, cells=()), LEVELS)[0] == AGREES


def test_missing_runs_are_not_compared(tmp_path: Path, there: Tables) -> None:
    """Half a store that differs, or agrees."""
    partial = made(tmp_path, status=lambda c: None if c.seed == 3 else "done")
    assert compare(evidence(partial), evidence(there), LEVELS)[0] is None


def test_false_alarms_are_one_in_twenty() -> None:
    """The rate at which two draws of one truth differ; paired by half of their variance, as runs of one seed may be, less."""
    rng = np.random.default_rng(0)

    def alarms(shared: float) -> float:
        common = np.sqrt(shared) * rng.standard_normal((2000, 2, 12))
        draws = [common + np.sqrt(1 - shared) * rng.standard_normal(common.shape) for _ in range(2)]
        found = [difference(*(contrast(list(draw[i]), [1, -1]) for draw in draws)).interval() for i in range(2000)]
        return float(np.mean([not low <= 0 <= high for low, high in found]))

    assert 0.035 < alarms(0) < 0.065 and alarms(0.5) < 0.02


def flipped(found: list[Verdict], verdict: str) -> dict[str, Any]:
    return {**found[0].to_dict(), "verdict": verdict}


def test_a_flip_is_said_and_no_failure(here: Tables, there: Tables) -> None:
    """A verdict that the intervals allow would look like a failed reproduction."""
    found = verdicts(here)
    each = Agreement(flipped(found, "inconclusive"), found[0], AGREES, "")
    shown = text(Comparison((each,), "A", "B"))
    assert each.flips and "agrees; the verdict flips" in shown and "the intervals allow both" in shown
    assert "Yours were made on A, the published ones on B" in shown
    assert not Agreement(flipped(found, "inconclusive"), found[0], DIFFERS, "").flips


def test_published_and_processors_are_read(here: Tables, there: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim of another wording would be compared; a reader would not learn that the processor is another."""
    monkeypatch.setattr("analysis.agree.from_published", lambda folder: there)
    assert with_published(here, verdicts(here), tmp_path) == Comparison()
    theirs = [verdict.to_dict() for verdict in verdicts(there)]
    theirs[1]["claim_hash"] = "another"
    (tmp_path / "verdicts.json").write_text(json.dumps(theirs))
    found = with_published(here, verdicts(here), tmp_path)
    assert [each.yours.claim for each in found.claims] == ["tests-worse", "nearer", "same-train-loss"]
    assert found.claims[0].answer == AGREES and found.claims[1].answer == SAME  # only accuracies were made otherwise
    assert (found.yours, found.published) == ("none", "Other X9")
    document = found.claims[0].to_dict()
    assert document["answer"] == AGREES and document["effect"] == theirs[0]["effect"] and document["flips"] is False
