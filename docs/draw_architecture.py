"""Draws docs/architecture.svg from the imports of the source: `python docs/draw_architecture.py`.

A box is a room, an arrow an import; an arrow that a way over others implies is left out, and one that goes up is red. The file
holds all arrows as data, by which a test knows that it is out of date.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("architecture.svg")
TOPS = ("experiments", "sharpness", "analysis", "notebooks")
PLACES = {
    "notebooks": (0, 0), "analysis": (1, 0), "studies": (1, 2), "sweep": (2, 1), "fused": (3, 0), "measures": (3, 2),
    "store": (4, 1), "training": (5, 1), "sharpness": (6.8, 3), "datasets": (6, 0), "models": (6, 2), "declare": (7, 1),
}
"""room -> its row from the top, its place in the row"""
WORDS = {
    "notebooks": "figures, step by step", "analysis": "verdicts, tables, figures", "studies": "experiments/*.py: the papers",
    "sweep": "plan, workers, commands", "fused": "many runs as one program", "measures": "curvature of stored runs",
    "store": "records, leases, checkpoints", "training": "the loop", "datasets": "images and labels", "models": "networks",
    "declare": "configurations, claims", "sharpness": "a library of its own",
}
COLOURS = {"sharpness": "#fdebd3", "analysis": "#e3f1e1", "notebooks": "#e3f1e1"}
WIDTH, HEIGHT, COLUMN, ROW = 1.5, 0.36, 1.72, 0.62
"""of a box, and between the middles of two, in inches"""

Arrows = Mapping[str, Sequence[str]]
"""room -> the rooms that it imports from"""


def room_of(module: str) -> str:
    """`declare` for `experiments.lab.declare.config`, `studies` for `experiments.keskar2017`; elsewhere the package."""
    top, *rest = module.split(".")
    if top != "experiments":
        return top
    return rest[1] if rest[:1] == ["lab"] and len(rest) > 1 else "studies"


def imported(module: str, tree: ast.Module) -> Iterator[str]:
    """Every module of ours that a file imports, wherever in the file. That a package `experiments` exists is no room's matter."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            near = module.split(".")[: -node.level] if node.level else []
            names += (".".join([*near, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
    return (name for name in names if name.partition(".")[0] in TOPS and name != "experiments")


def arrows(root: Path = ROOT) -> dict[str, list[str]]:
    """The graph of the source as it is."""
    found: dict[str, set[str]] = {room: set() for room in PLACES}
    for file in (file for top in TOPS for file in (root / top).rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        others = map(room_of, imported(module, ast.parse(file.read_text("utf-8"))))
        found.setdefault(room_of(module.removesuffix(".__init__")), set()).update(others)
    return {room: sorted(others - {room}) for room, others in sorted(found.items())}


def drawn() -> dict[str, list[str]]:
    """The graph that the picture shows."""
    (told,) = ElementTree.parse(PICTURE).iter("{http://purl.org/dc/elements/1.1/}description")
    return json.loads(told.text or "")


def reached(start: str, graph: Arrows) -> set[str]:
    """Every room below `start`, by any number of arrows."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        ahead = [room for at in ahead for room in graph.get(at, ()) if room not in found]
        found.update(ahead)
    return found


def shown(graph: Arrows) -> list[tuple[str, str, bool]]:
    """From, to, and whether the arrow goes up: without those that go down and that others imply."""
    down = {room: [other for other in others if PLACES[other][0] > PLACES[room][0]] for room, others in graph.items()}
    direct = [(room, other, False) for room, others in down.items() for other in others
              if not any(other in reached(between, down) for between in others if between != other)]
    return [*direct, *((room, other, True) for room, others in graph.items() for other in others if other not in down[room])]


def middle(room: str) -> tuple[float, float]:
    """Of its box, in inches."""
    row, place = PLACES[room]
    return 0.87 + place * COLUMN, (7.5 - row) * ROW + 0.05


def draw(graph: Arrows) -> bytes:
    width, height = 6.9, 8 * ROW + 0.1
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    boxes = {}
    for room in PLACES:
        x, y = middle(room)
        corner, colour = (x - WIDTH / 2, y - HEIGHT / 2), COLOURS.get(room, "#e4ecf7")
        boxes[room] = FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.03", fc=colour, ec="#444444")
        axes.add_patch(boxes[room])
        axes.text(x, y + 0.075, room, ha="center", va="center", fontsize=8.5, weight="bold")
        axes.text(x, y - 0.095, WORDS[room], ha="center", va="center", fontsize=7)
    for room, other, up in shown(graph):
        axes.add_patch(FancyArrowPatch(
            middle(room), middle(other), patchA=boxes[room], patchB=boxes[other], arrowstyle="-|>", mutation_scale=9,
            color="#c03020" if up else "#444444", shrinkA=0, shrinkB=1,
        ))
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rooms"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Description": json.dumps(graph)})
    return out.getvalue()


if __name__ == "__main__":
    PICTURE.write_bytes(draw(arrows()))
