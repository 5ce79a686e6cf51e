"""The report of a study: verdicts first, then tables, figures and where it departs from its paper."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from analysis.draw import Drawn
from analysis.load import Tables
from analysis.tables import Table, cell_table, paper_table, render, verdict_table
from analysis.verdicts import Verdict
from experiments.lab.claims import Claim, Kind
from experiments.lab.study import Study

_DEVIATION = re.compile(r"^# Deviation: (.*(?:\n#   .*)*)", flags=re.MULTILINE)


def deviations(study: Study) -> list[str]:
    """The `# Deviation:` comments of the study's module, one sentence each; continued lines are indented by three."""
    spec = importlib.util.find_spec(study.module)
    if spec is None or spec.origin is None:
        return []
    found = _DEVIATION.findall(Path(spec.origin).read_text(encoding="utf-8"))
    sentences = [" ".join(line.removeprefix("#").strip() for line in text.splitlines()) for text in found]
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def tried_at(study: Study, scale: str) -> list[str]:
    """What the study says was tried, without sentences that begin with the name of another scale."""
    others = tuple(f"`{other.name}`" for other in study.scales if other.name != scale)
    return [sentence for sentence in study.tried if not sentence.startswith(others)]


def every_table(tables: Tables, found: Sequence[Verdict]) -> list[Table]:
    """The verdicts, the cells, and ours beside the paper's where the scale has a network of the paper's."""
    paper = paper_table(tables)
    return [verdict_table(found), cell_table(tables), *([paper] if paper.rows else [])]


def markdown(tables: Tables, found: Sequence[Verdict], drawn: Sequence[Drawn]) -> str:
    """The whole report; figures are linked by name, beside it."""
    study = tables.study
    scale = study.scale(tables.scale)
    commits = ", ".join(sorted(tables.runs["commit"].dropna().unique())) or "none recorded"
    origin = {"store": "a store", "published": "the published records"}[tables.source]
    decided = [f"**{verdict.verdict}**" for verdict in found if verdict.primary]
    parts = [f"# {study.name}", f"Claim under test: {study.title}. Its primary claim here: {', '.join(decided) or 'none'}.",
             f"{study.citation}. Scale `{scale.name}`: {scale.about}.",
             f"{tables.runs['run_id'].nunique()} runs from {origin}, made by commit {commits}{on_gpu(tables)}."]  # fmt: skip
    if tables.missing_runs or tables.missing_measurements:
        parts.append(f"**Incomplete:** {tables.missing_runs} runs and {tables.missing_measurements} measurements are missing.")
    for table in every_table(tables, found):
        parts += [f"## {table.name.capitalize()}", table.title, render(table, "md").rstrip()]
    if stated := [claim for claim in study.claims_at(tables.scale) if claim.power is not None]:
        parts += ["## Power", "\n".join(f"- {power_line(claim)}" for claim in stated)]
    if listed := tried_at(study, tables.scale):
        parts += ["## What was tried", "\n".join(f"- {sentence}" for sentence in listed)]
    parts.append("## Figures")
    parts += [f"![{d.name}]({d.name}.png)" if d.files else f"{d.name}: {d.reason}" for d in drawn]
    if listed := deviations(study):
        parts += ["## Where this departs from the paper", "\n".join(f"- {text}" for text in listed)]
    return "\n\n".join(parts) + "\n"


def on_gpu(tables: Tables) -> str:
    """The GPUs that made the runs, which a reader cannot guess from the scale; nothing where there are none."""
    on = tables.runs[tables.runs["device"].str.startswith("cuda", na=False)]
    names = sorted(on["hardware"].dropna().unique())
    return f" on {', '.join(names)}" if names else ""


def power_line(claim: Claim) -> str:
    """What the number of seeds was chosen for, in a sentence."""
    planned = claim.power
    assert planned is not None
    directional = claim.kind is Kind.DIRECTIONAL
    sees = f"an effect of {planned.effect:g}" if directional else f"an effect of 0 within the margin of {claim.margin:g}"
    return (
        f"{claim.sentence}: {planned.seeds} seeds a group see {sees} ({claim.contrast.unit}) at a standard deviation of "
        f"{planned.sd:g} with a probability of 80% or more (rounded); pilot: {planned.pilot}."
    )
