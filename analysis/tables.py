"""Tables for readers: what was measured in each cell, the verdicts, and ours beside the paper's.

Each is a `Table` of text and is written as Markdown, CSV or LaTeX (booktabs) by one function. A missing value is an em
dash, never 0; a spread is the standard deviation over seeds and stands beside its n.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import margins
from analysis.arms import measured_by_arm, runs_by_arm
from analysis.cells import members, values_of
from analysis.families import other_values
from analysis.load import RUNS, SUMMARY, Tables
from analysis.verdicts import SEEDS, Verdict
from experiments.lab.declare.claims import ValueScale

DASH = "—"
CLAIMED = ("lambda_max", "phi_full", "phi_subspace")
SHARPNESS = {
    "lambda_max": "λ_max", "phi_full": "φ full", "phi_subspace": "φ subspace", "norm_scaled_lambda": "‖w‖² λ_max",
    "trace": "tr H", "relative_trace": "relative tr H", "adaptive_l2_step": "adaptive",
}
"""metric -> column; those not in CLAIMED stand only where they were measured"""
TITLES = {
    "train_loss": "train loss (nats)", "validation_accuracy": "validation accuracy (%)", "gap_loss": "test − train (nats)",
    "train_accuracy": "train accuracy (%)", "validation_loss": "validation loss (nats)",
}
ABOUT = {
    "relative_trace": "tr(H diag(w²))",
    "adaptive_l2_step": "rise of the loss (nats) by one step relative to each weight",
}


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def render(table: Table, form: str) -> str:
    """`table` as text; form is md, csv or tex."""
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
        return text.getvalue()
    if form == "tex":
        lines = [" & ".join(map(_tex, row)) + r" \\" for row in (table.columns, *table.rows)]
        head = rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}"
        return "\n".join([f"% {table.title}", head, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
                          r"\end{tabular}", ""])
    if form == "md":
        rows = [table.columns, ("---",) * len(table.columns), *table.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows) + "\n"
    raise ValueError(f"a table is written as md, csv or tex, not {form!r}")


def verdict_table(found: Sequence[Verdict]) -> Table:
    rows = tuple(
        (
            v.verdict or DASH,
            v.sentence + (" (primary)" if v.primary else ""),
            effect_text(v),
            _number(paper_effect(v)),
            {None: DASH, True: "agrees", False: "differs"}[v.magnitude_agrees],
            str(v.n_seeds),
            p_text(v.p_value if v.primary else v.p_adjusted),
            p_text(v.p_permutation),
            margins.words(v.to_dict()),
            v.decided_by,
        )
        for v in found
    )
    columns = ("verdict", "claim", "effect [interval]", "paper's", "magnitude", "n", "p", "p by permutation",
               "margin (verdict the same)", "decided by")
    title = (
        "Positive effects (factors above 1) are on the paper's side. Magnitude: whether the interval contains the paper's "
        "effect. Intervals speak of seeds on this test set; p and interval are Holm-adjusted except for the primary claim. "
        "Margin: in brackets those for which the verdict would be the same."
    )
    if any(v.population != SEEDS for v in found):
        title += " Where a claim takes one number of several runs, n counts these numbers, or the clusters of runs resampled."
    return Table("verdicts", title, columns, rows)


def verdict_lines(found: Sequence[Verdict], again: Mapping[str, tuple[str, Verdict]] | None = None) -> str:
    """The verdicts as a person reads them in a terminal: a paragraph for each claim; `again` are answers of further seeds, by
    claim, each with the words for its seeds."""
    lines = []
    for v in found:
        sentence = f"{(v.verdict or 'no verdict').upper():13s} {v.sentence}{' (primary)' if v.primary else ''}"
        p = p_text(v.p_value if v.primary else v.p_adjusted)
        for text in (sentence, f"{'':14s}{effect_text(v)}", f"{'':14s}n {v.n_seeds}, p {p}: {v.decided_by}"):
            lines += textwrap.wrap(text, 104, subsequent_indent=" " * 14, break_on_hyphens=False)
        if again and v.claim in again:
            seeds, other = again[v.claim]
            text = (f"{'':14s}again, with {seeds} alone: {(other.verdict or 'no verdict').upper()}, {effect_text(other)}, n "
                    f"{other.n_seeds}: {other.decided_by}")
            lines += textwrap.wrap(text, 104, subsequent_indent=" " * 14, break_on_hyphens=False)
    return "\n".join(lines)


def effect_text(v: Verdict) -> str:
    """Effect, unit and interval with its level; ratios are multiplied out."""
    values = (v.ratio, v.ratio_low, v.ratio_high) if v.ratio is not None else (v.effect, v.ci_low, v.ci_high)
    if values[0] is not None and values[1] is None:
        return f"{_number(values[0])}{'×' if v.ratio is not None else f' {v.unit}'}, no interval"
    if any(x is None for x in values):
        return DASH
    effect, low, high = (_number(x) for x in values)
    unit = "×" if v.ratio is not None else f" {v.unit}"
    both = "" if v.both_low is None else f"; [{_number(v.both_low)}, {_number(v.both_high)}] over seeds and test examples"
    return f"{effect}{unit} [{low}, {high}] at {100 * v.level:.4g}%{both}"


def paper_effect(v: Verdict) -> float | None:
    """The paper's effect in the unit that `effect_text` shows."""
    if v.paper_value is None:
        return None
    return math.exp(v.paper_value) if v.ratio is not None else v.paper_value


def p_text(p: float | None) -> str:
    return DASH if p is None else "<0.0001" if p < 1e-4 else f"{p:.2g}"


SEARCH = 3
"""learning rates of a cell beyond which it is a grid to choose from, where claims compare cells: a table of each hides them"""


def cell_table(tables: Tables) -> Table:
    """One row per arm, batch size and learning rate; values that only this study's claims speak of have columns of their own."""
    names = ("status", "test_accuracy", "test_loss", "gap_accuracy", "steps", "epochs", "distance_from_start")
    others = claimed(tables, {*names, *SHARPNESS})
    frame = runs_by_arm(tables, *names, "lr")
    for name in others:
        known = values_of(name, tables)
        frame[name] = pd.Series([known.get(run_id) for run_id in frame["run_id"]], index=frame.index, dtype="float64")
    tuned = frame["lr"].nunique() > 1
    here = {*tables.measurements["metric"], *(metric for p in tables.planned for metric in p.metrics if metric in CLAIMED)}
    titles = {name: title for name, title in SHARPNESS.items() if name in here}
    metrics = {name: measured_by_arm(tables, name) for name in titles}
    compares = bool(tables.study.claims_at(tables.scale))
    searched = (frame.groupby(["arm", "batch_size"])["lr"].transform("nunique") > SEARCH) & compares
    rows = []
    for (arm, size, lr), part in frame[~searched].groupby(["arm", "batch_size", "lr"]):
        measured = {name: values[values["run_id"].isin(part["run_id"])]["value"] for name, values in metrics.items()}
        n, diverged = len(part), int((part["status"] == "diverged").sum())
        rows.append((
            str(arm), str(size), *([f"{lr:.3g}"] if tuned else []),
            f"{n} ({diverged} diverged)" if diverged else str(n),
            *(mean_sd(part[name], n) for name in ("test_accuracy", "gap_accuracy", "test_loss")),
            *(_mean(part[name]) for name in ("steps", "epochs")),
            *(geometric(measured[name], n) for name in metrics),
            mean_sd(part["distance_from_start"], n),
            *(geometric(part[name], n) if logarithmic else mean_sd(part[name], n) for name, logarithmic in others.items()),
        ))
    columns = ("arm", "B", *(["LR"] if tuned else []), "n", "test accuracy (%)", "train − test (points)", "test loss (nats)",
               "updates", "epochs", *titles.values(), "distance from start", *map(_title, others))
    title = "Mean ± standard deviation over n seeds; λ_max and φ: geometric mean ×/÷ geometric standard deviation."
    if len(titles) > len(CLAIMED):
        title = (
            "Mean ± standard deviation over n seeds; what measures sharpness: geometric mean ×/÷ geometric standard deviation."
            + "".join(f" {titles[name]}: {ABOUT[name]}." for name in titles if name in ABOUT)
        )
    if searched.any():
        title += f" Cells in which more than {SEARCH} learning rates were searched are left out."
    return Table("cells", title, columns, tuple(rows))


def claimed(tables: Tables, known: Collection[str]) -> dict[str, bool]:
    """Values that the claims of this scale speak of, except for those `known` -> whether a claim takes their logarithms."""
    found: dict[str, bool] = {}
    for contrast in (claim.contrast for claim in tables.study.claims_at(tables.scale)):
        logarithmic = contrast.scale is ValueScale.LOG and contrast.family is None
        for name in (contrast.value, *(other_values(contrast.family) if contrast.family else ())):
            if name not in known and (name in SUMMARY or name not in RUNS):
                found[name] = found.get(name, False) or logarithmic
    return found


def _title(value: str) -> str:
    return TITLES.get(value, value.replace("_", " ").replace(".", ", "))


def paper_table(tables: Tables) -> Table:
    """The paper's rows beside ours, for the networks that this scale compares."""
    rows = []
    for comparison in (c for c in tables.study.comparisons if c.scale == tables.scale):
        for line in (line for line in tables.study.paper if line.network == comparison.network):
            known = values_of(line.value, tables)
            small, large = (
                pd.Series([known.get(p.config.run_id) for p in members(group, tables.planned)], dtype="float64").dropna()
                for group in (comparison.first, comparison.second)
            )
            if small.empty and large.empty:
                continue
            rows.append((
                line.table, line.network, line.quantity, comparison.label,
                _paper_number(line.first, line.first_sd), mean_sd(small),
                _paper_number(line.second, line.second_sd), mean_sd(large),
                f"{len(small)} / {len(large)}", line.source,
            ))
    first, second = tables.study.conditions
    columns = ("table", "network", "quantity", "ours", f"paper, {first}", f"ours, {first}", f"paper, {second}",
               f"ours, {second}", "our n", "paper's number")
    title = "Ours beside the paper's: mean ± standard deviation. Networks, data and batch sizes differ where the study deviates."
    return Table("paper", title, columns, tuple(rows))


def mean_sd(values: pd.Series, n: int | None = None) -> str:
    """mean ± sd, with its own count where that is not the row's n."""
    known = values.dropna().to_numpy(np.float64)
    if not len(known):
        return DASH
    with np.errstate(over="ignore"):  # a run off the scale has a loss whose square is no number
        sd = known.std(ddof=1) if len(known) > 1 else None
    spread = f" ± {_number(sd, sd)}" if sd is not None else ""
    return _number(known.mean(), sd) + spread + _count(len(known), n)


def geometric(values: pd.Series, n: int | None = None) -> str:
    """Geometric mean ×/÷ geometric standard deviation; a dash where a value is not positive."""
    known = values.dropna().to_numpy(np.float64)
    if not len(known) or (known <= 0).any():
        return DASH
    logs = np.log(known)
    spread = f" ×/÷ {math.exp(logs.std(ddof=1)):.2f}" if len(known) > 1 else ""
    return _number(math.exp(logs.mean())) + spread + _count(len(known), n)


def _count(count: int, n: int | None) -> str:
    return f" (n {count})" if n is not None and count != n else ""


def _mean(values: pd.Series) -> str:
    known = values.dropna()
    return f"{known.mean():,.0f}" if len(known) else DASH


def _paper_number(value: float, sd: float | None) -> str:
    return f"{value:g}" + (f" ± {sd:g}" if sd is not None else "")


def _number(value: float | None, sd: float | None = None) -> str:
    """Three significant digits; two decimals where a standard deviation asks for them."""
    if value is None or not math.isfinite(value):
        return DASH
    if abs(value) >= 1e7:
        return f"{value:.2g}"
    if sd is not None and 0.005 <= sd < 10:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _tex(cell: str) -> str:
    text = cell.replace("\\", r"\textbackslash ")
    for plain in "&%$#_{}":
        text = text.replace(plain, "\\" + plain)
    for plain, tex in ((DASH, "---"), ("−", "$-$"), ("±", r"$\pm$"), ("×/÷", r"$\times/\div$"), ("×", r"$\times$"),
                       ("λ\\_max", r"$\lambda_{\max}$"), ("φ", r"$\varphi$"), ("‖", r"$\|$"), ("²", "$^2$"),
                       ("<", "$<$")):
        text = text.replace(plain, tex)
    return text
