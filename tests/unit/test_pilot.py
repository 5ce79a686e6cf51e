"""What pilots say of a study's claims."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import synthetic

from analysis import __main__ as command
from analysis.load import from_store
from analysis.pilot import SEEDS, rows, text
from analysis.stats import power, power_within
from analysis.verdicts import gather


def test_rows_are_the_groups(tmp_path: Path) -> None:
    """A study sized by another spread than its pilots'."""
    tables = from_store(synthetic.study(), "quick", synthetic.write(tmp_path, synthetic.study()))
    found = {row["claim"]: row for row in rows(tables)}
    assert all([g["n"] for g in row["groups"]] == [8, 8] for row in found.values())
    worse = found["tests-worse"]
    sds = [np.std(cell.values, ddof=1) for cell in gather(tables.study.claims[0], tables).cells]
    assert worse["sd"] == pytest.approx(math.sqrt((sds[0] ** 2 + sds[1] ** 2) / 2))
    assert worse["power"][SEEDS[0]] == round(power(worse["effect"], worse["sd"], SEEDS[0]), 3)
    same = found["same-train-loss"]
    assert same["power"][12] == round(power_within(0.005, same["sd"], 12), 3)
    assert "reproduced" not in text(list(found.values())).lower()


def test_pilots_are_seeds_from_1000(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A verdict's runs would be shown as pilots."""
    synthetic.write(tmp_path, synthetic.study())
    (tmp_path / "runs").mkdir(exist_ok=True)
    assert command.main(["pilot", "keskar2017", "--scale", "quick", "--store", str(tmp_path), "--seeds", "2"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "are missing" in err and "--pilot --seeds=2` makes them" in err
