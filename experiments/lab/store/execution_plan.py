"""How a run is computed, in `plan.json` of its folder: the runs it shares a program with, and its micro-batches.

Fused gradients equal single ones up to rounding only, so a run that was begun with others is continued with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.store.checksums import SCHEMA, why_broken, with_checksum
from experiments.lab.store.files import to_json, write_atomic
from experiments.lab.store.records import Store


def company_of(store: Store, run_id: str) -> list[str]:
    """The members of the program that a run was begun in which are not finished; itself alone where it has no plan.

    None at all where the company broke up: a member was begun, or has ended, under another plan.
    """
    plan = read_plan(store.folder(run_id))
    if plan is None:
        return [] if (store.folder(run_id) / "plan.json").exists() else [run_id]  # damaged: nobody knows how it was begun
    members = plan["members"]
    if any((read_plan(store.folder(member)) or {}).get("members") != members for member in members):
        return []
    return [member for member in members if not store.finished(member)]


def write_plan(folder: Path, members: Sequence[str], micro_batch: int | None) -> None:
    """Record how a run is computed, before its first update."""
    plan = {"schema": SCHEMA, "members": list(members), "micro_batch": micro_batch}
    write_atomic(folder / "plan.json", with_checksum(to_json(plan)))


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a run, None where it has none (alone, in whole batches) or where it is damaged."""
    try:
        content = (folder / "plan.json").read_bytes()
        document = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and why_broken(content, document) is None else None
