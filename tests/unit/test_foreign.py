"""Tables from elsewhere: invented trials in the layout of google-research/batch_science."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import foreign
from analysis.__main__ import main
from experiments import shallue2019

ERROR, LOSS, PRECISION = foreign.METRICS[0], foreign.METRICS[2], foreign.METRICS[1]
Rows = Sequence[tuple[int, float | str]]
STUDY = ("shallue2019", "--scale", "quick", "--store")


def trial(folder: Path, number: int, rows: Rows, status: str = "COMPLETE", metric: str = ERROR, lr: float = 0.1) -> Path:
    path = folder / str(number)
    path.mkdir(parents=True)
    parameters = {"learning_rate": lr, "momentum": 0.9}
    about = {"trial_id": number, "status": status, "steps": rows[-1][0] if rows else 0, "parameters": parameters}
    (path / "metadata.json").write_text(json.dumps(about))
    lines = [f"{step},{0.5},{value}" for step, value in rows]
    (path / "measurements.csv").write_text("\n".join([f"step,train/{metric[4:]},{metric}", *lines]) + "\n")
    return path


def search(root: Path, workload: str, size: int, **fields: Any) -> Path:
    folder = root / workload / str(size)
    folder.mkdir(parents=True)
    dataset, model, optimizer = workload.split("/")[-3:]
    about = {"batch_size": size, "dataset": dataset, "model": model, "optimizer": optimizer, "train_steps": 3000, **fields}
    (folder / "study.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three batch sizes of one workload; 1 is the best trial of each, below the goal, 0.1, after 2000, 500 and 250 steps."""
    root = tmp_path / "batch_science"
    for size, steps in ((16, 2000), (64, 500), (256, 250)):
        folder = search(root, "fashion_mnist/simple_cnn_base/sgd", size)
        trial(folder, 1, [(0, 0.9), (steps // 2, 0.1), (steps, 0.09), (2 * steps, 0.2)], lr=size / 1000)
        trial(folder, 2, [(0, 0.9), (steps - 1, 0.05)], status="INFEASIBLE")
        trial(folder, 3, [(0, 0.9), (steps - 1, 0.05)], status="INCOMPLETE")
        trial(folder, 4, [(0, 0.9), (3000, 0.3)])
    return root


def test_figures_are_drawn_from_tables_from_elsewhere(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The paper's own trials could not be put beside ours."""
    assert main(["figures", *STUDY, str(archive)]) == 0
    out, err = capsys.readouterr()
    folder = archive / "reports" / "foreign" / "shallue2019" / "quick"
    drawn = pd.read_csv(folder / "steps_to_goal.csv.gz")
    means = drawn[(drawn["role"] == "mean") & (drawn["quantity"] == "steps")].set_index("x")["value"]
    assert means.round(6).to_dict() == {16: 2000, 64: 500, 256: 250}
    assert (folder / "steps_to_goal.png").stat().st_size > 2000 and (folder / "learning_rates.pdf").is_file()
    assert "other people's records" in out and "the authors' notebook" in out and err == ""


def test_best_trial_is_the_complete_one_with_the_fewest_steps_below_the_goal(tmp_path: Path) -> None:
    """Another rule than the paper's: a trial that diverged, stands at the goal, or comes later."""
    folder = search(tmp_path, "cifar_10/resnet_8/sgd", 8)
    trial(folder, 2, [(0, 1.0), (400, 0.29)])
    trial(folder, 10, [(400, 0.29), (0, 1.0)])  # rows out of order, and a tie: the smaller number
    trial(folder, 1, [(0, 1.0), (100, 0.3), (500, 0.2)])  # at the goal is not below it
    trial(folder, 3, [(0, 1.0), (1, "nan"), (2, ""), (3, "inf"), (900, 0.1)])
    trial(folder, 4, [(0, 1.0), (50, 0.1)], status="INFEASIBLE")
    ((found,), faults) = foreign.read(tmp_path)
    assert [(steps, t.number) for steps, t in found.reached()] == [(400, 2), (400, 10), (500, 1), (900, 3)]
    assert faults == [] and (found.count("diverged"), found.count("incomplete"), len(found.trials)) == (1, 0, 5)


@pytest.mark.parametrize(
    ("metric", "ends", "asked", "goal"),
    [(ERROR, (0.231, 0.2), None, (ERROR, 0.24)), (ERROR, (0.24, 0.2), None, (ERROR, 0.25)),
     (PRECISION, (0.31, 0.4), None, (PRECISION, 0.3)), (PRECISION, (0.318, 0.4), None, (PRECISION, 0.31)),
     (LOSS, (3.901, 4.32), None, (LOSS, 4.4)), (ERROR, (0.2, 0.2), 0.5, (ERROR, 0.5)), ("val/colour", (1.0, 2.0), None, None)],
)
def test_goal_of_an_unknown_workload_is_one_that_every_batch_size_reaches(
    metric: str, ends: tuple[float, float], asked: float | None, goal: tuple[str, float] | None, tmp_path: Path
) -> None:
    """A goal that drops batch sizes, or that the best trial of one stands at exactly, would hide them."""
    start = 0.0 if metric == PRECISION else 9.0
    for size, end in zip((4, 8), ends, strict=True):
        folder = search(tmp_path, "toys/net/sgd", size)
        trial(folder, 1, [(0, start), (10, end)], metric=metric)
        trial(folder, 2, [(0, start), (10, start)], metric=metric)
    found, _ = foreign.read(tmp_path, asked)
    assert {None if s.goal is None else (s.goal.metric, s.goal.value) for s in found} == {goal}
    assert [len(s.reached()) for s in found] == [0 if goal is None else 1] * 2


def test_no_verdict_comes_of_trials_without_repeats(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An effect of the best of many trials would pass as one with an interval."""
    assert main(["verdicts", *STUDY, str(archive), "--json"]) == 0
    found = {v["claim"].rpartition("sgd-")[2]: v for v in json.loads(capsys.readouterr().out)}
    assert found["perfect-scaling"]["effect"] == pytest.approx(0) and found["maximal-parallelism"]["ratio"] == pytest.approx(2)
    assert found["diminishing-returns"]["effect"] == pytest.approx(math.log(2))
    for verdict in found.values():
        assert (verdict["verdict"], verdict["ci_low"], verdict["source"]) == (None, None, "foreign")
        assert "other people's records" in verdict["decided_by"]
    assert main(["report", *STUDY, str(archive)]) == 0
    assert "NO VERDICT" in capsys.readouterr().out


def test_momentum_is_compared_where_both_were_searched(archive: Path) -> None:
    """The paper's claim about momentum would be left out, or taken of batch sizes that one of the two lacks."""
    for size, steps in ((8, 9999), (16, 1600), (256, 100)):
        trial(search(archive, "fashion_mnist/simple_cnn_base/nesterov_momentum", size), 1, [(0, 0.9), (steps, 0.09)])
    found = foreign.verdicts(foreign.read(archive)[0], shallue2019.STUDY, "quick")
    (verdict,) = [v for v in found if "momentum-scales" in v.claim]
    assert verdict.effect == pytest.approx(math.log(16) - math.log(8)) and "from batch size 16 to 256" in verdict.sentence


@pytest.mark.parametrize(("name", "content"),
                         [("metadata.json", "{"), ("metadata.json", '{"status": "LOST"}'), ("measurements.csv", ""),
                          ("measurements.csv", "a,b\n1,2\n"), ("measurements.csv", None)])
def test_a_damaged_trial_is_named_and_harms_itself_alone(
    name: str, content: str | None, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback for one file of a million, or a batch size drawn as if nothing were missing."""
    path = archive / "fashion_mnist" / "simple_cnn_base" / "sgd" / "64" / "1" / name
    path.unlink() if content is None else path.write_text(content)
    assert main(["tables", *STUDY, str(archive), "--json"]) == 1
    out, err = capsys.readouterr()
    rows = {int(row[3]): row for row in json.loads(out)[0]["rows"]}
    assert str(path) in err and err.count("\n") == 1
    assert [rows[size][8] for size in (16, 64, 256)] == ["1", "0", "1"] and rows[64][9] == "—"


def test_groups_of_workloads_stay_apart(archive: Path) -> None:
    """Subsets of a data set would be drawn as one curve with the whole of it."""
    trial(search(archive, "mnist_subsets/mnist/simple_cnn_base/sgd", 4, dataset="mnist"), 1, [(0, 0.9), (5, 0.05)])
    found, _ = foreign.read(archive)
    assert {s.dataset for s in found} == {"fashion_mnist", "mnist_subsets/mnist"}
    below, _ = foreign.read(archive / "mnist_subsets" / "mnist" / "simple_cnn_base" / "sgd")
    assert [s.workload for s in below] == ["mnist, simple_cnn_base, sgd"]


@pytest.mark.parametrize("words",
                         [["verdicts", "keskar2017", "--scale", "quick"], ["pilot", *STUDY[:3]], ["publish", *STUDY[:3]],
                          ["histories", *STUDY[:3]], ["verdicts", *STUDY[:3], "--goal", "-1"]])
def test_what_such_tables_cannot_answer_is_said(words: list[str], archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, or other people's trials published as runs of this project."""
    assert main([*words, "--store", str(archive)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_goal_needs_such_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A goal that is silently ignored."""
    (tmp_path / "runs").mkdir()
    assert main(["verdicts", *STUDY, str(tmp_path), "--goal", "0.1"]) == 2
    assert "--goal" in capsys.readouterr().err


def test_a_store_is_never_taken_for_such_tables(archive: Path) -> None:
    """A study.json that lies below a store would hide its runs."""
    assert foreign.is_foreign(archive)
    (archive / "runs").mkdir()
    assert not foreign.is_foreign(archive)
    shutil.rmtree(archive)
    assert not foreign.is_foreign(archive)
