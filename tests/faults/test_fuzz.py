"""A thousand random configurations and hundreds of random command lines: a sentence and an exit status, never a traceback,
and no run is started by a wrong one."""

from __future__ import annotations

import functools
import json
import math
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import toy_config
from toy_store import files, finish

from experiments.__main__ import main
from experiments.lab import datasets
from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures import perform
from experiments.lab.store.records import Store
from experiments.lab.sweep import launch, worker

COUNT = 1000
JUNK: list[Any] = [None, True, False, 0, 1, -1, 2, 7, 10, 2**63, 10**400, -(10**400), 0.0, -0.0, 0.5, 1.0, 1.5, 1e-320, 1e308,
                   math.nan, math.inf, -math.inf, "", "nan", "10", "sgd", "none", "mlp", "\x00", "\ud800", "é" * 50, "../..",
                   "cifar-bin:", "cifar-bin:/", [], [1], {}, {"a": 1}, (), b"x", object()]
GOOD: dict[str, list[Any]] = {
    "batch_size": [1, 10, 64], "lr": [0.1, 1, 1e-3], "budget": ["steps", "epochs", "train_loss", "plateau"],
    "steps": [1, 100, None], "epochs": [1, 0.5, None], "train_loss": [0.1, None], "patience": [1, None],
    "max_epochs": [2, None], "norm": ["none", "batch", "ghost", "group"], "norm_batch": [2, None], "momentum": [0, 0.9],
    "nesterov": [True, False], "optimizer": ["sgd", "adam", "adamw"], "scaling": ["none", "sqrt", "linear"],
    "base_batch_size": [8, None], "model": ["mlp", "keskar-c1"], "width": [4, None], "schedule": ["constant", "cosine"],
    "final_lr": [0, 0.1], "warmup": [0, 0.1], "seed": [0, 2**62], "n_train": [100, None],
}


def random_fields(chance: random.Random) -> dict[str, Any]:
    """Fields that are mostly right, some of them junk, some missing, some unknown."""
    fields = {"batch_size": 10, "lr": 0.1, "budget": "steps", "steps": 3}
    for name in chance.sample(sorted(GOOD), chance.randrange(4)):
        fields[name] = chance.choice(GOOD[name])
    names = [*RunConfig.__dataclass_fields__, "colour", "", "__class__"]
    for _ in range(chance.randrange(3)):
        fields[chance.choice(names)] = chance.choice(JUNK)
    if chance.random() < 0.1:
        del fields[chance.choice(sorted(fields))]
    return fields


def test_random_configurations() -> None:
    """A wrong field would surface hours later, as another error, or as a run that nobody asked for."""
    chance, valid, refused = random.Random(0), 0, 0
    for number in range(COUNT):
        fields = random_fields(chance)
        try:
            config = RunConfig.from_dict(fields)
            Machine(micro_batch=chance.choice([None, 1, 2, 5])).check(config)
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 700, fields
            refused += 1
        except Exception as error:
            raise AssertionError(f"number {number}, {fields}: {error!r}") from error
        else:
            again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
            assert again == config and again.run_id == config.run_id, fields
            valid += 1
    assert valid > COUNT / 10 and refused > COUNT / 3
    print(f"configurations: {valid} valid, {refused} refused in one sentence, {valid + refused}/{COUNT}")


class Started(BaseException):
    """A run or a measurement would have been started."""


WRONG = ["", "-1", "0", "nan", "inf", "1e999", "9" * 400, "9" * 5000, "x", "é", "--", "-", "--=", "=", "a=b=c", "\n", " ", "[]",
         "{}", "'", "$(id)", "../../x", "/dev/null", "/proc/self/mem", "%s%n", "a" * 10_000, "cifar-bin:", "1.5.2"]
TRAIN = {"--batch-size": "10", "--lr": "0.1", "--budget": "steps", "--steps": "1", "--threads": "1", "--seed": "0",
         "--model": "mlp", "--width": "4", "--depth": "1", "--n-train": "100", "--micro-batch": "5", "--device": "cpu",
         "--dataset": "fashion-mini", "--optimizer": "sgd"}
REQUIRED = ("--batch-size", "--lr", "--budget", "--steps")
STUDY = {"--scale": "quick", "--seeds": "1", "--dataset": "fashion-mini", "--where": "batch_size=32"}
NEVER = {"--batch-size", "--lr", "--budget", "--steps", "--threads", "--model", "--width", "--n-train", "--device",
         "--scale", "--seeds", "--where", "--optimizer", "--dataset"}
"""options for which nothing in WRONG is right"""


def command_lines(chance: random.Random, run_id: str) -> Iterator[tuple[list[str], bool]]:
    """Arguments, and whether they are certainly wrong."""
    while True:
        match chance.randrange(8):
            case 0 | 1:
                argv, options = ["train"], {k: v for k, v in TRAIN.items() if k in REQUIRED or chance.random() < 0.3}
            case 2 | 3 | 4:
                argv, options = ["run", "keskar2017"], {k: v for k, v in STUDY.items() if k == "--scale" or chance.random() < 0.3}
            case 5:
                argv, options = [chance.choice(["plan", "status"]), "keskar2017"], dict(STUDY)
            case 6:
                argv, options = ["measure", chance.choice([run_id, run_id[:5], "zz"])], {"--metrics": chance.choice(WRONG)}
            case _:
                argv, options = ["store", chance.choice(["import", "chekc", ""])], {}
        wrong = argv[0] in ("measure", "store")
        if options and chance.random() < 0.8:
            name = chance.choice(sorted(options))
            options[name] = chance.choice(WRONG)
            wrong = wrong or name in NEVER
        words = [*argv, *(word for pair in options.items() for word in pair)]
        match chance.randrange(10):
            case 0:
                words.insert(chance.randrange(1, len(words) + 1), "--" + chance.choice(["colour", "batch", "", "x=1"]))
                wrong = True
            case 1:
                words, wrong = words[: chance.randrange(1, len(words))], False  # what was wrong may be gone
            case 2:
                words[0] = chance.choice(WRONG)
                wrong = True
            case _:
                pass
        yield words, wrong


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No run can start, and what commands change in the process comes back."""

    def started(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(worker, "run_task", started)
    monkeypatch.setattr(launch.Workers, "start", started)
    monkeypatch.setattr(perform, "performing", started)
    monkeypatch.setattr(datasets, "load", functools.cache(datasets.load))
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(1)


def outcome(call: Any, argv: list[str], capsys: pytest.CaptureFixture[str]) -> int | None:
    """The exit status of `call(argv)`, None where it would have started a run; anything but a clear complaint fails."""
    try:
        status = call(argv)
    except SystemExit as error:  # the parser's own complaint, in a box
        assert error.code == 2, argv
        assert "Traceback" not in capsys.readouterr().err
        return 2
    except Started:
        capsys.readouterr()
        return None
    except BaseException as error:
        raise AssertionError(f"{[word[:60] for word in argv]}: {error!r}") from error
    seen = capsys.readouterr()
    said = seen.err.startswith("error: ") and seen.err.count("\n") == 1
    assert status == 0 or said or (argv[0] == "status" and "waiting" in seen.out), (argv, seen)
    return status


@pytest.mark.parametrize("count", [120, pytest.param(COUNT, marks=pytest.mark.verify)])
def test_random_command_lines(count: int, guarded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error would end in a traceback, change the store, or train something else for a night."""
    store = Store(guarded / "store")
    run_id = finish(store, toy_config()).name
    before, chance = files(guarded), random.Random(0)
    counts: dict[int | None, int] = {0: 0, 1: 0, 2: 0, None: 0}
    lines = command_lines(chance, run_id)
    for _ in range(count):
        argv, wrong = next(lines)
        status = outcome(main, [*argv, "--store", str(store.root)], capsys)
        assert not (wrong and status in (0, None)), " ".join(word[:60] for word in argv)
        counts[status] += 1
    assert files(guarded) == before
    assert counts[2] > count / 3 and counts[None] > count / 100 and counts[1] > count / 100
    print(f"experiments: exit 2 {counts[2]}, exit 1 {counts[1]}, exit 0 {counts[0]}, right ones that would begin {counts[None]}")


def test_random_command_lines_for_analysis(guarded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same where results are read."""
    from analysis.__main__ import main as analysis

    chance, before = random.Random(1), files(guarded)
    commands = ["verdicts", "figures", "tables", "report", "publish", "histories"]
    words = [*commands, "keskar2017", "all", "--scale", "quick", "paper", "--json", *WRONG]
    for _ in range(100):
        argv = [chance.choice(commands), chance.choice(words), *chance.choices(words, k=chance.randrange(4))]
        assert outcome(analysis, [*argv, "--store", str(guarded / "nowhere")], capsys) in (1, 2), argv
    assert files(guarded) == before


def test_random_command_lines_for_sharpness(guarded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same where anybody's models are measured."""
    from sharpness.__main__ import main as sharpness

    chance, places = random.Random(2), ["os:getcwd", "json:dumps", "nets:make", "sys:exit", "torch:", ":x", *WRONG]
    options = ["--model", "--data", "--loss", "--weights", "--metrics", "--examples", "--params", "--seed", "--device"]
    for _ in range(100):
        argv = [word for name in chance.sample(options, 3) for word in (name, chance.choice(places))]
        assert outcome(sharpness, argv, capsys) in (1, 2), argv
    assert files(guarded) == {}
