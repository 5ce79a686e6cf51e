"""The project's own promises: its files agree with each other and its documented commands run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import synthetic
import tyro
import yaml

from analysis import __main__ as analysis
from experiments import __main__ as experiments
from experiments.keskar2017 import STUDY
from experiments.lab.declare.study import Request
from experiments.lab.measures.registry import names_of_one_run
from experiments.lab.sweep.plan import select
from sharpness import __main__ as sharpness

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = README + (ROOT / "docs" / "commands.md").read_text()
LONG = {"python -m experiments run": "python -m experiments plan", "--seeds 5": "--seeds 1 --workers 1",
        "--n-train 1000 --epochs 5": "--n-train 300 --steps 1"}
"""commands that take minutes are checked through their plan, or are made small"""
AFTER = 'export BATCHLAB_STORE="$PWD/store/reproduce"'
"""what comes after this reads the store of `make reproduce`"""


def blocks(text: str) -> list[list[str]]:
    """The commands of each block, without comments."""
    found = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [[line.partition("#")[0].strip() for line in block.splitlines()] for block in found]
    return [[line for line in block if line] for block in lines]


def commands() -> list[str]:
    return [line for block in blocks(COMMANDS) if AFTER not in block for line in block]


def next_commands() -> list[str]:
    """The block of the README for after `make reproduce`."""
    (block,) = [block for block in blocks(README) if AFTER in block]
    return block


def test_readme_has_its_commands() -> None:
    """An empty list would make the next test pass for nothing."""
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", commands())
def test_readme_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A documented command that has drifted from the code."""
    monkeypatch.chdir(ROOT)
    for long, short in LONG.items():
        command = command.replace(long, short)
    words = shlex.split(command)
    if words[0] == "make":
        words.insert(1, "-n")
        status = subprocess.run(words, capture_output=True).returncode
    else:
        assert words[:2] == ["python", "-m"], f"no rule for the documented command {command!r}"
        if words[2] == "experiments":
            (tmp_path / "runs").mkdir()  # an empty store: `check` asks for one
            words += ["--store", str(tmp_path)] if len(words) > 3 else []
        status = {"experiments": experiments, "analysis": analysis, "sharpness": sharpness}[words[2]].main(words[3:])
    assert status in ({0, 1} if "status" in words else {0})  # status says 1 while runs are missing, and here they are


def parsed(words: list[str]) -> Any:
    """What the command line makes of `words`, with nothing done."""
    kinds = {name: kind for name, (kind, _) in experiments.COMMANDS.items()} if words[2] == "experiments" else analysis.COMMANDS
    return tyro.extras.subcommand_cli_from_dict(kinds, args=words[3:])


def test_commands_after_reproduce_are_understood(tmp_path: Path) -> None:
    """The README's next step fails for a reader who has just seen the first one work: another option, run or notebook."""
    activate, export, *rest = next_commands()
    assert (activate, export) == (". .venv/bin/activate", AFTER)
    store, said = synthetic.write(tmp_path, STUDY), []
    for words in map(shlex.split, rest):
        if words[:2] == ["jupyter", "lab"]:
            assert (ROOT / words[2]).is_file() and len(words) == 3
            continue
        options = parsed(words)
        said.append(words[3])
        if words[3] == "measure":
            assert store.resolve(options.run) in {c.run_id for c in STUDY.stages[0].runs_of(Request("quick"), ())}
            assert set(options.metrics) <= set(names_of_one_run())
        elif words[3] == "run":
            runs = STUDY.stages[0].runs_of(Request("quick", options.seeds), ())
            assert len([c for c in select(runs, options.where) if not store.finished(c.run_id)]) == 2 * 8
        else:
            main = experiments.main if words[2] == "experiments" else analysis.main
            name = {"report": "verdicts"}.get(words[3], words[3])  # without drawing; what report draws is tried elsewhere
            assert main([name, *words[4:], "--store", str(tmp_path)]) == 0
    assert said == ["status", "measure", "run", "report"] and "store/reproduce" in (ROOT / "Makefile").read_text()


def test_study_file_is_a_command() -> None:
    """`python experiments/keskar2017.py` is promised to be the same as `run` for that study."""
    words = [sys.executable, "experiments/keskar2017.py", "--scale", "nowhere"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: study keskar2017 has no scale 'nowhere'"), done.stderr


def test_readme_python_runs(tmp_path: Path) -> None:
    """A sweep from Python, then the example of the sharpness library."""
    codes = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "cells.py").write_text("\n".join(codes).replace("epochs=10", "steps=2"))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "cells.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert len(codes) == 2 and done.returncode == 0 and "[" in done.stdout, done.stderr
    assert "12 of 12" in done.stderr and len(list((tmp_path / "store" / "runs").iterdir())) == 12


def test_environment_agrees_with_pyproject() -> None:
    """conda users would get another Python, or another project, than pip users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert python == "python" + project["requires-python"] and pip == "pip"
    constraints, install = packages["pip"]
    assert constraints == "-c constraints.txt"
    extra = re.fullmatch(r"-e \.\[(\w+)\]", install)
    assert extra and extra[1] in project["optional-dependencies"]
    assert environment["name"] == project["name"]


def test_every_dependency_is_pinned() -> None:
    """An install in two years would take whatever is new then."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split() if "==" in line}
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[><=]", name)[0].lower() for name in wanted} - {project["name"]}
    assert names <= pinned and "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()


def test_peers_are_pinned_and_leave_torch_alone() -> None:
    """A peer that moves, or one that brings another torch: tests would compare with, or run on, something else."""
    lines = (ROOT / "tests/peers.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert pins and all(len(pin) == 2 for pin in pins)
    names = {name.lower() for name, _ in pins}
    assert not names & {"torch", "torchvision", "torchaudio"}
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split() if "==" in line}
    assert not names & pinned, "--no-deps would override the constraints"
    for target in ("test", "benchmark"):
        planned = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True)
        assert "--no-deps -r tests/peers.txt" in planned.stdout, planned.stderr
    assert "peers.txt" not in subprocess.run(["make", "-n", "-B", "setup"], cwd=ROOT, capture_output=True, text=True).stdout


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    froms = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return found | {node.module for node in froms if node.module and not node.level}


PACKAGES = ("experiments", "sharpness", "analysis")
BARE = {"torch", "numpy", "scipy", "safetensors", "tyro", "rich", "experiments", "sharpness", "pooch", "PIL"}


@pytest.mark.parametrize("package", ["experiments", "sharpness"])
def test_training_and_measuring_import_little(package: str) -> None:
    """A bare GPU machine could not run it. Plots import matplotlib when one is asked for, published records pyarrow, folders
    of images pillow."""
    paths = [path for path in (ROOT / package).rglob("*.py") if path.name not in ("plots.py", "published.py")]
    tops = {name.partition(".")[0] for path in paths for name in _imports(path)}
    assert tops - set(sys.stdlib_module_names) <= BARE


def test_tests_that_are_called_slow_exist() -> None:
    """A renamed test is quick again, and `make test-fast` takes ten minutes."""
    names = (ROOT / "tests" / "slow.txt").read_text().split()
    files = {file: (ROOT / file).read_text() for file in {name.split("::")[0] for name in names}}
    assert [name for name in names if f"def {name.split('::')[1]}(" not in files[name.split("::")[0]]] == []


TEXT = {"open": 3, "read_text": 0, "write_text": 1, "fdopen": 2, "run": None, "Popen": None, "check_output": None}
"""calls that read or write text -> the place of `encoding` among their arguments"""


def _lacks_its_encoding(call: ast.AST) -> bool:
    """Whether `call` reads or writes text as the terminal's settings say."""
    if not isinstance(call, ast.Call):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    own = {k.arg: k.value for k in call.keywords}
    others = ("os.open", "gzip.open", "tarfile.open", "Image.open", "tokenize.open",
              "archive.open")
    if name not in TEXT or "encoding" in own or ast.unparse(call.func) in others:
        return False
    if TEXT[name] is None:
        return "text" in own or "universal_newlines" in own
    if name in ("open", "fdopen"):
        first = 0 if isinstance(call.func, ast.Attribute) and name == "open" else 1
        mode = own.get("mode") or (call.args[first] if call.args[first:] else None)
        return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
    return len(call.args) <= TEXT[name]


def test_text_files_name_their_encoding() -> None:
    """Where the terminal is not UTF-8, files would be written and read in its encoding, or not at all."""
    bad = ["open(p)", "open(p, 'w')", "p.open('a')", "p.read_text()", "p.write_text(s)", "run(c, text=True)"]
    good = ["open(p, 'rb')", "p.open('xb')", "open(p, encoding='utf-8')", "p.read_text('utf-8')", "run(c)", "os.open(p, 0)"]
    assert [_lacks_its_encoding(ast.parse(code, mode="eval").body) for code in bad + good] == [True] * 6 + [False] * 6
    files = [path for name in (*PACKAGES, "notebooks", ".ci") for path in (ROOT / name).rglob("*.py")]
    calls = ((path, node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    assert [f"{path.relative_to(ROOT)}:{call.lineno}" for path, call in calls if _lacks_its_encoding(call)] == []


CLOCKS = re.compile(r"seconds|elapsed|duration|monotonic|perf_counter|process_time|\bwall\b|\btime\(")


def _holds_a_time(node: ast.AST) -> bool:
    """Whether `node` asserts that a time is below or above a number, or gives a call less than `lives.HANG` seconds."""
    if isinstance(node, ast.Assert):
        compared = [part for part in ast.walk(node.test) if isinstance(part, ast.Compare) and CLOCKS.search(ast.unparse(part))]
        return any(isinstance(n, ast.Constant) and isinstance(n.value, (int, float)) and n.value
                   for part in compared for n in [part.left, *part.comparators])
    limits = [k.value for k in node.keywords if k.arg == "timeout"] if isinstance(node, ast.Call) else []
    return any(isinstance(n, ast.Constant) and isinstance(n.value, (int, float)) and n.value < 600 for n in limits)


def test_no_test_holds_an_absolute_time() -> None:
    """A slower or busier machine would fail it: count calls, or compare two sizes; goals in seconds belong to the benchmarks."""
    bad = ast.parse("assert seconds < 10\nassert 0.1 <= block.wall\nassert time.monotonic() - began < 3\nrun(timeout=30)").body
    assert all(any(map(_holds_a_time, ast.walk(line))) for line in bad)
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name not in ("benchmarks", "gpu")]
    found = [f"{p.relative_to(ROOT)}:{n.lineno}" for p in files for n in ast.walk(ast.parse(p.read_text())) if _holds_a_time(n)]
    assert found == []
