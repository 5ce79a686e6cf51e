"""The margins for which a verdict stays as it is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from analysis.figures.forest import frame, make_figure
from analysis.margins import holding, words
from analysis.verdicts import decide
from experiments.lab.declare.claims import Kind

INTERVALS = ((0.284, 0.446, 0.268, 0.462), (-0.3, 0.2, -0.4, 0.3), (-1.26, -0.97, -1.29, -0.94), (-0.2, 0.9, -0.1, 0.7))


def verdict(kind: Kind, ends: tuple[float, float, float, float], margin: float, **fields: Any) -> dict[str, Any]:
    low90, high90, low, high = ends
    answer, reason = decide(kind, margin, (low90, high90), (low, high), 0.95)
    return {"study": "s", "scale": "quick", "claim": "quick-c", "verdict": answer, "decided_by": reason, "kind": kind.value,
            "level": 0.95, "margin": margin, "effect": (low + high) / 2, "ci_low": low, "ci_high": high, "ci90_low": low90,
            "ci90_high": high90, "ratio": None, "primary": True, "paper_value": None, **fields}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("ends", INTERVALS)
@pytest.mark.parametrize("margin", [0.1, 0.25, 0.5, 1.0, 2.0])
def test_holds_between_and_not_beyond(kind: Kind, ends: tuple[float, float, float, float], margin: float) -> None:
    """A reader told that a margin of 0.3 changes nothing, where it does."""
    own = verdict(kind, ends, margin)
    found = holding(own)
    assert found is not None and found[0] <= margin <= found[1]
    low, high = found
    inside = [low + share * (min(high, 5.0) - low) for share in (0.01, 0.5, 0.99)]
    assert all(verdict(kind, ends, m)["verdict"] == own["verdict"] for m in inside)
    outside = [m for m in (0.999 * low, 1.001 * high) if 0 < m < math.inf]
    assert all(verdict(kind, ends, m)["verdict"] != own["verdict"] for m in outside)


def test_words() -> None:
    """The flagship's gap: at 0.25 points a gap, at 0.5 none."""
    assert words(verdict(Kind.DIRECTIONAL, INTERVALS[0], 0.25)) == "0.25 (up to 0.446)"
    assert words(verdict(Kind.EQUIVALENCE, INTERVALS[0], 0.5)) == "0.5 (from 0.446)"
    assert words(verdict(Kind.EQUIVALENCE, INTERVALS[0], 0.3)) == "0.3 (0.268 to 0.446)"
    assert words(verdict(Kind.DIRECTIONAL, INTERVALS[1], math.log(2), ratio=0.9)) == "2× (from 1.35×)"


def test_a_gate_has_no_margin() -> None:
    """A claim that no margin could decide would look decided at another."""
    assert holding(verdict(Kind.DIRECTIONAL, INTERVALS[0], 0.25, decided_by="gate: two seeds")) is None
    assert words(verdict(Kind.DIRECTIONAL, INTERVALS[0], 0.25, verdict=None)) == "0.25"


def test_effects_are_drawn_in_margins() -> None:
    """A claim whose place on the picture is not its effect over its margin."""
    data = frame([verdict(Kind.DIRECTIONAL, INTERVALS[0], 0.25), verdict(Kind.EQUIVALENCE, INTERVALS[1], 0.5, effect=None)])
    assert data["ci_low"][0] == pytest.approx(0.268 / 0.25) and math.isnan(data["effect"][1]) and list(data["row"]) == ["c", "c"]
    axes = make_figure(data).axes[0]
    assert axes.lines[3].get_xdata()[0] == pytest.approx(data["effect"][0])
