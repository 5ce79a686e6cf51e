"""The table of the scale benchmark."""

from __future__ import annotations

from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """What was measured beside its goal; below it what it was measured on."""
    goals, half, whole = results["goals"], results["half finished"], results["all finished"]
    histories, scheduling, commands = results["histories"], results["scheduling"], results["commands"]
    plan, rows, disk = goals["plan, s"], histories["rows"], scheduling["on disk"]

    def seconds(title: str, times: dict[str, float], goal: float | None) -> list[str]:
        ratio = "" if goal is None else f"{times['seconds'] / goal:.2f}"
        return [title, f"{times['seconds']:.1f} s", f"{times['processor seconds']:.1f} s", _goal(goal, "s"), ratio]

    table = [
        seconds(f"plan, {half['runs'] - half['missing']:,} of {half['runs']:,} runs finished", half["plan"], plan),
        seconds("plan, all finished", whole["plan"], plan),
        seconds("which measurements are missing, one per run", whole["one measurement per run"], None),
        seconds("`python -m experiments status`", commands["status"], None),
        seconds(f"{rows['history']:,} history rows to Parquet, with mean and spread per cell", histories, goals["histories, s"]),
        ["its peak memory", f"{histories['GB']:.2f} GB", "", _goal(goals["histories, GB"], "GB"),
         f"{histories['GB'] / goals['histories, GB']:.2f}"],
    ]
    for where, found in scheduling.items():
        name = "a run that trains nothing, two workers, store " + where
        table.append([name, f"{found['ms per run']:.1f} ms", "", _goal(goals["scheduler, ms per run"], "ms"),
                      f"{found['ms per run'] / goals['scheduler, ms per run']:.2f}"])
    machine = results["machine"]
    return "\n".join([
        "| what | took | processor | goal | took / goal |",
        "|" + " --- |" * 5,
        *("| " + " | ".join(row) + " |" for row in table),
        "",
        "*As many runs and rows as Shallue et al. (2019) published; records made without training, "
        f"{histories['GB read']:.1f} GB of histories read and {histories['GB written']:.1f} GB written. Two cores, "
        f"{machine['cpu']}. On disk a run waits until its files are durable; one file of 1 KB took {disk['fsync, ms']:.1f} ms. "
        "`make benchmark-scale` measures it anew.*",
    ])


def _goal(goal: float | None, unit: str) -> str:
    return "" if goal is None else f"{goal:g} {unit}"
