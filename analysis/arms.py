"""Names of a study's arms: what distinguishes its runs besides batch size and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.load import RUNS, Tables, config_column

NUMBERS = {
    "width": ("width", "standard width"), "depth": ("depth", "standard depth"), "norm_batch": ("ghost batch", "no ghost batch"),
    "batch_growth": ("growth", "no growth"), "noise_batch": ("noise of B", "own noise"), "momentum": ("momentum", "no momentum"),
    "weight_decay": ("weight decay", "no weight decay"), "warmup": ("warm-up", "no warm-up"),
    "label_smoothing": ("smoothing", "no smoothing"), "clip_norm": ("clipped at", "not clipped"), "sam_rho": ("SAM ρ", "no SAM"),
    "gradient_penalty": ("penalty", "no penalty"), "ema": ("average", "no average"),
}
"""number -> how it is named, and how where it is 0 or absent"""
SWITCHES = {"sam_adaptive": "adaptive"}
FIELDS = ("stage", "dataset", "model", "norm", "optimizer", "scaling", "schedule", "augment", "budget", "epochs", *NUMBERS,
          *SWITCHES)
"""the fields that tell arms apart where a figure does not say; learning rates do not, for they are tuned"""
BUDGETS = {"train_loss": "matched train loss", "plateau": "the paper's stop rule", "epochs": "equal epochs",
           "steps": "equal updates"}

WORDS = {
    "budget": BUDGETS,
    "norm": {"none": "no norm", "batch": "batch norm", "ghost": "ghost batch norm", "group": "group norm", "layer": "layer norm"},
    "scaling": {"none": "LR not scaled", "sqrt": "LR scaled with √B", "linear": "LR scaled with B"},
    "schedule": {"constant": "constant LR", "linear": "linear decay", "cosine": "cosine decay", "step": "LR divided in steps"},
    "augment": {"none": "no augmentation", "crop-flip": "crops and flips"},
    "optimizer": {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lars": "LARS", "lamb": "LAMB"},
}
"""how the words of a configuration are written"""

Where = Sequence[tuple[str, Any]]
"""(config field or `stage`, value or values) pairs"""
Arms = Sequence[tuple[str, Where]]
"""arms by name, where fields alone do not name them"""


def chosen(tables: Tables, where: Where) -> Tables:
    """`tables` with only the runs whose fields have these values. Raises ValueError for a field that no run has."""
    return dataclasses.replace(tables, runs=_holding(tables.runs, where)) if where else tables


def _holding(runs: pd.DataFrame, where: Where) -> pd.DataFrame:
    for name, value in where:
        if (column := config_column(name)) not in RUNS:
            raise ValueError(f"runs cannot be chosen by {name!r}: it is no config field and not the stage")
        wanted = list(value) if isinstance(value, (tuple, list)) else [value]
        runs = runs[runs[column].isin([w for w in wanted if w is not None]) | (runs[column].isna() & (None in wanted))]
    return runs


def runs_by_arm(tables: Tables, *columns: str, fields: Sequence[str] | None = None, arms: Arms = ()) -> pd.DataFrame:
    """The finished runs with a column `arm`, sorted by arm, batch size and seed; `columns` restricts the rest.

    An arm is named by `fields`, else by the fields of FIELDS that vary in this study; where none does, by its budget. With
    `arms` it is one of these. Columns that may be asked for too: `rank`, the arms' order by the values of their fields, and
    `graded`, whether they differ in one number alone.
    """
    if arms:
        parts = [_holding(tables.runs, where).assign(arm=name, rank=i, graded=False) for i, (name, where) in enumerate(arms)]
        frame = pd.concat(parts, ignore_index=True)
    else:
        own = [config_column(name) for name in (fields or varying(tables.runs) or ["budget"])]
        frame = tables.runs.assign(rank=0, graded=len(own) == 1 and RUNS[own[0]] not in ("str", "bool"))
        if len(frame):
            frame["rank"] = frame.groupby(own, dropna=False).ngroup()
            texts = pd.DataFrame({name: [text_of(name, value) for value in frame[name]] for name in own}, index=frame.index)
            frame["arm"] = [", ".join(text for text in row if text) or "all runs" for row in texts.itertuples(index=False)]
        else:
            frame["arm"] = ""
    kept = ["arm", *dict.fromkeys(("batch_size", "seed", "run_id", *columns))]
    return frame[kept].sort_values(["arm", "batch_size", "seed", "run_id"]).reset_index(drop=True)


def varying(runs: pd.DataFrame, among: Sequence[str] = FIELDS) -> list[str]:
    """Those of the fields `among` in which the runs differ; in epochs they do where two numbers are given, not one and none."""
    return [name for name in among if runs[config_column(name)].nunique(dropna=name == "epochs") > 1]


def text_of(field: str, value: Any) -> str:
    """One field's part in the name of an arm."""
    if field in SWITCHES:
        return SWITCHES[field] if value else ""
    if isinstance(value, str):
        return WORDS.get(field, {}).get(value, value)
    if field == config_column("epochs"):
        return "" if pd.isna(value) else f"{value:g} epoch{'s' * (value != 1)}"
    named, absent = NUMBERS.get(field, ({"batch_size": "B", "lr": "LR"}.get(field, field.replace("_", " ")), ""))
    if pd.isna(value) or (value == 0 and absent):
        return absent or f"no {named}"
    return f"{named} {value:g}"


def measured_by_arm(tables: Tables, metric: str) -> pd.DataFrame:
    """Values of one metric beside the arm, batch size and seed of their run; runs without one are left out."""
    rows = tables.measurements[(tables.measurements["metric"] == metric) & tables.measurements["run_id_b"].isna()]
    return runs_by_arm(tables).merge(rows[["run_id", "value"]], on="run_id").dropna(subset="value")
