"""The benchmarks of training measure what they say, and docs/benchmarks.md shows what they wrote."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import table
from PIL import Image

from experiments.lab.declare.config import Machine
from experiments.lab.training.augment import Crops
from experiments.lab.training.loop import train
from experiments.lab.training.shuffle import Shuffle

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Any:
    """The benchmark's modules, which import each other by bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in ("engine", "loops", "loader", "timing")}
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_quick_benchmark_fills_every_column(tmp_path: Path) -> None:
    """A benchmark that breaks with the engine, found half an hour into it; a table that asks for what is not written."""
    target = tmp_path / "training.json"
    words = [sys.executable, BENCHMARKS / "bench_training.py", "--quick", "--parts", "bare", "--json", target]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())["bare"]
    assert found["quick"] and {"cpu", "torch", "build", "threads", "environment", "load"} <= found["machine"].keys()
    assert found["rows"]
    for row in found["rows"]:
        ours, theirs = row["cpu"]["seconds"]
        assert 0.05 < row["cpu"]["ratio"] < 20 and row["cpu"]["ratio"] == pytest.approx(theirs / ours)
        assert 0 < row["share of peak"] < 1.5 and row["operations"] > 0
        assert 0.5 < row["losses"][1] / row["losses"][0] < 2, "not the same training"
    lines = table.MAKERS["training"]({"bare": found}).splitlines()
    assert sum(line.startswith("| mlp") for line in lines) == 3
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_gpu_script_runs_end_to_end(tmp_path: Path) -> None:
    """A rented hour on a GPU that goes into a typing error."""
    target = tmp_path / "deep" / "gpu.json"
    words = [sys.executable, BENCHMARKS / "bench_gpu.py", "--device", "cpu", "--tiny", "--json", target]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert found["tiny"] and found["data"] == "made up" and found["machine"]["device"] == "cpu"
    for precision in ("float32 with TF32", "bfloat16"):
        rows = found["small batches"][precision]
        assert rows["fused 2 / eager"] == pytest.approx(rows["eager"] / rows["fused 2"]) and rows["fused 2"] > 0
        assert "graphed" not in rows, "what was not measured is not told"
    assert found["large batch"]["share of bf16 peak"] > 0
    assert all("determinism tax" in row for row in found["determinism"].values() if isinstance(row, dict))
    assert found["sweep"]["sweep"] > 0 and set(found["sweep"]["rows"]) == {"32", "64"}
    for row in found["sweep"]["rows"].values():
        assert len(row["test_accuracy"]) == 2 and all(loss <= found["sweep"]["target"] for loss in row["train_loss"])


@pytest.mark.parametrize("script, words", [("bench_gpu.py", ["--parts", "none"]), ("bench_training.py", ["--parts", "none"]),
                                           ("bench_gpu.py", ["--dataset", "none"])])
def test_benchmarks_refuse_what_they_do_not_know(script: str, words: list[str], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback half an hour later."""
    device = ["--device", "cpu", "--tiny"] if script == "bench_gpu.py" else []
    monkeypatch.setattr(sys, "argv", [script, *words, "--json", str(tmp_path / "x.json"), *device])
    monkeypatch.syspath_prepend(BENCHMARKS)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert stopped.value.code == 2 and "none" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("case", ["MLP", "CONV", "C1"])
def test_bare_loop_computes_what_ours_does(case: str, modules: Any) -> None:
    """A comparison with another network, another optimizer or less work: the ratio would mean nothing."""
    engine, loops = modules["engine"], modules["loops"]
    size, steps = 32, 3
    config = getattr(engine, case).config(size, steps).replace(n_train=size * steps, dropout=False)
    data = engine.data_of(config)
    model = loops.net(config, data.shape, engine.initial_weights(config)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # their masks are another stream's
    order = Shuffle(config.seed, len(data.train))
    batches = (order.between(step * size, (step + 1) * size)[0][1] for step in itertools.count())
    loops.update_all(model, loops.optimizer_of(model, config.lr), data, batches, steps)
    ours = train(config, Machine(), data, engine.Stopwatch(steps, lambda: None)).weights
    trained = [w for name, w in ours.items() if "running" not in name]
    for theirs, own in zip(model.parameters(), trained, strict=True):
        torch.testing.assert_close(theirs.detach(), own, rtol=1e-3, atol=3e-5)


def test_stopwatch_alternates_and_leaves_out_evaluations(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of some updates over the number of others; both sides timed apart and not in turns; evaluations counted."""
    engine, clock = modules["engine"], [0.0, 0.0]
    monkeypatch.setattr(engine, "_now", lambda: tuple(clock))
    config = engine.MLP.config(50, 1).replace(n_train=200)
    turns: list[int] = []
    watch = engine.Stopwatch(5, lambda: turns.append(len(watch.blocks)))
    for step in range(engine.WARM + 20):
        watch.wants_checkpoint(step)
        clock[:] = clock[0] + 2, clock[1] + 3
        if step == engine.WARM + 2:
            watch.row({"kind": "train"})
            clock[:] = clock[0] + 70, clock[1] + 80
            watch.row({"kind": "eval"})
    watch.row({"kind": "train"})
    watch.finish()
    assert turns == [1, 3] and watch.blocks == [engine.Block(5, 10, 15)] * 4
    monkeypatch.undo()
    ours, others, loss = engine.interleaved(config, engine.data_of(config), 5, 2, lambda: engine.Block(1, 2.0, 3.0))
    assert len(ours) == len(others) == 4 and all(b.updates == 5 and b.wall > 0 for b in ours) and 0 < loss < 2.4


def test_loader_crops_as_ours(modules: Any) -> None:
    """Two input pipelines that do not deliver the same images (except for the colour of the border)."""
    loader = modules["loader"]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    whole = loader.to_tensor(image)
    for top, left, flip in itertools.product((0, 3, 8), (0, 5, 8), (0, 1)):
        theirs = loader.crop(image, top, left)
        theirs = loader.to_tensor(loader.flip(theirs) if flip else theirs)
        assert torch.equal(Crops(whole[None]).take(torch.tensor([0]), torch.tensor([[top, left, flip]]))[0], theirs)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    expected = (whole - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(loader.normalise(whole, mean, std), expected)


def test_alternated_divides_theirs_by_ours(modules: Any) -> None:
    """The headline upside down."""
    block = modules["engine"].Block
    row = modules["timing"].alternated(lambda: block(10, 1.0, 2.0), lambda: block(20, 6.0, 4.0), 3)
    assert row["cpu"]["ratio"] == pytest.approx(3.0) and row["wall"]["ratio"] == pytest.approx(1.0)
    assert row["cpu"]["seconds"] == [0.1, 0.3] and len(row["cpu"]["ratios"]) == 3


def test_page_shows_the_published_numbers() -> None:
    """A ratio in docs/benchmarks.md that was not measured; numbers measured at a tenth of the size."""
    text = table.PAGE.read_text()
    assert table.renewed(text) == text and all((BENCHMARKS / f"{name}.json").exists() for name in ("curvature", "scale"))
    if (published := BENCHMARKS / "training.json").exists():
        assert not any(part["quick"] for part in json.loads(published.read_text()).values())


def test_harnesses_are_pinned() -> None:
    """A harness that moves, or one of the two compromised releases of Lightning."""
    lines = [line for line in (BENCHMARKS / "harnesses.txt").read_text().splitlines() if line and not line.startswith("#")]
    constrained = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    free = {line.lower() for line in lines if "==" not in line}
    assert free <= constrained
    assert "pytorch-lightning==2.6.6" in lines and "torch==2.13.0" in lines
