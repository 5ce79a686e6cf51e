"""docs/architecture.md and its picture: what they name is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from docs import draw_architecture

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"


def test_the_picture_is_of_this_source() -> None:
    """A reader plans by rooms and imports that are no more."""
    assert draw_architecture.drawn() == draw_architecture.arrows(), "python docs/draw_architecture.py draws it anew"


def test_the_picture_shows_every_arrow() -> None:
    """What is left out is not implied by what is shown, or an arrow that goes up is not seen."""
    graph = {"analysis": ["declare", "sweep"], "sweep": ["store", "declare"], "store": ["declare"], "declare": ["analysis"]}
    shown = draw_architecture.shown(graph)
    assert sorted(shown) == [("analysis", "sweep", False), ("declare", "analysis", True), ("store", "declare", False),
                             ("sweep", "store", False)]


def test_no_arrow_crosses_a_box() -> None:
    """A room that nobody can read, or an arrow that seems to end in it."""
    for start, end, _ in draw_architecture.shown(draw_architecture.arrows()):
        (x0, y0), (x1, y1) = draw_architecture.middle(start), draw_architecture.middle(end)
        for room in draw_architecture.PLACES.keys() - {start, end}:
            x, y = draw_architecture.middle(room)
            near = [abs(x0 + t / 50 * (x1 - x0) - x) < 0.8 and abs(y0 + t / 50 * (y1 - y0) - y) < 0.21 for t in range(51)]
            assert not any(near), (start, end, room)


def test_everything_it_names_is_there() -> None:
    """A name that a renaming forgot: whoever follows it finds nothing."""
    text, folder = PAGE.read_text("utf-8"), ROOT
    assert len(text.splitlines()) <= 90
    missing = []
    for line in text.splitlines():
        if heading := re.match(r"\| in `(\w+)/`", line):
            folder = ROOT / heading[1]
        for name in re.findall(r"`([\w./*]+)`", line):
            first = name.partition(".")[0]
            if "/" in name or name.endswith(".py"):
                near = list(folder.glob(name)) if line.startswith("| `") else []
                missing += [] if near or (ROOT / name).exists() else [name]
            elif "." in name and first in ("experiments", "sharpness", "analysis"):
                missing += [] if importlib.util.find_spec(name) else [name]
    assert missing == []
