"""Names of a study's arms: what distinguishes its runs besides batch size and seed."""

from __future__ import annotations

import pandas as pd

from analysis.load import Tables

FIELDS = ("stage", "dataset", "model", "norm", "optimizer", "scaling", "schedule", "augment", "budget")
BUDGETS = {"train_loss": "matched train loss", "plateau": "the paper's stop rule", "epochs": "equal epochs",
           "steps": "equal updates"}  # fmt: skip


def runs_by_arm(tables: Tables, *columns: str) -> pd.DataFrame:
    """The finished runs with a column `arm`, sorted by arm, batch size and seed; `columns` restricts the rest.

    An arm is named by the fields of FIELDS that vary in this study; where none does, by its budget.
    """
    frame = tables.runs.assign(budget=tables.runs["budget"].replace(BUDGETS))
    varying = [name for name in FIELDS if frame[name].nunique() > 1] or ["budget"]
    frame = frame.assign(arm=frame[varying].agg(", ".join, axis=1) if len(frame) else "")
    kept = ["arm", "batch_size", "seed", "run_id", *columns]
    return frame[kept].sort_values(["arm", "batch_size", "seed", "run_id"]).reset_index(drop=True)


def measured_by_arm(tables: Tables, metric: str) -> pd.DataFrame:
    """Values of one metric beside the arm, batch size and seed of their run; runs without one are left out."""
    rows = tables.measurements[(tables.measurements["metric"] == metric) & tables.measurements["run_id_b"].isna()]
    return runs_by_arm(tables).merge(rows[["run_id", "value"]], on="run_id").dropna(subset="value")
