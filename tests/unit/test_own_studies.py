"""Studies in a folder of the user's: what is broken is named and harms itself alone, and a wrong name fails before training."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import own_studies
import pytest
import synthetic

from analysis import __main__ as analysis
from experiments import __main__ as command
from experiments.lab.declare.claims import Claim
from experiments.lab.declare.finding import search
from experiments.lab.declare.study import Figure, Request
from experiments.lab.declare.study_checks import wrong_runs
from experiments.lab.declare.vocabulary import Options, figures, metrics, statistics
from experiments.lab.store.records import Store
from experiments.lab.sweep.plan import check_names, find_study, plan

QUICK = ("--scale", "quick")
STUDY, SCALES = "STUDY = Study(", 'scales=(Scale("quick", "tiny", "seconds"),)'
FILES = {
    "unfinished": ("def runs(:\n", 1, "SyntaxError"),
    "foreign": ("\nimport wandb_not_here\n", 2, "ModuleNotFoundError: No module named 'wandb_not_here'"),
    "ends": ("raise SystemExit(3)\n", 1, "SystemExit: 3"),
    "bytes": ("\x00", None, "SyntaxError"),
    "todo": ('x = 1\nSTUDY = "todo"\n', 2, "STUDY is 'todo', but must be of type Study"),
}
"""a file's text, and the line and the reason that name it"""
CHANGED = {
    "a string": (SCALES, 'scales="quick"', "scales=", "STUDY.scales is 'quick', but must be a tuple"),
    "no comma": (SCALES, 'scales=(Scale("quick", "tiny", ""))', "scales=", r"STUDY.scales is Scale\(.*, but must be a tuple"),
    "no scales": (SCALES, "scales=()", STUDY, "the study has no scale"),
    "missing": (SCALES + ",", "", STUDY, r"TypeError: Study.__init__\(\) missing 1 required positional argument: 'scales'"),
    "a word": ("Kind.DIRECTIONAL,", '"directional",', "claims=", r"STUDY.claims\[0\].kind is 'directional', but must be of type"),
    "raises": ("    return [BASE", "    raise ValueError('no')\n    return [BASE", "raise ValueError", "ValueError: no"),
    "impossible": ("batch_size=size", "batch_size=-size", "return [BASE", "ConfigError: batch_size"),
    "no metric": ('measure("lambda_max"', 'measure("lambda_mx"', '"lambda_mx"', "stage train: there is no metric 'lambda_mx'"),
    "no list": ("    return [BASE", "    return 3, [BASE", STUDY, "stage train: runs gives 3, but must give a list of RunConfig"),
}
"""a change of a sound study, the line and the reason that name it"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    own_studies.written(folder, file="sound.py")
    for name, (text, _, _) in FILES.items():
        (folder / f"{name}.py").write_text(text)
    for name, (old, changed, _, _) in CHANGED.items():
        name = name.replace(" ", "_")
        own_studies.written(folder, (old, changed), ('name="mine"', f'name="{name}"'), file=f"{name}.py")
    own_studies.written(folder, ('name="mine"', 'name="dinh2017"'), ("a study", "A COPY"), file="zz_copy.py")
    (folder / "helper.py").write_text("from experiments.dinh2017 import STUDY\nprint('hello')\n")
    return folder


@pytest.fixture(scope="module")
def listed(folder: Path) -> dict[str, dict]:
    """What the listing says, by file."""
    document = command.command.overview(command.Overview(studies=folder, store=folder / "none"))[1]
    assert {"mine", "keskar2017"} <= {study["study"] for study in document["studies"]}
    assert "dinh2017" not in {study["study"] for study in document["studies"]}
    text = command.command.overview_text(document)
    assert all(broken["file"] in text and broken["reason"] in text for broken in document["broken"])
    return {Path(broken["file"]).name: broken for broken in document["broken"]}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named(name: str, folder: Path, listed: dict[str, dict], capsys: pytest.CaptureFixture[str]) -> None:
    """It stops every other study, or is missing from the listing without a word."""
    _, line, reason = FILES[name]
    found = listed[f"{name}.py"]
    assert found["line"] == line and found["reason"].startswith(reason), found
    assert command.main(["plan", name, *QUICK, "--studies", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {folder / name}.py") and reason in err and err.count("\n") == 1


@pytest.mark.parametrize("name", CHANGED)
def test_a_broken_study_is_named(name: str, folder: Path, listed: dict[str, dict], capsys: pytest.CaptureFixture[str]) -> None:
    """A field of the wrong type, or a function that fails, is found by nobody, or as a traceback."""
    _, _, word, reason = CHANGED[name]
    name = name.replace(" ", "_")
    found = listed[f"{name}.py"]
    line = (folder / f"{name}.py").read_text().splitlines()[found["line"] - 1]
    assert word in line and re.match(reason, found["reason"]), found
    assert command.main(["run", name, *QUICK, "--studies", str(folder), "--store", str(folder / "none")]) == 2
    assert str(folder / f"{name}.py") in capsys.readouterr().err


def test_two_studies_of_one_name(folder: Path, listed: dict[str, dict], capsys: pytest.CaptureFixture[str]) -> None:
    """A copy whose name was forgotten takes the place of the original in silence."""
    assert {"dinh2017.py", "zz_copy.py"} <= listed.keys() and "helper.py" not in listed
    for words in (["plan", "dinh2017", *QUICK], ["status", "zz_copy", *QUICK]):
        assert command.main([*words, "--studies", str(folder)]) == 2
        err = capsys.readouterr().err
        assert "dinh2017.py" in err and "zz_copy.py" in err and err.count("\n") == 1


def test_what_studies_print_is_no_part_of_the_document(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program that reads --json stops at the first word of a study's own."""
    own_studies.written(tmp_path, ("def runs(request, records):", "print('a')\n\n\ndef runs(request, records):\n    print('b')"))
    assert command.main(["plan", "mine", *QUICK, "--studies", str(tmp_path), "--store", str(tmp_path / "none"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["stages"][0]["runs"]) == 4


def test_all_leaves_out_what_is_broken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One unfinished file, and nobody gets a verdict."""
    monkeypatch.setattr(analysis, "FIGURES", tmp_path)  # nothing published to judge anew
    (tmp_path / "runs").mkdir()
    assert analysis.main(["verdicts", "all", *QUICK, "--studies", str(folder), "--store", str(tmp_path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert {"mine", "keskar2017"} <= {verdict["study"] for verdict in json.loads(out)}
    assert all(f"left out: {folder / name}.py" in err for name in [*FILES, "raises", "zz_copy"])


def test_a_study_whose_data_are_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody sees any study, and `all` gives no verdict."""
    monkeypatch.setattr(analysis, "FIGURES", tmp_path)  # nothing published to judge anew
    own_studies.written(tmp_path, ("RunConfig(n_train", "RunConfig(dataset='cifar-bin:nowhere', n_train"))
    (tmp_path / "store" / "runs").mkdir(parents=True)
    where = ("--studies", str(tmp_path), "--store", str(tmp_path / "store"), "--json")
    assert command.main([*where]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["studies"]) > 10 and "nowhere" in document["broken"][0]["reason"]
    assert analysis.main(["verdicts", "all", *QUICK, *where]) == 1
    out, err = capsys.readouterr()
    assert len(json.loads(out)) > 50 and "left out" in err and "nowhere" in err


def test_neighbours_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies that share a file cannot be written, or the folder must be named at each command."""
    own_studies.written(tmp_path, ("BASE = ", "from _neighbour_of_mine import STEPS\n\nBASE = "), ("steps=2", "steps=STEPS"))
    (tmp_path / "_neighbour_of_mine.py").write_text("STEPS = 3\n")
    monkeypatch.setenv("BATCHLAB_STUDIES", str(tmp_path))
    monkeypatch.setattr("sys.path", list(sys.path))
    (stage,) = plan(find_study("mine", tmp_path), Request("quick"), Store(tmp_path / "none", create=False))
    assert stage.runs is not None and {config.steps for config in stage.runs} == {3}
    assert command.main(["plan", "mine", *QUICK, "--store", str(tmp_path / "none"), "--json"]) == 0
    monkeypatch.setenv("BATCHLAB_STUDIES", "")
    assert command.main(["plan", "mine", *QUICK]) == 2


def test_the_file_is_a_command(tmp_path: Path) -> None:
    """A copy of one of the project's studies keeps its last lines, and they would look for it in the project."""
    file = own_studies.written(tmp_path)
    with file.open("a") as text:
        text.write("\nif __name__ == '__main__':\n    from experiments.__main__ import run_study\n\n    raise SystemExit(")
        text.write("run_study('mine'))\n")
    done = subprocess.run([sys.executable, str(file), "--scale", "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "study mine has no scale 'nowhere'" in done.stderr, done.stderr


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error in the folder's name, and the study is said not to exist."""
    assert command.main(["plan", "mine", *QUICK, "--studies", str(tmp_path / "none")]) == 2
    assert "none does not exist" in capsys.readouterr().err


def test_the_projects_pages_are_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study of the user's, or a run from elsewhere, is written over what the project publishes."""
    own_studies.written(tmp_path)
    assert analysis.main(["publish", "mine", *QUICK, "--studies", str(tmp_path)]) == 2
    assert "mine is a study of yours" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert analysis.main(["publish", "keskar2017", *QUICK]) == 2
    assert "from within a clone" in capsys.readouterr().err


FIGURES = tuple(kind for kind in figures() if kind != "forest")
L32, STATUS, NATS, LAMBDA = '("batch_size", 32)', 'Gate("status", 0.1)', '1, "nats")', 'measure("lambda_max", examples=8)'
MISSPELT = {
    "field": (L32, '("batchsize", 32)', "group B 32: there is no config field 'batchsize'; did you mean 'batch_size'?"),
    "value of a field": (L32, '("optimizer", "sdg")', "optimizer is 'sdg', but must be one of sgd"),
    "type of a value": (L32, '("batch_size", "32")', "batch_size is '32', but must be of type int"),
    "stage": (L32, '("stage", "trian")', "there is no stage 'trian'; did you mean 'train'?"),
    "value": ('Contrast("lambda_max"', 'Contrast("tset_loss"', "no value or metric 'tset_loss'; did you mean 'test_loss'?"),
    "gate": (STATUS, 'Gate("statsu", 0.1)', "claim higher: there is no gate 'statsu'; did you mean 'status'?"),
    "gate's metric": (STATUS, 'Gate("converged", 0.1, "lamda_max")', "no metric 'lamda_max'; did you mean 'lambda_max'?"),
    "test": ("    gates=(", '    test="welhc", gates=(', "there is no test 'welhc'; did you mean 'welch'?"),
    "claim's scale": ("    gates=(", '    scales=("qiuck",), gates=(', "there is no scale 'qiuck'; did you mean 'quick'?"),
    "statistic": (NATS, '1, "nats", family=Family("slop"))', "family of runs 'slop'; did you mean 'slope'?"),
    "statistic's option": (NATS, '1, "", family=Family("slope", options=(("feild", "lr"),)))', "did you mean 'field'?"),
    "statistic's value": (NATS, '1, "", family=Family("kendall", options=(("against_value", "gap"),)))', "metric 'gap'"),
    "family's field": (NATS, '1, "nats", family=Family("slope", ("sede",)))', "did you mean 'seed'?"),
    "power": ("    gates=(", '    power=Power(0.1, 0.0, "none", 8), gates=(', "its power needs"),
    "kind of figure": ('"values_vs_batch"', '"value_vs_batch"', "kind of figure 'value_vs_batch'; did you mean"),
    "figure's option": ('("values", (', '("valeus", (', "option of figure values_vs_batch 'valeus'; did you mean 'values'?"),
    "figure's value": ('("test_accuracy",)', '("test_acuracy",)', "figure values: there is no value or metric 'test_acuracy'"),
    "figure's where": ('("test_accuracy",))', '("test_accuracy",)), ("where", (("lrr", 1),))', "did you mean 'lr'?"),
    "figure's claim": ('"values_vs_batch", (("values", ("test_accuracy",))', '"bars", (("claims", ("hihger",))', "'hihger'"),
    "figure's scale": ('("test_accuracy",)),)', '("test_accuracy",)),), scales=("laptop",)', "there is no scale 'laptop'"),
    "metric": (LAMBDA, 'measure("lambda_mx", examples=8)', "stage train: there is no metric 'lambda_mx'; did you mean"),
    "metric's option": (LAMBDA, 'measure("lambda_max", exmaples=8)', "did you mean 'examples'?"),
    "metric's need": (LAMBDA, 'measure("lambda_max")', "metric lambda_max needs the option 'examples'"),
    "type of an option": (LAMBDA, 'measure("lambda_max", examples="8")', "examples is '8', but must be of"),
    "curve": ('"values_vs_batch", (("values", ("test_accuracy"', '"learning_curves", (("values", ("gap_loss"', "no curve"),
    "list": (LAMBDA, 'measure("lambda_max", examples=[8])', "stage train: an option of lambda_max can change, as a list can"),
    "metric of a pair": ('measure("slice", examples=8, points=4)', 'measure("trace", examples=8)', "'trace' is of one run"),
    "pair's metric": ('"slice", examples=8, points=4', '"slice", examples=8, point=4', "did you mean 'points'?"),
    "group without runs": (L32, '("batch_size", 33)', "claim higher: group B 32 holds none of the declared runs"),
    "not measured": ('Contrast("lambda_max"', 'Contrast("trace"', "2 of the 2 runs of group B 32 are not measured with trace"),
    "two options": (f"({LAMBDA},)", f'({LAMBDA}, measure("lambda_max", examples=9))', "measured with 2 sets of options"),
    "a measure alone": (f"return ({LAMBDA},)", f"return {LAMBDA}", "stage train: measures gives Measure("),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_wrong_name_fails_at_plan(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is found after hours of training, or never: the claim then waits for an answer for ever."""
    old, changed, reason = MISSPELT[name]
    file = own_studies.written(tmp_path, (old, changed))
    for verb in ("plan", "run"):
        assert command.main([verb, "mine", *QUICK, "--studies", str(tmp_path), "--store", str(tmp_path / "store")]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"error: {file}, line ") and reason in err and err.count("\n") == 1, err
    assert not list(tmp_path.glob("store/runs/*"))


def test_the_projects_own_names_are_right(tmp_path: Path) -> None:
    """A study of the project's that its own check refuses, at any scale, and that the other tests then leave out."""
    assert search().broken == ()
    for study in search().studies.values():
        check_names(study)
        for scale in study.scales:
            for pilot in (False, True):
                request = Request(scale.name, pilot=pilot)
                stages = plan(study, request, Store(tmp_path, create=False))
                assert not [*wrong_runs(study, request, [(s.stage, s.runs) for s in stages if s.runs is not None])], study.name


def test_names_are_read_as_they_are() -> None:
    """The source of figures, statistics and metrics is read, not run: it would say something else."""
    import importlib

    from analysis.families import STATISTICS
    from experiments.lab.measures.registry import METRICS

    for kind, options in figures().items():
        assert set(options.kinds) == set(importlib.import_module(f"analysis.figures.{kind}").settings())
    assert len(figures()) >= 10 and set(statistics()) == set(STATISTICS)
    read = {name: (metric.runs, metric.version, metric.options) for name, metric in metrics().items()}
    assert read == {name: (m.runs, m.version, Options(
        {option: (value if isinstance(value, type) else type(value)).__name__ for option, value in m.options.items()},
        tuple(option for option, value in m.options.items() if isinstance(value, type)),
    )) for name, m in METRICS.items()}


def test_a_near_name_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error costs a search through the list."""
    assert command.main(["plan", "keskar2018", *QUICK]) == 2
    assert "did you mean 'keskar2017'?" in capsys.readouterr().err
    assert command.main(["plan", "keskar2017", "--scale", "quik"]) == 2
    assert "did you mean 'quick'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("claims", "drawn", "seeds"),
    [((), ("bars", "training_curves", "lr_grid"), 8), ((), (), 2), (synthetic.CLAIMS, FIGURES, 1), (synthetic.CLAIMS, (), 2)],
    ids=["no claims", "no claims or figures", "one seed", "no figures"],
)
def test_a_small_study_is_answered_like_any(
    claims: tuple[Claim, ...], drawn: tuple[str, ...], seeds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without claims, without figures or with one seed it ends in a traceback, after the training."""
    whole = synthetic.study()
    (stage,) = whole.stages
    stage = replace(stage, runs=lambda request, records: [c for c in synthetic.runs(request, records) if c.seed < seeds],
                    pairs=lambda request: [p for p in synthetic.pairs(request) if p.first.seed < seeds])
    options = {"bars": (), "along_training": (("metric", "sharpness_along"), ("y", ("lambda_max",)))}
    kinds = tuple(Figure(kind, kind, options.get(kind, ())) for kind in drawn)
    study = replace(whole, stages=(stage,), claims=claims, figures=kinds)
    store = synthetic.write(tmp_path / "store", study)
    monkeypatch.setattr("analysis.__main__.find_study", lambda name, *places: study)
    check_names(study)
    publish = [] if drawn else [f"publish --to {tmp_path}"]  # drawn once is enough
    for line in ("verdicts", "pilot", "tables", "histories", "report", "figures", *publish):
        words = line.split()
        status = analysis.main([words[0], "toy", *QUICK, "--store", str(store.root), *words[1:]])
        out, err = capsys.readouterr()
        assert (status, err) == (0, "") or words == ["pilot"], err
        assert out.strip()
    if drawn:
        return
    assert f"{4 * seeds} runs from" in (tmp_path / "toy" / "quick" / "README.md").read_text()
    assert ("No study here tests a claim" in (tmp_path / "README.md").read_text()) == (claims == ())
