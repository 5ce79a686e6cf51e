"""The table of situations in sharpness/docs/wild.md: what peers do, and what we do.

From the project's root:   python tests/wild/table.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from wild.situation import Situation  # noqa: E402
from wild.situations import SITUATIONS  # noqa: E402

PAGE = HERE.parent.parent / "sharpness" / "docs" / "wild.md"
BEGIN, END = "<!-- made by tests/wild/table.py -->", "<!-- end -->"


def peers() -> dict[str, Any]:
    return json.loads((HERE / "peers.json").read_text())


def page(text: str, ours: Callable[[Situation], str]) -> str:
    """The page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{_table(ours)}{END}{rest.partition(END)[2]}"


def _table(ours: Callable[[Situation], str]) -> str:
    record = peers()
    names = [name for name in record["versions"] if name != "torch"]
    lines = [f"Measured with {', '.join(f'{name} {v}' for name, v in record['versions'].items())}.", ""]
    for kind in dict.fromkeys(s.kind for s in SITUATIONS):
        lines += [f"### {kind[0].upper()}{kind[1:]}", "", f"| situation | {' | '.join(names)} | sharpness |"]
        lines += [f"|---|{'---|' * (len(names) + 1)}"]
        for s in SITUATIONS:
            if s.kind == kind:
                theirs = [record["outcomes"].get(s.name, {}).get(name, "") for name in names]
                cells = [s.name, *map(_short, theirs), f"**{ours(s)}**"]
                lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def _short(word: str) -> str:
    return word.replace("a number where there is none", "a number").replace("not a number", "NaN")


def main() -> None:
    import torch
    from wild.measures import outcome

    torch.set_num_threads(1)
    PAGE.write_text(page(PAGE.read_text(), lambda s: outcome(s, s.measures[0])))


if __name__ == "__main__":
    main()
