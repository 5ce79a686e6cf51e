"""Which runs are trained as one program, and the plan that says so: `plan.json` in the folder of each.

Fused gradients equal single ones up to rounding only, so a run that was begun with others is continued with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.config import RunConfig, program
from experiments.lab.files import to_json, write_atomic
from experiments.lab.seal import SCHEMA, seal, why_broken

MOST = 64
"""runs in one program at most"""


def siblings(configs: Sequence[RunConfig], most: int) -> list[tuple[RunConfig, ...]]:
    """Groups of two to `most` runs that can be one program, each run once, in their order; runs without siblings are left."""
    alike: dict[Any, list[RunConfig]] = {}
    for config in configs:
        alike.setdefault(program(config), []).append(config)
    found = []
    for group in alike.values():
        count = -(-len(group) // most)
        size = -(-len(group) // count)
        found += [tuple(group[i : i + size]) for i in range(0, len(group), size)]
    return [group for group in found if len(group) > 1]


def write_plan(folder: Path, members: Sequence[str], micro_batch: int | None) -> None:
    """Record how a run is computed, before its first update."""
    write_atomic(folder / "plan.json", seal(to_json({"schema": SCHEMA, "members": list(members), "micro_batch": micro_batch})))


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a run, None where it has none (alone, in whole batches) or where it is damaged."""
    try:
        content = (folder / "plan.json").read_bytes()
        document = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and why_broken(content, document) is None else None
