"""The board shows every published verdict, in the README, in figures/ and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.lab.sweep import board

VERDICT: dict[str, Any] = {
    "study": "toy", "scale": "quick", "sentence": "a | b", "primary": True, "verdict": "contradicted", "effect": -0.5,
    "ci_low": -0.7, "ci_high": -0.3, "ratio": None, "ratio_low": None, "ratio_high": None, "level": 0.95, "unit": "points",
    "n_seeds": 8, "paper_value": 1.0, "paper_source": "secondary",
}


def test_every_kind_of_verdict_is_shown() -> None:
    """What does not fit the paper would be left out."""
    found = [VERDICT | {"verdict": name} for name in ("reproduced", "contradicted", "inconclusive", "no effect", None)]
    text, table = board.text(found), board.markdown(found)
    for word in ("contradicted", "inconclusive", "no effect", "reproduced"):
        assert word.upper() in text and word in table
    assert table.count("\n") == 6 and r"a \| b" in table
    assert board.tally(found) == "1 reproduced, 1 contradicted, 1 inconclusive, 1 no effect, 1 no verdict"


def test_numbers_are_the_verdicts() -> None:
    """A ratio shown as its logarithm, or a missing number as 0."""
    assert board.effect(VERDICT) == "-0.5 points [-0.7, -0.3] at 95%"
    ratio = VERDICT | {"ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5, "paper_value": 0.0}
    assert board.effect(ratio) == "2× [1.5, 2.5] at 95%" and board.paper_effect(ratio) == 1.0
    assert board.effect(VERDICT | {"ci_low": None}) == board.number(float("nan")) == board.DASH


def test_larger_scales_come_first(tmp_path: Path) -> None:
    """The small run would stand above the one that decides."""
    for scale in ("quick", "laptop", "paper"):
        folder = tmp_path / "toy" / scale
        folder.mkdir(parents=True)
        (folder / "verdicts.json").write_text(json.dumps([VERDICT | {"scale": scale}]))
    assert [v["scale"] for v in board.published(tmp_path)] == ["paper", "laptop", "quick"]
