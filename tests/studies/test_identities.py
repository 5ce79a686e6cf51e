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

from analysis.load import DEFAULTS, Published, config_column, find, from_published, none_if_missing
from experiments.lab.declare import config as config_module
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import Request
from experiments.lab.store import published_settings as settings
from experiments.lab.store.records import Store
from experiments.lab.sweep.plan import plan

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


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_settings_are_those_of_the_records(folder: Path) -> None:
    """Settings of other runs than were published, or a value that the runs table has otherwise."""
    runs = pd.read_parquet(folder / "runs.parquet")
    rows = {(row["stage"], row["run_id"]): row for row in runs.to_dict("records")}
    found = settings.read(folder)
    assert {(stage, config.run_id) for stage, config in found} == rows.keys() and len(found) == len(rows)
    for stage, config in found:
        row = DEFAULTS | rows[stage, config.run_id]  # fields added since are at their defaults
        assert {name: none_if_missing(row[config_column(name)]) for name in config.full_dict()} == config.full_dict()


@pytest.mark.parametrize(("field", "default"), [("beta2", 0.5), ("dropout", False)])
def test_published_loads_after_a_default_changed(field: str, default: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old results would be lost, or counted as runs that they are not."""
    folder = ROOT / "figures" / "keskar2017" / "quick"
    before = from_published(folder)
    defaults = tuple((name, default if name == field else value) for name, value in config_module._DEFAULTS)
    monkeypatch.setattr(config_module, "_DEFAULTS", defaults)
    monkeypatch.setitem(RunConfig.__init__.__kwdefaults__, field, default)
    today = find("keskar2017", "quick").stages[0].runs_of(Request("quick"), ())[0]
    assert getattr(today, field) == default != getattr(before.planned[0].config, field)  # other runs today
    after = from_published(folder)
    assert after.planned == before.planned and (after.missing_runs, after.missing_measurements) == (0, 0)
    assert [run.config.run_id for run in after.planned] == [run.config.run_id for run in before.planned]
    pd.testing.assert_frame_equal(after.runs, before.runs)


def test_every_published_scale_is_pinned() -> None:
    """Records that nothing holds, or that were taken away with their study."""
    assert sorted(PINNED) == [name(folder) for folder in FOLDERS], CHANGED


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name(folder): declared(folder) for folder in FOLDERS}, indent=1) + "\n")
