"""Seeds beyond the declared ones: a replication of its own, never a part of the verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic

from analysis import __main__ as command
from analysis.load import from_store
from analysis.replication import replications
from analysis.verdicts import verdicts
from experiments.lab.declare.claims import Family, Gate
from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import Record, Request, Stage, Study
from experiments.lab.store.records import Store

SIZES = (16, 500)
DECLARED = 8


def study(seeds: int = DECLARED, first: int = 0, gates: tuple[Gate, ...] = synthetic.COMMON) -> Study:
    def runs(request: Request, records: object) -> list[RunConfig]:
        return [synthetic.config(size, seed) for size in SIZES for seed in request.seed_range(seeds) if seed >= first]

    claims = (synthetic.claim("tests-worse", primary=True, gates=gates), synthetic.claim("sharper", "lambda_max", 1))
    declared = synthetic.study(claims, (Stage("train", runs, measures=lambda: (synthetic.LAMBDA,)),))
    return replace(declared, figures=())


def test_further_seeds_answer_the_claims_again(tmp_path: Path) -> None:
    """Seeds that a user asked for would be ignored, or would change a verdict whose number of seeds was fixed before."""
    declared, store = study(), synthetic.write(tmp_path / "both", study(16))
    tables = from_store(declared, "quick", store)
    alone = from_store(declared, "quick", synthetic.write(tmp_path / "alone", declared))
    assert [v.to_dict() for v in verdicts(tables)] == [v.to_dict() for v in verdicts(alone)]
    again = replications(tables, store)
    other = verdicts(from_store(study(16, first=8), "quick", synthetic.write(tmp_path / "other", study(16, first=8))))
    assert again.refused is None and list(again.of_claims) == ["tests-worse", "sharper"]
    for verdict in other:
        found = again.of_claims[verdict.claim]
        assert found.seeds == tuple(range(8, 16)) and found.verdict.to_dict() == verdict.to_dict()


def test_too_few_further_seeds_do_not_pass_a_gate(tmp_path: Path) -> None:
    """Three seeds would replicate what was claimed with eight."""
    store = synthetic.write(tmp_path, study(11))
    again = replications(from_store(study(), "quick", store), store).of_claims["tests-worse"]
    assert (again.verdict.verdict, again.verdict.n_seeds) == ("inconclusive", 3)
    assert "3 seeds with a value, fewer than 8" in again.verdict.decided_by


def test_a_seed_counts_once_every_group_has_it(tmp_path: Path) -> None:
    """Groups of different seeds, or a run that is not finished, would make a lopsided replication."""
    store = synthetic.write(tmp_path, study(12))
    shutil.rmtree(store.folder(synthetic.config(500, 9).run_id))
    again = replications(from_store(study(), "quick", store), store).of_claims["tests-worse"]
    assert again.seeds == (8, 10, 11) and again.incomplete == (9,) and again.words() == "seeds 8, 10, 11 (seed 9 incomplete)"


def test_seeds_that_do_not_count_are_named(tmp_path: Path) -> None:
    """Further seeds of one group, trained for an hour, of which nothing is said."""
    store = synthetic.write(tmp_path, study(9))
    shutil.rmtree(store.folder(synthetic.config(500, 8).run_id))
    again = replications(from_store(study(), "quick", store), store)
    assert not again.of_claims and again.refused is not None and again.refused.startswith("seed 8 do")


def test_families_and_a_measurement_that_is_missing(tmp_path: Path) -> None:
    """A slope of a seed without one of its values, or one that mixes declared and further runs."""
    family = Family("slope", ("seed",))
    contrast = synthetic.Contrast("lambda_max", (synthetic.Group("all", 1.0, ()),), 1, "slope", family=family)
    claims = (synthetic.Claim("steeper", "it is steeper", synthetic.Kind.DIRECTIONAL, contrast, 0.1, primary=True),)
    declared = synthetic.study(claims, study().stages)
    store = synthetic.write(tmp_path, synthetic.study(claims, study(12).stages))
    store.measurement_path(synthetic.LAMBDA, [synthetic.config(16, 11).run_id]).unlink()
    again = replications(from_store(declared, "quick", store), store).of_claims["steeper"]
    assert again.seeds == (8, 9, 10) and again.incomplete == (11,) and again.verdict.n_seeds == 3


def test_none_without_further_seeds(tmp_path: Path) -> None:
    """Other studies' runs, pilots, or a half-finished study, taken for a replication."""
    store = synthetic.write(tmp_path, study(7))
    synthetic.write(tmp_path, study(1007, first=1000))
    assert replications(from_store(study(), "quick", store), store).of_claims == {}


def choosing(seeds: int) -> Study:
    """A study whose second stage trains at the rate that the first found best, as the mean over all of its seeds."""

    def first(request: Request, records: object) -> list[RunConfig]:
        return [synthetic.config(16, seed, lr=lr) for lr in (0.1, 0.2) for seed in request.seed_range(seeds)]

    def second(request: Request, records: Sequence[Record]) -> list[RunConfig]:
        rate = 0.1 if len(records) <= 2 * DECLARED else 0.2
        return [synthetic.config(500, seed, lr=rate) for seed in request.seed_range(seeds)]

    return synthetic.study((synthetic.claim("tests-worse", primary=True),), (Stage("tune", first), Stage("final", second)))


def test_further_seeds_never_change_what_an_earlier_stage_chose(tmp_path: Path) -> None:
    """More seeds of a stage that tunes would answer the claim at another learning rate than the declared plan's."""
    store = synthetic.write(tmp_path, choosing(DECLARED))
    for c in [synthetic.config(16, seed, lr=lr) for lr in (0.1, 0.2) for seed in range(8, 10)]:
        synthetic._write_run(store, c, synthetic.Truth())
    again = replications(from_store(choosing(DECLARED), "quick", store), store)
    assert again.of_claims == {} and again.refused is not None and "its stage final has other runs than declared" in again.refused


def test_json_and_text_tell_the_replication_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program or a reader that cannot tell which seeds an answer is of."""
    synthetic.write(tmp_path, study(16))
    monkeypatch.setattr(command, "find_study", lambda *given: study())
    words = ["verdicts", "toy", "--scale", "quick", "--store", str(tmp_path)]
    assert command.main([*words, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["n_seeds"] == first["replication"]["n_seeds"] == 8 and first["replication"]["seeds"] == list(range(8, 16))
    assert not set(first["runs"]) & set(first["replication"]["runs"]) and second["published_records"] == 0
    assert command.main(words) == 0
    assert "again, with seeds 8 to 15 alone: " in capsys.readouterr().out
    assert command.main(["report", *words[1:]]) == 0
    text = (tmp_path / "reports" / "store" / "toy" / "quick" / "report.md").read_text()
    assert "## Replication by further seeds" in text and "seeds 8 to 15" in text


def test_seeds_that_choose_settings_cannot_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that chose a learning rate would answer the claim about it."""
    from experiments.__main__ import main

    words = ["plan", "masters2018", "--scale", "quick", "--store", str(tmp_path)]
    assert main([*words, "--seeds", "501"]) == 2
    assert "500 to 599" in capsys.readouterr().err
    assert main([*words, "--seeds", "500"]) == 0 and Store(tmp_path).root.is_dir()
