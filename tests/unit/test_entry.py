"""`batchlab`: the project's commands from a folder that has packages `experiments` and `analysis` of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import own_studies
import pytest

from experiments.lab.sweep import terminal

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "import sys\nfrom {module} import {name}\nif __name__ == '__main__':\n    sys.exit({name}())\n"
"""as pip writes it; Python looks for modules beside it, and not in the current folder"""
INSTALLED = Path(sys.executable).with_name("batchlab")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    module, _, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["batchlab"].partition(":")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "batchlab").write_text(SCRIPT.format(module=module, name=name))
    return tmp_path / "bin" / "batchlab"


def test_it_runs_where_python_finds_others(script: Path, tmp_path: Path) -> None:
    """The user's own package is imported in place of ours, here or in the worker processes."""
    mine = tmp_path / "mine"
    for package in ("experiments", "analysis"):
        (mine / package).mkdir(parents=True)
        (mine / package / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    own_studies.written(mine / "studies")

    def batchlab(*words: str) -> str:
        done = subprocess.run([sys.executable, str(script), *words], cwd=mine, capture_output=True, text=True)
        assert done.returncode == 0 and "wrong package" not in done.stderr, done.stderr
        return done.stdout

    study = ("mine", "--scale", "quick", "--studies", "studies", "--store", "store")
    assert json.loads(batchlab("run", *study, "--workers", "2", "--json"))["trained_or_measured_now"] == 4
    assert "B 32 ends higher" in batchlab("verdicts", *study)
    assert "lambda_max" in batchlab("sharpness", "--list")
    assert all(name in batchlab("--help") for name in ("plan", "publish", "sharpness"))


def test_it_is_installed(tmp_path: Path) -> None:
    """The command that the guide names is not there."""
    if not INSTALLED.exists():
        pytest.skip("the project is not installed with its scripts; `make setup` does")
    (tmp_path / "experiments").mkdir()
    done = subprocess.run([INSTALLED, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "publish" in done.stdout, done.stderr


def test_outside_a_checkout_it_is_the_library_alone(tmp_path: Path) -> None:
    """Installed from a wheel it would end in a traceback, or write into the installed package."""
    copy = shutil.copy(ROOT / "batchlab.py", tmp_path)
    done = subprocess.run([sys.executable, copy, "run", "keskar2017"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "checkout" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_each_program_knows_the_commands_of_the_other() -> None:
    """`python -m experiments report` ends in a box about --scale."""
    from analysis.__main__ import COMMANDS, main
    from experiments.__main__ import COMMANDS as OTHERS
    from experiments.__main__ import main as experiments

    assert (tuple(COMMANDS), tuple(OTHERS)) == (terminal.ANALYSIS, terminal.EXPERIMENTS)
    assert [main(["run", "dinh2017"]), experiments(["report", "dinh2017"])] == [2, 2]
