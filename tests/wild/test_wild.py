"""What people bring: every number is right, or refused in one sentence, and the model leaves as it came."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from torch import nn
from wild import table
from wild.measures import MEASURES, outcome, size
from wild.situation import FIRST, SECOND, Case
from wild.situations import SITUATIONS
from wild.snapshot import changes, snapshot

PAIRS = [pytest.param(s, m, id=f"{s.name} - {m}") for s in SITUATIONS for m in s.measures]
found = cache(outcome)


@pytest.mark.parametrize(("situation", "measure"), PAIRS)
def test_right_or_refused(situation, measure):
    """Against dense derivatives of the same function by plain operations, in float64."""
    assert found(situation, measure) in situation.expects(measure).split(" or ")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, as it comes."""


def interrupted(loss: Any, k: int) -> Any:
    """The loss, interrupted at its k-th call."""
    calls = iter(range(1, k + 1))

    def count(*_: Any) -> None:
        if next(calls, 0) == k:
            raise Interrupted

    def counted(*given: Any) -> Any:
        count()
        return loss(*given)

    if not isinstance(loss, nn.Module):
        return counted
    loss.register_forward_pre_hook(count)
    return loss


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("situation", [s for s in SITUATIONS if s.kind == "hooks and state"], ids=lambda s: s.name)
def test_everything_is_restored_when_interrupted(situation, k):
    """Ctrl-C in the middle of a measurement, wherever that is, leaves the model as it came."""
    made = situation.make()
    broken = Case(made.model, interrupted(made.loss, k), made.data, made.oracles, made.mode, made.options)
    measure = next(m for m in (*FIRST, *SECOND) if m in situation.measures)
    before = snapshot(made.model, made.loss)
    with suppress(Interrupted, ValueError):
        MEASURES[measure][0](broken, size(broken))
    assert not changes(before, snapshot(made.model, made.loss))


def test_names_of_situations_are_unique():
    """They are the keys of what peers did."""
    names = [s.name for s in SITUATIONS]
    assert len(set(names)) == len(names)


def test_what_peers_did_is_known_for_every_situation():
    """A situation that was added after the peers were asked: python tests/wild/peers.py."""
    assert not [s.name for s in SITUATIONS if s.name not in table.peers()["outcomes"] and s.make().oracles is not None]


@pytest.mark.slow  # quick only where the others have run
def test_the_table_is_current():
    """sharpness/docs/wild.md, by python tests/wild/table.py."""
    assert table.PAGE.read_text() == table.page(table.PAGE.read_text(), lambda s: found(s, s.measures[0]))
