"""What people bring: every number is right, or refused in one sentence, and the model leaves as it came."""

from __future__ import annotations

import pytest

from wild.measures import outcome
from wild.situations import SITUATIONS

PAIRS = [pytest.param(s, m, id=f"{s.name} - {m}") for s in SITUATIONS for m in s.measures]


@pytest.mark.parametrize(("situation", "measure"), PAIRS)
def test_right_or_refused(situation, measure):
    """Against dense derivatives of the same function by plain operations, in float64."""
    assert outcome(situation, measure) in situation.expects(measure).split(" or ")
