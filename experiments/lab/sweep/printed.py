"""What a command prints for a person: what they want first, then the rest. `--json` prints the document itself.

Words in ASCII only: a terminal may know no more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from experiments.lab.store.records import IN_WORDS
from experiments.lab.sweep.commands import UNDER_WAY, overview_text, readable
from experiments.lab.sweep.progress import duration

STATES = ("done", "capped", "diverged", *UNDER_WAY)
SHOWN = 10
"""runs of a kind that `status` names at most"""
FIRST = (
    ("test_accuracy", "test accuracy", "%"), ("test_r2", "test R^2", ""), ("test_loss", "test loss", ""),
    ("validation_accuracy", "validation accuracy", "%"), ("train_loss", "training loss", ""),
    ("gap_loss", "generalization gap", " (test - training loss)"),
    ("gap_accuracy", "", " points (training - test accuracy)"), ("steps", "steps", ""), ("epochs", "epochs", ""),
)
"""field of a summary, its name, its unit"""


def text(command: str, document: Any, options: Any) -> str:
    """The output of a command."""
    match command:
        case "overview":
            return overview_text(document)
        case "train":
            return train_text(document, options)
        case "measure":
            return measure_text(document, options)
        case "run" | "sweep" if "counts" in document:
            return run_text(document)
        case "status":
            return status_text(document)
        case _:
            return readable(document)


def train_text(summary: dict[str, Any], options: Any) -> str:
    """Status and scores, and where the run lies."""
    reason = f" ({summary['reason']})" if summary.get("reason") else ""
    lines = [("status", f"{IN_WORDS.get(summary['status'], summary['status'])}{reason}")]
    lines += [(label, f"{summary[name]:.6g}{unit}") for name, label, unit in FIRST if summary.get(name) is not None]
    if summary.get("seconds") is not None:
        lines.append(("time", duration(summary["seconds"])))
    run_id = summary.get("run_id", "")
    lines += [("run", run_id), ("folder", str(options.store / "runs" / run_id))]
    width = max(len(label) for label, _ in lines) + 2
    return "\n".join([*(f"{label:{width}}{value}" for label, value in lines), "(--json, or summary.json there, has the rest)"])


def measure_text(document: dict[str, Any], options: Any) -> str:
    """A line per metric: its value with its certificate."""
    found = document["measurements"]
    lines = [f"run {document['run_id']} in {options.store}"]
    width = max(len(one["metric"]) for one in found)
    for one in found:
        value = "none" if one["value"] is None else f"{one['value']:.6g}"
        error = f" +- {one['standard_error']:.2g}" if one["standard_error"] is not None else ""
        if sentence := one["details"].get("sentence"):
            lines.append(f"{one['metric']:{width}}  {value}  ({one['status']}: {sentence})")
            continue
        certificate = [one["status"], f"residual {one['residual']:.2g}" if one["residual"] is not None else "",
                       f"{one['products']} products" if one["products"] is not None else "", f"{one['examples']} examples",
                       one["dtype"], f"seed {one['seed']}" if one["seed"] is not None else ""]
        lines.append(f"{one['metric']:{width}}  {value}{error}  ({', '.join(filter(None, certificate))})")
    return "\n".join([*lines, "(--json, or measurements/ in the run's folder, has every detail)"])


def run_text(document: dict[str, Any]) -> str:
    """How many runs are finished and how they ended, where they lie, and what to call next."""
    counts = document["counts"]
    ended = ", ".join(f"{counts[state]} {IN_WORDS.get(state, state)}" for state in STATES if state in counts)
    failed = f"; {len(document['failures'])} failed, see above" if document["failures"] else ""
    name = f"{document['study']} {document['scale']}"
    lines = [
        f"{name}: {sum(counts.values())} of {document['planned']} runs finished{f' ({ended})' if ended else ''}{failed}",
        f"now:    {document['trained_or_measured_now']} trained or measured, {document['pairs_measured_now']} pairs measured",
        f"store:  {document['store']}",
    ]
    after = document["next"] if document["complete"] else "the same command makes what is missing"
    return "\n".join(lines + ([f"next:   {after}"] if after else []))


def status_text(document: dict[str, Any]) -> str:
    """A row per stage with its runs by state, then the runs that are under way by name."""
    states = [state for state in STATES if any(state in stage["states"] for stage in document["stages"])]
    rows = [["stage", "runs", *(IN_WORDS.get(state, state) for state in states)]]
    for stage in document["stages"]:
        counts = [str(stage["states"].get(state, 0)) if stage["known"] else "-" for state in states]
        rows.append([stage["stage"], f"{'' if stage['known'] else 'at most '}{stage['at_most']}", *counts])
    cost = f" ({document['cost']})" if document["cost"] else ""
    lines = [f"{document['study']} {document['scale']} in {document['store']}{cost}", "", *_columns(rows)]
    titles = {"running": "being computed", "interrupted": "interrupted, to go on from a checkpoint", "failed": "failed last time",
              "waiting": "waiting"}
    for state in UNDER_WAY:
        if runs := document[state]:
            left = sum(stage["states"].get(state, 0) for stage in document["stages"]) - len(runs[:SHOWN])
            more = [f"  and {left} more (plan lists them)"] if left else []
            lines += ["", f"{titles[state]}:", *_columns([_words(run) for run in runs[:SHOWN]], "  "), *more]
    return "\n".join(lines)


def _words(run: dict[str, Any]) -> list[str]:
    of = f" of {run['of_steps']:,}" if run["of_steps"] else ""
    step = f"checkpoint at step {run['step']:,}{of}" if run["step"] is not None else ""
    process = f" (process {run['pid']})" if run["pid"] is not None else ""
    where = f"on {run['machine']} machine{process}" if run["machine"] else ""
    since = ""
    if run["since"] is not None:
        began = datetime.fromisoformat(run["since"]).astimezone()
        since = f"since {began:%H:%M}, {duration(max(0.0, time.time() - began.timestamp()))}"
    return [run["run_id"][:8], run["stage"], run["name"], step, where, since, run["failure"] or ""]


def _columns(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Rows with their columns below each other; columns without a word are left out."""
    kept = [column for column in zip(*rows, strict=True) if any(column)]
    padded = [[f"{cell:{max(map(len, column))}}" for cell in column] for column in kept]
    return [(indent + "  ".join(row)).rstrip() for row in zip(*padded, strict=True)]
