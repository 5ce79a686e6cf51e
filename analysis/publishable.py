"""What is not published: records of uncommitted code, a power that pilots contradict, values that no record has.

The rules, one function each; each gives the sentences that say what is wrong, where, and what to do.

Code        No record was made by files that differed from their commit (`+`). On the project's own pages every record names its
            commit; a folder of one's own also takes records made outside a git repository, and its page says so. The study's
            file is as it was committed, where it lies in a repository.
Power       The stated spread, effect and seeds give 80% (to two decimals), and every group has that many seeds. The pilots in the
            store allow the stated spread: it is at least the lower end of the one-sided 95% interval of theirs,
            sd sqrt(df / chi2_0.95(df)). They allow the stated effect, or the paper does, or it is at most two margins: what a
            study is sized to see may be its paper's effect, whatever pilots find, or no claim that is false could be published.
Values      Every value that a claim, a gate or a figure names is known of at least one of its runs. A row of the paper may name a
            metric that this scale does not measure, and is then left out, but nothing that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from analysis.cells import cells, members, values_of
from analysis.cluster import CLUSTER
from analysis.families import other_values
from analysis.figures import Drawn
from analysis.load import Tables
from analysis.stats import Estimate, contrast, power, power_within
from analysis.verdicts import Verdict, gather, scaled
from experiments.lab.declare.claims import Claim, Kind, Power
from experiments.lab.declare.finding import file_of
from experiments.lab.declare.study import PILOT
from experiments.lab.declare.vocabulary import metrics
from experiments.lab.store.files import StoreError
from experiments.lab.store.provenance import committed

WANTED = 0.8
"""power"""


def refuse(tables: Tables, pilots: Tables | None, *, project: bool) -> None:
    """Raise `StoreError` with the first reason why `tables` are not to be published; `project`: on the project's own pages.

    Of `pilots` only pilot seeds count: a study may ignore that pilots were asked for.
    """
    if pilots is not None:
        pilots = replace(pilots, planned=tuple(p for p in pilots.planned if PILOT <= p.config.seed < 2 * PILOT))
    for sentence in (*code(tables, project=project), *powers(tables, pilots), *values(tables)):
        raise StoreError(sentence)


def code(tables: Tables, *, project: bool) -> Iterator[str]:
    study, again = tables.study, f"`python -m experiments run {tables.study.name} --scale {tables.scale} --store NEW`"
    commits = tables.runs["commit"]
    changed = commits[commits.str.endswith("+", na=False)]
    if len(changed):
        yield (f"{len(changed)} of {len(commits)} runs of {study.name} were made by uncommitted code (commit {changed.iloc[0]}); "
               f"commit the code and make them anew, with {again}")
    unknown = int(commits.isna().sum())
    if project and unknown:
        yield (f"{unknown} of {len(commits)} runs of {study.name} name no commit, so that nobody can look their code up; "
               f"make them anew from a git clone, with {again}")
    if project and tables.imported:
        yield (f"{len(tables.imported)} of {len(commits)} runs of {study.name} are published records already, not made for this "
               f"page; make all anew, with {again}")
    path = file_of(study)
    clean = committed(path) if path is not None else None
    if clean is False or (project and path is not None and not clean):
        yield f"{path} differs from what is committed, or is not committed; commit it, then publish {study.name}"


def powers(tables: Tables, pilots: Tables | None) -> Iterator[str]:
    for claim in tables.study.claims_at(tables.scale):
        if claim.power is not None:
            head = f"claim {claim.id} of {tables.study.name} states a power that "
            tail = (f"; `python -m analysis pilot {tables.study.name} --scale {tables.scale}` says what its pilots give: state "
                    "that, and the seeds that it needs")
            for reason in (*_stated(claim, claim.power, tables), *(_by_pilots(claim, claim.power, pilots) if pilots else ())):
                yield head + reason + tail


def power_of(claim: Claim, stated: Power) -> float:
    """What the stated numbers give: to see the effect, or to find an effect of 0 within the margin."""
    if claim.kind is Kind.DIRECTIONAL:
        return power(stated.effect, stated.sd, stated.seeds)
    return power_within(claim.margin, stated.sd, stated.seeds, one_sided=claim.kind is Kind.NON_INFERIORITY)


def _stated(claim: Claim, stated: Power, tables: Tables) -> Iterator[str]:
    if stated.seeds < 2 or not stated.sd > 0:
        yield f"no test has: sd {stated.sd:g} and {stated.seeds} seeds, where it takes an sd above 0 and two seeds"
        return
    if round(found := power_of(claim, stated), 2) < WANTED:
        yield f"its own numbers do not give: {found:.2f} instead of {WANTED:.2f} with sd {stated.sd:g} and {stated.seeds} seeds"
    for cell in cells(claim, tables):
        n = cell.expected if cell.population is None else cell.population.clusters
        if n < stated.seeds:
            yield f"takes {stated.seeds} seeds per group, where {cell.name} has {n}"


def _by_pilots(claim: Claim, stated: Power, pilots: Tables) -> Iterator[str]:
    found = pilot_estimate(claim, pilots)
    if found is None or not found[1] > 0:
        return
    estimate, sd = found
    least = sd * math.sqrt(estimate.df / float(stats.chi2.ppf(0.95, estimate.df)))
    if stated.sd < least:
        yield f"its pilots contradict: sd {stated.sd:g}, where theirs is {sd:.3g} (at 95% at least {least:.3g})"
    most = estimate.interval()[1]
    if claim.kind is Kind.DIRECTIONAL and stated.effect > max(most, 2 * claim.margin, claim.paper_value or 0.0):
        yield (f"its pilots contradict: effect {stated.effect:g}, where theirs is {estimate.estimate:.3g} (at 95% at most "
               f"{most:.3g}) and neither the paper's nor two margins are as large")


def pilot_estimate(claim: Claim, pilots: Tables) -> tuple[Estimate, float] | None:
    """The contrast over the pilots that there are, and the sd with which its standard error is sd sqrt(2 / seeds) (see
    `analysis.pilot.rows`); None with fewer than two in a group."""
    found = cells(claim, pilots)
    if claim.test == CLUSTER:
        estimate = gather(claim, pilots).estimate
        return None if estimate is None else (estimate, estimate.se * math.sqrt(min(cell.n for cell in found) / 2))
    groups = [scaled(claim, cell.values) for cell in found]
    if not groups or any(len(group) < 2 or not np.isfinite(group).all() for group in groups):
        return None
    weights = [claim.contrast.sign * group.weight for group in claim.contrast.groups]
    variance = sum(w**2 * float(group.var(ddof=1)) for w, group in zip(weights, groups, strict=True))
    return contrast(groups, weights), math.sqrt(variance / 2)


def values(tables: Tables) -> Iterator[str]:
    """Claims, gates and the paper's rows that name what no record has; `verdictless` and `undrawn` say the rest."""
    study = tables.study
    usable = set(tables.runs.loc[tables.runs["status"] != "diverged", "run_id"])
    for claim in study.claims_at(tables.scale):
        family = claim.contrast.family
        ids = {p.config.run_id for group in claim.contrast.groups for p in members(group, tables.planned)} & usable
        others = (*(other_values(family) if family else ()), *(gate.value for gate in claim.gates if gate.value))
        for name in (claim.contrast.value, *others) if ids else ():
            if not _known(name, tables, ids):
                yield (f"claim {claim.id} of {study.name} speaks of {name}, which none of its {len(ids)} runs has; correct the "
                       "name, or have the study measure it")
    for comparison in (c for c in study.comparisons if c.scale == tables.scale):
        for line in (line for line in study.paper if line.network == comparison.network):
            unmeasured = line.value.partition(".")[0] in metrics().keys() - set(tables.measurements["metric"])
            if usable and not unmeasured and not _known(line.value, tables, usable):
                yield (f"the row {line.quantity} of {line.table} in {study.name} speaks of {line.value}, which no run of scale "
                       f"{tables.scale} has; correct the name, or have the study measure it")


def _known(name: str, tables: Tables, ids: set[str]) -> bool:
    return any(value is not None and math.isfinite(value) for run, value in values_of(name, tables).items() if run in ids)


def verdictless(tables: Tables, found: Sequence[Verdict]) -> None:
    """Raise `StoreError` for a claim without a verdict: with all runs there, its groups or its value are at fault."""
    for verdict in found:
        if verdict.verdict is None:
            raise StoreError(
                f"claim {verdict.claim} of {tables.study.name} has no verdict though no run is missing ({verdict.decided_by}); "
                "correct its groups or its value, or limit it to other scales"
            )


def undrawn(tables: Tables, drawn: Sequence[Drawn]) -> None:
    """Raise `StoreError` for a figure that the study declares and its records cannot fill; where every run diverged none can."""
    declared = {figure.name for figure in tables.study.figures_at(tables.scale)}
    if not (tables.runs["status"] == "diverged").all():
        for figure in drawn:
            if figure.state == "no data" and figure.name in declared:
                raise StoreError(
                    f"the figure {figure.name} of {tables.study.name} has nothing to show ({figure.reason}); correct what it "
                    f"names, or limit it to other scales than {tables.scale}"
                )
