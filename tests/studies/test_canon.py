"""Every study, scale by scale, as declared: whatever a paper says, these hold."""

from __future__ import annotations

import dataclasses
import importlib.util
import zlib
from pathlib import Path

import pytest

from analysis.load import SUMMARY
from analysis.stats import power, power_within
from experiments.lab.declare.checkout import FIGURES
from experiments.lab.declare.claims import Claim, Kind
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.finding import search
from experiments.lab.declare.study import PILOT, Record, Request, Study
from experiments.lab.declare.vocabulary import metrics

STUDIES = search().studies
CASES = [(study, scale.name) for study in STUDIES.values() for scale in study.scales]
IDS = [f"{study.name}-{scale}" for study, scale in CASES]
FIELDS = {field.name for field in dataclasses.fields(RunConfig)}
MINUTES = {"quick", "laptop", "overnight", "gpu", "paper"}
ROOT = Path(__file__).resolve().parents[2]


def record(config: RunConfig) -> Record:
    """A finished run with made-up values, the same for the same configuration."""
    share = zlib.crc32(config.canonical().encode()) / 2**32
    values = {name: 80 + 10 * share if "accuracy" in name else 0.1 + share for name in SUMMARY if name != "status"}
    return Record(config, "done", values | {"steps": int(100 + 1000 * share), "reason": None})


def unrolled(study: Study, request: Request) -> dict[str, list[RunConfig]]:
    """The runs of every stage, later ones chosen from made-up records of the earlier."""
    found: dict[str, list[RunConfig]] = {}
    records: list[Record] = []
    for stage in study.stages:
        runs = list(dict.fromkeys(stage.runs_of(request, tuple(records))))
        if stage.at_most is not None:
            assert len(runs) <= stage.bound(request), f"stage {stage.name} has more runs than it says"
        found[stage.name] = runs
        records += [record(c) for c in runs]
    return found


@pytest.mark.parametrize(("study", "scale"), CASES, ids=IDS)
def test_stages_and_groups(study: Study, scale: str) -> None:
    """A claim about runs that the study does not declare, or about a value that they do not have, would never be answered."""
    stages = unrolled(study, Request(scale))
    assert stages[study.stages[0].name], "the first stage declares no run"
    measured = {(s.name, c): {m.metric for m in s.measures_of(Request(scale), c)} for s in study.stages for c in stages[s.name]}
    for claim in study.claims_at(scale):
        value = claim.contrast.value.partition(".")[0]
        for group in claim.contrast.groups:
            fields = {name for name, _ in group.where}
            assert fields <= {*FIELDS, "stage"}, f"{claim.id}: no field {sorted(fields - FIELDS)}"
            runs = [(s, c) for s, configs in stages.items() for c in configs if group.holds({**c.full_dict(), "stage": s})]
            assert len({c for _, c in runs}) >= 2, f"{claim.id}: group {group.name} has {len(runs)} runs"
            if value not in SUMMARY:
                lacking = [c for s, c in runs if value not in set().union(*(measured.get((t, c), set()) for t in stages))]
                assert not lacking, f"{claim.id}: {len(lacking)} runs of {group.name} have no {value}"


@pytest.mark.parametrize(("study", "scale"), CASES, ids=IDS)
def test_measures_exist(study: Study, scale: str) -> None:
    """A metric's name with a typing error would be found after an hour of training."""
    known = metrics().keys()
    for name, configs in unrolled(study, Request(scale)).items():
        stage = next(s for s in study.stages if s.name == name)
        assert {m.metric for c in configs for m in stage.measures_of(Request(scale), c)} <= known


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_pilots_share_no_run_with_verdicts(study: Study) -> None:
    """A pilot that trains a verdict's seed has looked at the answer before the claim was fixed."""
    quick, pilots = (unrolled(study, Request("quick", pilot=pilot)) for pilot in (False, True))
    assert all(c.seed < PILOT for configs in quick.values() for c in configs)
    assert all(c.seed >= PILOT for configs in pilots.values() for c in configs)


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_claims(study: Study) -> None:
    """One primary claim with 80% power, sources for the paper's numbers, margins that can be met."""
    assert len({c.id for c in study.claims}) == len(study.claims)
    assert all(sum(claim.primary for claim in study.claims_at(scale.name)) == 1 for scale in study.scales)
    for scale in {"quick", *(folder.name for folder in (FIGURES / study.name).iterdir())}:
        primary = next(c for c in study.claims_at(scale) if c.primary)
        assert primary.power is not None and round(power_of(primary), 2) >= 0.8, scale
    for claim in study.claims:
        assert claim.margin > 0 and claim.sentence and not claim.sentence.endswith(".")
        assert claim.paper_source.split(":")[0].split(",")[0] in ("read", "secondary", "unchecked"), claim.paper_source
        if claim.paper_value is not None and claim.kind is Kind.DIRECTIONAL:
            assert claim.margin <= abs(claim.paper_value) / 2 or "analogue" in claim.sentence, claim.id


def power_of(claim: Claim) -> float:
    assert claim.power is not None
    p = claim.power
    if claim.kind is Kind.DIRECTIONAL:
        return power(p.effect, p.sd, p.seeds)
    return power_within(claim.margin, p.sd, p.seeds, one_sided=claim.kind is Kind.NON_INFERIORITY)


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_file(study: Study) -> None:
    """A study is one short file with its deviations beside it, and one command; it neither trains nor draws."""
    spec = importlib.util.find_spec(study.module)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text()
    assert study.module == f"experiments.{study.name}" and f'run_study("{study.name}")' in text
    assert study.deviations
    assert study.figures and {s.name for s in study.scales} <= MINUTES and study.scales[0].name == "quick"
    assert all(word not in text for word in ("import torch", "import numpy", "matplotlib", "scipy"))
