"""Run ids and claim hashes of everything published: what the code plans today, what the records hold, and what was pinned.

Where a study is meant to change, publish it and pin anew: `PYTHONPATH=tests:. python tests/studies/test_identities.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from analysis.load import Published, find
from experiments.lab.plan import plan
from experiments.lab.store import Store
from experiments.lab.study import Request

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("identities.json")
FOLDERS = sorted(path.parent for path in (ROOT / "figures").glob("*/*/runs.parquet"))
PINNED: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
CHANGED = "another run or claim than was pinned; if that is meant, publish the study and pin anew (see the top of this file)"


def name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def identity(runs: Iterable[tuple[str, str]], claims: dict[str, str]) -> dict[str, Any]:
    """Number and SHA-256 of the sorted pairs of stage and run id, and the hash of each claim."""
    lines = sorted({f"{stage} {run_id}\n" for stage, run_id in runs})
    return {"runs": len(lines), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(), "claims": claims}


def declared(folder: Path) -> dict[str, Any]:
    """As the code plans it today; later stages are chosen from the published values of the earlier."""
    study, scale = find(folder.parent.name, folder.name), folder.name
    stages = plan(study, Request(scale), cast(Store, Published(pd.read_parquet(folder / "runs.parquet"))))
    runs = [(stage.stage.name, config.run_id) for stage in stages for config in stage.runs or ()]
    return identity(runs, {claim.id: claim.hash for claim in study.claims_at(scale)})


def published(folder: Path) -> dict[str, Any]:
    """As the records have it."""
    runs = pd.read_parquet(folder / "runs.parquet", columns=["study", "scale", "stage", "run_id"])
    assert set(zip(runs["study"], runs["scale"], strict=True)) == {(folder.parent.name, folder.name)}
    found = json.loads((folder / "verdicts.json").read_text())
    return identity(zip(runs["stage"], runs["run_id"], strict=True), {v["claim"]: v["claim_hash"] for v in found})


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_runs_and_claims_are_those_pinned(folder: Path) -> None:
    """Published records would be orphaned, or a verdict answer another claim than it names, without anybody having meant it."""
    pinned = PINNED.get(name(folder))
    assert declared(folder) == pinned, f"{name(folder)} declares {CHANGED}"
    assert published(folder) == pinned, f"the records of {name(folder)} hold {CHANGED}"


def test_every_published_scale_is_pinned() -> None:
    """Records that nothing holds, or that were taken away with their study."""
    assert sorted(PINNED) == [name(folder) for folder in FOLDERS], CHANGED


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name(folder): declared(folder) for folder in FOLDERS}, indent=1) + "\n")
