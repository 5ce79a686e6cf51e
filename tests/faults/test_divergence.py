"""Numbers that stop being finite: `diverged`, with the step and the reason, counted wherever results are shown."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from toy_runs import run, toy_config, toy_data
from toy_store import start

from analysis.arms import chosen
from analysis.draw import diverged, draw
from analysis.load import from_store
from analysis.tables import cell_table
from experiments.keskar2017 import STUDY
from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.measures.subject import load_subject
from experiments.lab.store.check import check
from experiments.lab.store.files import StoreError
from experiments.lab.store.records import Store
from experiments.lab.training.data import Data
from experiments.lab.training.loop import train
from experiments.lab.training.shuffle import Shuffle


def with_images(data: Data, split: str, value: float) -> Data:
    """The same data with one image of `split` that overflows."""
    examples = getattr(data, split)
    inputs = examples.inputs.clone()
    inputs[0] = value
    return replace(data, **{split: replace(examples, inputs=inputs)})


def publish(store: Store, config: RunConfig, data: Data) -> dict[str, Any]:
    folder = start(store, config)
    assert folder.publish(train(config, Machine(), data, folder))
    folder.close()
    summary = store.summary(config.run_id)
    assert summary is not None
    return summary


@pytest.mark.parametrize("update", [0, 7])
def test_divergence_in_the_first_and_in_the_last_update(update: int, tmp_path: Path) -> None:
    """The ends of a run: before any row of its curve, and when the budget would call it done."""
    config, data = toy_config(batch_size=9), toy_data(toy_config())  # one epoch: each example is seen once
    ((_, positions),) = Shuffle(config.seed, len(data.train)).between(9 * update, 9 * (update + 1))
    inputs = data.train.inputs.clone()
    inputs[positions[0]] = torch.inf
    store = Store(tmp_path)
    summary = publish(store, config, replace(data, train=replace(data.train, inputs=inputs)))
    assert summary["status"] == "diverged" and summary["reason"] == f"the training loss was not finite at step {update}"
    assert update < summary["steps"] <= 8
    names = [n for n in summary if n.startswith(("train_", "test_", "validation_", "gap_")) or n == "distance_from_start"]
    assert len(names) == 9 and all(summary[name] is None for name in names)
    assert "predictions.safetensors" not in summary["files"] and not check(store).damaged
    text = "".join((store.folder(config.run_id) / name).read_text() for name in ("history.jsonl", "summary.json"))
    assert "NaN" not in text and "Infinity" not in text
    with pytest.raises(StoreError, match="diverged, so there is no minimum"):
        load_subject(store, config.run_id, Machine())


def test_the_step_of_a_divergence_is_recorded(tmp_path: Path) -> None:
    """Where it exploded is the first thing to know of an exploded run."""
    summary = publish(Store(tmp_path), toy_config(lr=1e30), toy_data(toy_config()))
    assert summary["status"] == "diverged" and "not finite at step" in summary["reason"]
    assert 0 < int(summary["reason"].split()[-1]) <= summary["steps"] <= 8


@pytest.mark.parametrize("split", ["test", "validation"])
def test_an_overflow_in_evaluation_only(split: str, tmp_path: Path) -> None:
    """Training was fine, and an infinite loss or a NaN accuracy would be averaged with the others'."""
    config = toy_config(n_train=60, n_validation=12)
    data = toy_data(config)
    expected, _ = run(config)
    assert expected.status == "done"
    store = Store(tmp_path)
    summary = publish(store, config, with_images(data, split, torch.inf))
    assert summary["status"] == "diverged" and summary["steps"] == 8
    assert "not finite" in summary["reason"] and summary[f"{split}_loss"] is None
    rows = store.history(config.run_id)
    assert [row for row in rows if row["kind"] == "train"] and all(isinstance(row.get("loss", 0.0), float) for row in rows)


def test_tables_and_figures_count_diverged_runs(tmp_path: Path) -> None:
    """A batch size at which half the runs explode would look like one with fewer seeds."""
    lost = {(500, 0), (500, 1), (16, 0)}  # of the first stage
    truth = synthetic.Truth(status=lambda c: "diverged" if c.train_loss and (c.batch_size, c.seed) in lost else "done")
    tables = from_store(STUDY, "quick", synthetic.write(tmp_path / "store", STUDY, truth))
    by_size = {row[1]: row[2] for row in cell_table(tables).rows if row[0].startswith("train,")}
    assert by_size["500"] == "12 (2 diverged)" and by_size["16"] == "4 (1 diverged)" and by_size["32"] == "12"
    note = diverged(chosen(tables, (("stage", "train"),)).runs)
    assert note == "3 of 40 runs diverged and have no point: 1 at B 16, 2 at B 500"
    drawn = draw(STUDY.figures[0], tables, tmp_path / "figures")
    document = json.loads(Path(drawn.files[3]).read_text())
    assert document["diverged"] == note and b"nan" not in gzip.decompress(Path(drawn.files[2]).read_bytes()).lower()


def test_without_divergence_nothing_is_said(tmp_path: Path) -> None:
    """Every published figure would change."""
    tables = from_store(STUDY, "quick", synthetic.write(tmp_path / "store", STUDY))
    assert diverged(tables.runs) is None
