"""Settings of a study: `--set`, the folders of other settings, and seeds chosen by position."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic

from analysis import __main__ as analysis
from experiments import __main__ as command
from experiments import keskar2017
from experiments.lab.declare.errors import UsageError
from experiments.lab.declare.finding import search
from experiments.lab.declare.settings import with_settings
from experiments.lab.declare.study import Request, Study
from experiments.lab.sweep.plan import asked_for

QUICK = ["--scale", "quick"]
WRONG = {
    ("eposh=3",): "there is no setting 'eposh'; did you mean 'epochs'?",
    ("lr",): "--set takes FIELD=VALUE, not 'lr'",
    ("lr=fast",): "--set lr is 'fast', but must be a number",
    ("seeds=1.5",): "--set seeds is '1.5', but must be an integer",
    ("seeds=1001",): "seeds is 1001, but must be from 1 to 1000",
    ("n_train=few",): "but must be an integer or none",
    ("model=mpl",): "--set model is 'mpl', but must be one of mlp,",
    ("batch_sizes=500,32",): "batch_sizes is (500, 32), but must be at least two, ascending",
    ("batch_sizes=32",): "batch_sizes is (32,), but must be at least two, ascending",
    ("n_train=100",): "batch_size 500 exceeds the 100 training examples",
    ("patience=9",): "no run of keskar2017 at scale quick hangs on patience",
    ("networks=F1",): "must be as it is: it cannot be set on a command line\n",
    ("lr=0.1", "--set", "lr=0.2"): "--set lr is given more than once",
    ("lr=0.1", "--set", "patience=9"): "no run of keskar2017 at scale quick hangs on patience",
    ("dataset=minst",): "there is no data set 'minst'",
    ("dataset=mnist", "--dataset", "mnist"): "--set dataset is given more than once",
    ("warm=100",): "error: epochs is -40.0, but must be a positive number",
    ("examples=0",): "examples is 0, but must be at least 1",
    ("other_seeds=-1",): "other_seeds is -1, but must be at least 0",
}


class Later(Request):
    """A request for seeds from 10,000 up."""

    def seed_range(self, declared: int) -> range:
        return range(10_000, 10_000 + (self.seeds or declared))


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
@pytest.mark.parametrize("verb", ["plan", "run", "status"])
def test_a_wrong_setting_is_one_sentence(
    words: tuple[str, ...], verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback, or runs of the scale's own settings under another name."""
    assert command.main([verb, "keskar2017", *QUICK, "--store", str(tmp_path / "s"), "--set", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and WRONG[words] in err, err
    assert not list(tmp_path.rglob("*.json"))


def test_a_study_without_settings_refuses() -> None:
    """The words would be ignored, and the scale's own runs trained."""
    study = synthetic.study()
    assert with_settings(study, "quick", ()) is study
    with pytest.raises(UsageError, match="the settings of toy cannot be set yet"):
        with_settings(study, "quick", ("lr=0.1",))


def test_the_scale_is_as_it_was_where_nothing_differs() -> None:
    """The same runs would lie in two folders, and be published from neither."""
    assert with_settings(keskar2017.STUDY, "quick", ("lr=0.001", "seeds=12")) is keskar2017.STUDY
    _, name = asked_for(keskar2017.STUDY, "quick", ("lr=0.002",))
    assert asked_for(keskar2017.STUDY, "quick", ("lr=0.002", "max_epochs=400", "seeds=12"))[1] == name


def test_other_settings_have_names_and_claims_of_their_own() -> None:
    """One verdict would pass for another's, or a report overwrite the scale's own."""
    given = [("lr=0.002",), ("batch_sizes=32,64,256",), ("seeds=13",), ("lr=0.002", "seeds=13"), ("target=0.02",)]
    found = [asked_for(keskar2017.STUDY, "quick", words) for words in given]
    names = [name for _, name in found]
    assert len({*names, "quick"}) == len(given) + 1
    assert all(len(name) == len("quick-") + 8 and int(name.removeprefix("quick-"), 16) >= 0 for name in names)
    hashes = [claim.hash for study, _ in found for claim in study.claims]
    own = {claim.hash for claim in keskar2017.STUDY.claims}
    assert len(set(hashes)) == len(hashes) == 5 * len(given) and not own & set(hashes)
    assert asked_for(keskar2017.STUDY, "quick", ("seeds=13", "lr=0.002"))[1] == names[3]  # in any order


def test_settings_reach_runs_claims_figures_and_comparisons() -> None:
    """A sentence or a label that speaks of other runs than were trained."""
    study, name = asked_for(keskar2017.STUDY, "quick", ("batch_sizes=64,100,250", "lr=0.002", "seeds=3", "n_validation=50"))
    stage = study.stages[0]
    runs = stage.runs_of(Request(name), ())
    assert {c.batch_size for c in runs} == {16, 64, 100, 250} and {(c.lr, c.n_validation) for c in runs} == {(0.002, 50)}
    assert len([c for c in runs if c.batch_size == 250]) == 3
    for claim in study.claims:
        assert "batch size 250" in claim.sentence and "than batch size 64" in claim.sentence and claim.at(name)
        assert all(any(group.holds(c.full_dict()) for c in runs) for group in claim.contrast.groups)
    drawn = {figure.name: dict(figure.options) for figure in study.figures_at(name)}
    assert drawn["piggyback"]["x_label"] == "epochs at B 250 (of 60; first B 64)"
    assert [(c.first.name, c.second.name) for c in study.comparisons] == [("B 64", "B 250")]
    assert study.tried == () and all(claim.power is None for claim in study.claims)  # those were of the scale's own


def test_plan_prints_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody could know what there is to set, nor give it again."""
    for words in ((), ("--set", "lr=0.0021234567")):
        assert command.main(["plan", "keskar2017", *QUICK, *words, "--json", "--store", str(tmp_path)]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["settings"]["batch_sizes"] == "32,64,128,256,500"
        assert document["settings"]["lr"] == ("0.0021234567" if words else "0.001")
        given = [f"{name}={value}" for name, value in document["settings"].items() if name != "networks"]
        assert asked_for(keskar2017.STUDY, "quick", given)[1] == document["scale"]
    assert command.main(["plan", "keskar2017", *QUICK, "--dataset", "mnist", "--json", "--store", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["dataset"] == "mnist"


def test_results_of_other_settings_lie_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report of other settings in place of the scale's own, or on the project's pages."""
    words = ["--set", "seeds=3", "--set", "other_seeds=0"]
    study, name = asked_for(keskar2017.STUDY, "quick", ("seeds=3", "other_seeds=0"))
    store = synthetic.write(tmp_path / "store", replace(study, stages=study.stages[:1]), synthetic.Truth(), name)
    line = ["keskar2017", *QUICK, "--store", str(store.root)]
    assert analysis.main(["verdicts", *line, *words, "--json"]) == 1  # piggybacking is not trained
    answer = capsys.readouterr()
    found = json.loads(answer.out)
    assert len(found) == 5 and {v["scale"] for v in found} == {name} and {v["n_seeds"] for v in found} == {3}
    assert all(v["claim"].startswith(f"{name}-") and v["published"] is None for v in found)
    assert "--set seeds=3 --set other_seeds=0" in answer.err
    assert analysis.main(["tables", *line, *words]) == 1
    assert analysis.main(["report", *line, *words]) == 1
    assert [path.parent.name for path in store.root.rglob("report.md")] == [name]
    capsys.readouterr()
    for refused in (["publish", *line, *words, "--to", str(tmp_path)], ["verdicts", *line, *words, "--published"],
                    ["verdicts", "all", *QUICK, *words, "--store", str(store.root)]):
        assert analysis.main(refused) == 2
        assert "--set is for one study in a store of yours" in capsys.readouterr().err


def counts(study: Study, request: Request) -> dict[str, int]:
    """The measurements that the first stage makes, by metric."""
    stage = study.stages[0]
    runs = stage.runs_of(request, ())
    measured = [measure.metric for run in runs for measure in stage.measures_of(request, run)]
    measured += [pair.measure.metric for pair in stage.pairs_of(request, runs)]
    return {metric: measured.count(metric) for metric in measured}


@pytest.mark.parametrize("study", search().studies.values(), ids=list(search().studies))
def test_no_measurement_hangs_on_the_value_of_a_seed(study: Study) -> None:
    """Figures of other seeds would be empty."""
    own = counts(study, Request("quick"))
    assert own == counts(study, Later("quick")) == counts(study, Request("quick", pilot=True))


def test_settings_share_runs() -> None:
    """Runs that two settings share would be trained twice."""
    study, name = asked_for(keskar2017.STUDY, "quick", ("seeds=13",))
    own = keskar2017.STUDY.stages[0].runs_of(Request("quick"), ())
    assert {c.run_id for c in own} < {c.run_id for c in study.stages[0].runs_of(Request(name), ())}
