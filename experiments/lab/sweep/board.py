"""The board: every published verdict in one list, whatever it says.

A verdict is read from figures/<study>/<scale>/verdicts.json as the mapping that `analysis.verdicts.Verdict.to_dict` wrote.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lab.declare.checkout import FIGURES
from experiments.lab.store.files import StoreError

SCALES = ("paper", "gpu", "overnight", "laptop", "quick")
"""larger ones first"""
DASH = "—"
COLUMNS = ("study", "scale", "claim", "verdict", "effect [interval]", "n", "paper's", "how it is known")

Verdicts = Sequence[Mapping[str, Any]]


def published(figures: Path = FIGURES) -> list[dict[str, Any]]:
    """Every published verdict by study, scale and declared order."""
    order = {scale: number for number, scale in enumerate(SCALES)}
    files = sorted(figures.glob("*/*/verdicts.json"), key=lambda p: (p.parts[-3], order.get(p.parts[-2], len(order))))
    return [verdict for file in files for verdict in _read(file)]


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} cannot be read ({error}); restore it, or publish its study again") from error


def tally(found: Verdicts) -> str:
    """How many verdicts of each kind, as a sentence without its stop."""
    counts = Counter(v["verdict"] or "no verdict" for v in found)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def cells(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of the board, in the order of COLUMNS."""
    return (verdict["study"], verdict["scale"], verdict["sentence"] + (" (primary)" if verdict["primary"] else ""),
            verdict["verdict"] or DASH, effect(verdict), str(verdict["n_seeds"]), number(paper_effect(verdict)),
            DASH if verdict["paper_value"] is None else verdict["paper_source"])


def markdown(found: Verdicts) -> str:
    """The board as a table whose studies link to their pages, relative to figures/."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for verdict in found:
        study, scale, *rest = cells(verdict)
        rows.append((f"[{study}]({study}/{scale}/README.md)", scale, *rest))
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


def text(found: Verdicts) -> str:
    """The board as a person reads it in a terminal: two lines per verdict."""
    lines = []
    for verdict in found:
        study, scale, claim, answer, size, seeds, theirs, known = cells(verdict)
        lines.append(f"{answer.upper():13s} {study} ({scale}): {claim}")
        lines.append(f"{'':13s} {size}, n {seeds}; paper's {theirs}{'' if theirs == DASH else f' ({known})'}")
    return "\n".join(lines)


def effect(verdict: Mapping[str, Any]) -> str:
    """Effect, unit and interval with its level; ratios are multiplied out."""
    ratio = verdict["ratio"] is not None
    values = [verdict[name] for name in (("ratio", "ratio_low", "ratio_high") if ratio else ("effect", "ci_low", "ci_high"))]
    if any(value is None for value in values):
        return DASH
    middle, low, high = map(number, values)
    unit = "×" if ratio else f" {verdict['unit']}"
    return f"{middle}{unit} [{low}, {high}] at {100 * verdict['level']:.4g}%"


def paper_effect(verdict: Mapping[str, Any]) -> float | None:
    """The paper's effect in the unit that `effect` shows."""
    value = verdict["paper_value"]
    return math.exp(value) if value is not None and verdict["ratio"] is not None else value


def number(value: float | None) -> str:
    """Three significant digits; an em dash for what is missing, never 0."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
