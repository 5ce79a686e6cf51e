"""The tables for readers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import synthetic

from analysis.load import Tables, from_store
from analysis.tables import cell_table, render, verdict_table
from analysis.verdicts import verdicts
from experiments.keskar2017 import STUDY
from experiments.lab.declare.claims import Family

NEW = {"norm_scaled_lambda": "‖w‖² λ_max", "trace": "tr H", "relative_trace": "relative tr H", "adaptive_l2_step": "adaptive"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return from_store(STUDY, "quick", synthetic.write(tmp_path_factory.mktemp("store"), STUDY))


def test_every_measure_of_sharpness_has_a_column(tables: Tables) -> None:
    """A metric is measured and no reader sees it, or it stands under another's name."""
    table = cell_table(tables)
    assert set(NEW.values()) < set(table.columns) and all(len(row) == len(table.columns) for row in table.rows)
    rows = tables.measurements[tables.measurements["metric"] == "relative_trace"].merge(tables.runs, on="run_id")
    values = [math.log(v) for v in rows[rows["batch_size"] == 16]["value"]]
    row = next(row for row in table.rows if row[1] == "16")
    shown = float(row[table.columns.index("relative tr H")].split()[0])
    assert shown == pytest.approx(math.exp(sum(values) / len(values)), rel=5e-3)
    assert "tr(H diag(w²))" in table.title


def test_what_was_not_measured_has_none(tables: Tables) -> None:
    """Columns of dashes in the tables of older records."""
    kept = tables.measurements[~tables.measurements["metric"].isin(list(NEW))]
    table = cell_table(replace(tables, measurements=kept))
    assert table.columns[8:11] == ("λ_max", "φ full", "φ subspace") and not set(NEW.values()) & set(table.columns)
    assert "‖" not in table.title


def test_tex_has_no_symbols_that_it_cannot_set(tables: Tables) -> None:
    """A table that LaTeX refuses."""
    text = render(cell_table(tables), "tex").split("\n", 1)[1]
    assert not [c for c in text if ord(c) > 127]


def test_values_of_other_studies_have_columns(tables: Tables) -> None:
    """A value that a claim speaks of stands in no table; a family that is read as one number per seed of one run each."""
    first = STUDY.claims[0]
    family = Family("kendall", (), (("against_value", "phi_full.value_origin"),))
    contrast = replace(first.contrast, value="gap_loss", family=family)
    study = replace(STUDY, claims=(replace(first, contrast=contrast),))
    other = replace(tables, study=study, runs=tables.runs.assign(lr=tables.runs["batch_size"] / 1000))
    table = cell_table(other)
    assert table.columns[-2:] == ("test − train (nats)", "phi full, value origin") and table.columns[2] == "LR"
    assert all(len(row) == len(table.columns) for row in table.rows) and {row[2] for row in table.rows} >= {"0.016", "0.5"}
    assert "n counts these numbers" in verdict_table(verdicts(other)).title
    assert verdicts(other)[0].population == "kendall of gap_loss, one per group, on this test set"
    assert "LR" not in cell_table(tables).columns and "n counts" not in verdict_table(verdicts(tables)).title


def test_cells_of_one_learning_rate(tables: Tables) -> None:
    """The mean of runs of unlike learning rates, as if they were seeds of one setting."""
    runs = tables.runs
    two = cell_table(replace(tables, runs=runs.assign(lr=0.1 + runs["seed"] % 2)))
    assert len(two.rows) == 2 * len(cell_table(tables).rows) and {row[2] for row in two.rows} == {"0.1", "1.1"}
    many = cell_table(replace(tables, runs=runs.assign(lr=0.1 + runs["seed"] * (runs["batch_size"] == 16))))
    assert "16" not in {row[1] for row in many.rows} and "left out" in many.title
