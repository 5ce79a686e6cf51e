"""The report of a study: verdicts first, then tables, figures and where it departs from its paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.figures import Drawn
from analysis.load import Tables
from analysis.replication import Replication
from analysis.tables import Table, cell_table, effect_text, paper_table, render, verdict_table
from analysis.verdicts import Verdict
from experiments.lab.declare.claims import Claim, Kind
from experiments.lab.declare.study import Study

FURTHER = (
    "Seeds beyond the declared ones, asked for later. The verdicts above are of the declared seeds alone; these answer the "
    "claims again by the same rule, gates included, and are never pooled with them."
)


def tried_at(study: Study, scale: str) -> list[str]:
    """What the study says was tried, without sentences that begin with the name of another scale."""
    others = tuple(f"`{other.name}`" for other in study.scales if other.name != scale)
    return [sentence for sentence in study.tried if not sentence.startswith(others)]


def every_table(tables: Tables, found: Sequence[Verdict]) -> list[Table]:
    """The verdicts, the cells, and ours beside the paper's where the scale has a network of the paper's; none is empty."""
    listed = [verdict_table(found), cell_table(tables), paper_table(tables)]
    return [table for table in listed if table.rows or table.name == "cells"]


def markdown(
    tables: Tables, found: Sequence[Verdict], drawn: Sequence[Drawn], again: Mapping[str, Replication] | None = None
) -> str:
    """The whole report; figures are linked by name, beside it. `again` are the claims answered by further seeds."""
    study = tables.study
    scale = study.scale(tables.scale)
    commits = ", ".join(sorted(tables.runs["commit"].dropna().unique())) or "none recorded"
    origin = {"store": "a store", "published": "the published records"}[tables.source]
    decided = [f"**{verdict.verdict}**" for verdict in found if verdict.primary]
    tested = f"Claim under test: {study.title}. Its primary claim here: {', '.join(decided) or 'none'}."
    parts = [f"# {study.name}", tested if found else f"{study.title}: no claim is tested at this scale.",
             f"{study.citation}. Scale `{scale.name}`: {scale.about}.",
             f"{tables.runs['run_id'].nunique()} runs from {origin}, made by commit {commits}{on_gpu(tables)}."]
    if tables.imported:
        parts.append(tables.imported_words)
    if tables.missing_runs or tables.missing_measurements:
        parts.append(f"**Incomplete:** {tables.missing_runs} runs and {tables.missing_measurements} measurements are missing.")
    for table in every_table(tables, found):
        parts += [f"## {table.name.capitalize()}", table.title, render(table, "md").rstrip()]
    if again:
        parts += ["## Replication by further seeds", FURTHER, "\n".join(
            f"- {r.verdict.sentence}: {r.words()}, **{r.verdict.verdict or 'no verdict'}**, {effect_text(r.verdict)}, n "
            f"{r.verdict.n_seeds}: {r.verdict.decided_by}" for r in again.values()
        )]
    if stated := [claim for claim in study.claims_at(tables.scale) if claim.power is not None]:
        parts += ["## Power", "\n".join(f"- {power_line(claim)}" for claim in stated)]
    if listed := tried_at(study, tables.scale):
        parts += ["## What was tried", "\n".join(f"- {sentence}" for sentence in listed)]
    if drawn:
        parts.append("## Figures")
    parts += [f"![{d.name}]({d.name}.png)" if d.files else f"{d.name}: {d.reason}" for d in drawn]
    if listed := study.deviations:
        parts += ["## Where this departs from the paper", "\n".join(f"- {text}" for text in listed)]
    return "\n\n".join(parts) + "\n"


def of_elsewhere(listed: Table, found: Sequence[Verdict], drawn: Sequence[Drawn]) -> str:
    """A report on other people's records."""
    parts = ["# Tables from elsewhere", listed.title, render(listed, "md").rstrip(), "## Effects",
             render(verdict_table(found), "md").rstrip(), "## Figures",
             *(f"![{d.name}]({d.name}.png)" if d.files else f"{d.name}: {d.reason}" for d in drawn)]
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
        f"{claim.sentence}: {planned.seeds} seeds per group see {sees} ({claim.contrast.unit}) at a standard deviation of "
        f"{planned.sd:g} with a probability of 80% or more (rounded); pilot: {planned.pilot}."
    )
