"""Published, yours, agree: a store's answers beside the published ones, claim by claim.

On one kind of processor the same code gives the same bits. Another kind rounds otherwise, training amplifies that, and its runs
are other draws. So effects are compared as two samples' are:

    same       every value that the claim is judged by is bitwise the published one
    differs    the claim's two intervals do not overlap, or the effects differ by more than two independent draws allow:
               |e_1 - e_2| > t sqrt(se_1^2 + se_2^2), t the quantile at 1 - 0.05 / (2 m) of Student's t with Satterthwaite's
               degrees of freedom, for m claims of the study and scale (Bonferroni)
    agrees     else

The test of one claim calls a difference that is none in about one case of twenty (5.1% of 2,000 simulated pairs with 12 seeds),
and so do all claims of a study together. Runs of the same seeds share start, data and order, so that their values are alike if
anything: their difference varies less than this allows (0.45% where half of the variance is shared), the test errs towards
`agrees`, and `agrees` says no more than that no difference is seen. Less than a hundredth of the margin is rounding.
A verdict may flip where effects agree, near the end of an interval: that is said, and is no failure.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.families import other_values
from analysis.load import Tables, from_published
from analysis.stats import ALPHA, difference
from analysis.verdicts import Evidence, Verdict, gather
from experiments.lab.sweep.board import DASH, number

SAME, AGREES, DIFFERS = "same", "agrees", "differs"
ROUNDING = 0.01
"""of the margin: differences below it are none"""
WIDTH = 104


@dataclass(frozen=True)
class Agreement:
    """One claim: the published verdict (a mapping, see `Verdict`), this store's, and whether they agree."""

    published: Mapping[str, Any]
    yours: Verdict
    answer: str | None
    """SAME, AGREES or DIFFERS; None while runs are missing here"""
    why: str

    @property
    def flips(self) -> bool:
        """Whether the verdict is another one though the effects agree."""
        return self.answer == AGREES and self.published["verdict"] != self.yours.verdict

    def to_dict(self) -> dict[str, Any]:
        """What a verdict's JSON gains."""
        names = ("verdict", "effect", "ci_low", "ci_high", "level", "n_seeds", "decided_by")
        return {**{name: self.published[name] for name in names}, "answer": self.answer, "why": self.why, "flips": self.flips}


@dataclass(frozen=True)
class Comparison:
    """The claims of a study that are published, and the processors of both sides."""

    claims: tuple[Agreement, ...] = ()
    yours: str = ""
    published: str = ""


def with_published(tables: Tables, found: Sequence[Verdict], folder: Path) -> Comparison:
    """`found`, the verdicts of `tables`, beside those published in `folder`; empty where there are none, and without claims whose
    wording or test is another one there. Raises `UsageError` where what is published cannot be read."""
    file = folder / "verdicts.json"
    if not file.is_file():
        return Comparison()
    published = from_published(folder)
    theirs = {verdict["claim_hash"]: verdict for verdict in json.loads(file.read_text("utf-8"))}
    declared = {claim.hash: claim for claim in tables.study.claims_at(tables.scale)}
    both = [verdict for verdict in found if verdict.claim_hash in theirs]
    claims = []
    for verdict in both:
        ours, other = (gather(declared[verdict.claim_hash], of) for of in (tables, published))
        answer, why = compare(ours, other, (verdict.level, theirs[verdict.claim_hash]["level"]), len(both))
        claims.append(Agreement(theirs[verdict.claim_hash], verdict, answer, why))
    return Comparison(tuple(claims), processors(tables), processors(published))


def compare(ours: Evidence, theirs: Evidence, levels: tuple[float, float], claims: int = 1) -> tuple[str | None, str]:
    """The answer and the sentence that says why. `levels` are those of the two intervals; `claims` are compared together."""
    if ours.missing or (ours.estimate is None and ours.gate is None):
        return None, "runs or measurements are missing"
    if _values(ours) == _values(theirs):
        return SAME, "every value is bitwise the published one"
    if ours.estimate is None or theirs.estimate is None:
        if ours.estimate is theirs.estimate:
            return AGREES, f"neither has an effect: {ours.gate}"
        return DIFFERS, (f"no effect here: {ours.gate}" if ours.estimate is None else f"no effect was published: {theirs.gate}")
    apart = difference(ours.estimate, theirs.estimate)
    if abs(apart.estimate) <= ROUNDING * ours.claim.margin:
        return AGREES, f"the effects differ by less than {ROUNDING:g} of the margin"
    level = 1 - ALPHA / claims
    low, high = apart.interval(level)
    said = f"the effects differ by {number(apart.estimate)}, {100 * level:.4g}% interval [{number(low)}, {number(high)}]"
    (here, there), (above, beyond) = zip(ours.estimate.interval(levels[0]), theirs.estimate.interval(levels[1]), strict=True)
    if here > beyond or there > above:
        return DIFFERS, f"the claim's intervals do not overlap; {said}"
    return (AGREES if low <= 0 <= high else DIFFERS), said


def _values(evidence: Evidence) -> list[Any]:
    """What a claim is judged by, for a comparison of every bit."""
    family = evidence.claim.contrast.family
    names = [evidence.claim.contrast.value, *(other_values(family) if family else ())]
    return [
        (cell.name, cell.run_ids, cell.values, cell.statuses,
         None if cell.population is None else cell.population.frame[names].to_numpy("float64").tobytes())
        for cell in evidence.cells
    ]


def text(found: Comparison) -> str:
    """The comparison as a person reads it in a terminal."""
    lines = [_row("published", "yours", "agree")]
    for each in found.claims:
        lines += textwrap.wrap(each.yours.sentence, WIDTH, break_on_hyphens=False)
        flip = "; the verdict flips" if each.flips else ""
        lines.append(_row(_shown(each.published), _shown(each.yours.to_dict()), f"{each.answer or DASH}{flip}"))
    for sentence in sentences(found):
        lines += textwrap.wrap(sentence, WIDTH, break_on_hyphens=False)
    return "\n".join(lines)


def _row(published: str, yours: str, agree: str) -> str:
    return f"  {published:40s}  {yours:40s}  {agree}"


def _shown(verdict: Mapping[str, Any]) -> str:
    """Verdict, effect and interval, without the unit."""
    ratio = verdict["ratio"] is not None
    values = [verdict[name] for name in (("ratio", "ratio_low", "ratio_high") if ratio else ("effect", "ci_low", "ci_high"))]
    word = verdict["verdict"] or "no verdict"
    if None in values:
        return word
    middle, low, high = map(number, values)
    return f"{word} {middle}{'×' if ratio else ''} [{low}, {high}]"


def sentences(found: Comparison) -> list[str]:
    """What the comparison comes to."""
    counts = {answer: sum(each.answer == answer for each in found.claims) for answer in (SAME, AGREES, DIFFERS)}
    said = ", ".join(f"{count} {answer}" for answer, count in counts.items() if count)
    parts = [f"Of {len(found.claims)} claims: {said}" if said else "Nothing can be compared yet: runs are missing"]
    if counts[AGREES] + counts[DIFFERS]:
        parts.append(
            f"Yours were made on {found.yours}, the published ones on {found.published}: another kind of processor rounds "
            "otherwise and training amplifies it, so that effects are compared as two samples' are"
            if found.yours != found.published else
            f"Both were made on {found.yours}, yet bits differ: instruction sets, versions or threads are others, so that "
            "effects are compared as two samples' are"
        )
    if flips := sum(each.flips for each in found.claims):
        parts.append(f"Effects that agree gave another verdict in {flips} of them: the intervals allow both")
    parts += [f"{each.yours.claim} differs: {each.why}" for each in found.claims if each.answer == DIFFERS]
    return [f"{part}." for part in parts]


def processors(tables: Tables) -> str:
    """What made the runs, without the number of cores, which changes no bits."""
    names = tables.runs["hardware"].dropna().str.replace(r", \d+ cores$", "", regex=True)
    return " and ".join(sorted(names.unique())) or "an unknown processor"
