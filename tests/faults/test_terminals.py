"""Terminals, pipes, users and installations that lack something: one sentence and a status, or all that they can show."""

from __future__ import annotations

import ast
import io
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_nets import CROSS_ENTROPY, own_labels, relu_net

from analysis.__main__ import main as analysis
from experiments.__main__ import main
from experiments.lab import datasets
from experiments.lab.datasets import DataError
from experiments.lab.fused import autotune
from experiments.lab.sweep import terminal
from sharpness import slice_1d
from sharpness.__main__ import main as sharpness
from sharpness.plots import plot_slice

ROOT = Path(__file__).resolve().parents[2]
ENCODINGS = ("ascii", "cp1252", "cp437", "latin-1", "cp932", "gbk")
COMMANDS = ("-u -m experiments", "-m experiments --help", "-m analysis --help", "-u -m sharpness --list", "-m sharpness --help")


def started(*words: str, shim: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, ([shim] if shim else []) + [ROOT]))
    environment = os.environ | {"PYTHONPATH": path} | options.pop("env", {})
    return subprocess.run([sys.executable, *words], env=environment, stderr=subprocess.PIPE, encoding="utf-8", **options)


def hide(folder: Path, *names: str) -> Path:
    """Make packages look as if they were not installed, for processes with `folder` on their path."""
    text = f"import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return folder


def shown(encoding: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What a command line prints on a terminal of `encoding`."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding, write_through=True))
    command = {"experiments": main, "analysis": analysis}[words[0]]
    assert terminal.run(lambda: command(list(words[1:]))) == 0
    return screen.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_terminal_shows_verdicts(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A character that the terminal lacks would end the command in a traceback, or be unreadable."""
    text = shown(encoding, monkeypatch, "analysis", "verdicts", "keskar2017", "--scale", "quick", "--published")
    assert "REPRODUCED" in text and ("6.87x [5.94, 7.94]" in text or "6.87× [5.94, 7.94]" in text) and "\\" not in text


def test_json_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced character would be another value, or no JSON."""
    text = shown("ascii", monkeypatch, "experiments", "--json")
    assert json.loads(text)["studies"]


def test_each_character_that_is_printed_has_a_plain_one() -> None:
    """A new symbol in a table would be printed as its number where the terminal lacks it."""
    files = [p for name in ("experiments", "analysis") for p in (ROOT / name).rglob("*.py") if p.parent.name != "figures"]
    values = (n.value for p in files for n in ast.walk(ast.parse(p.read_text("utf-8"))) if isinstance(n, ast.Constant))
    used = {c for value in values if isinstance(value, str) for c in value if not c.isascii()}
    assert used <= terminal.PLAIN.keys() and all(plain.isascii() for plain in terminal.PLAIN.values())


def test_a_path_that_is_no_text_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a folder may be any bytes."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, "utf-8"))

    def main() -> int:
        print("store/\udcff, —")
        return 0

    assert terminal.run(main) == 0
    assert screen.getvalue().decode() == "store/\\udcff, —\n"


@pytest.mark.parametrize("words", COMMANDS)
def test_nobody_reads(words: str) -> None:
    """`| head` would get a traceback, an error, or the interpreter's last words."""
    read, write = os.pipe()
    os.close(read)
    done = started(*words.split(), cwd=ROOT, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (terminal.NO_READER, "")


@pytest.mark.parametrize("words", COMMANDS)
def test_the_output_cannot_be_written(words: str) -> None:
    """A result that nobody gets would count as finished."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = started(*words.split(), cwd=ROOT, stdout=full)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("package", ["experiments", "analysis", "sharpness"])
def test_the_output_is_closed(package: str) -> None:
    """The next file that is opened would get what is printed."""
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} -m {package} --help >&-"], cwd=ROOT, capture_output=True)
    assert done.returncode == 1 and done.stderr.startswith(b"error: standard output is closed")


def test_without_stderr_nothing_of_it_is_on_stdout() -> None:
    """Progress and complaints would stand in the JSON."""
    words = f"{sys.executable} -m experiments status nothing --scale quick 2>&-"
    done = subprocess.run(["sh", "-c", words], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")


PUBLISHED = ("keskar2017", "--scale", "quick", "--published")


@pytest.mark.parametrize(("package", "command"), [
    ("pandas", "verdicts"), ("pandas", "pilot"), ("pyarrow", "tables"), ("matplotlib", "figures"), ("seaborn", "figures"),
    ("PIL", "report"), ("pyarrow", "histories"), ("pandas", "publish"),
])
def test_a_missing_extra_is_named(package: str, command: str, tmp_path: Path) -> None:
    """A traceback ends with a name that the reader never asked for."""
    words = PUBLISHED if command not in ("pilot", "histories", "publish") else PUBLISHED[:-1]
    done = started("-m", "analysis", command, *words, "--store", str(tmp_path), shim=hide(tmp_path, package), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: the package {package}") and done.stderr.count("\n") == 1
    assert "pip install 'batchlab[analysis]'" in done.stderr


def test_a_fault_of_ours_is_no_missing_package() -> None:
    """A wrong import would be taken for something to install."""
    with pytest.raises(ImportError):
        terminal.missing(ImportError("cannot import name", name="analysis.load"))


def test_plots_and_downloads_name_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = slice_1d(relu_net(), CROSS_ENTROPY, own_labels(), start=relu_net().state_dict(), end=relu_net().state_dict(),
                    alphas=[0.0, 1.0])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'batchlab\[analysis\]'"):
        plot_slice(line)
    with pytest.raises(DataError, match=r"pip install 'batchlab\[data\]'"):
        datasets.load("cifar10", tmp_path)


def test_sharpness_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert sharpness(["--model", "toy_nets:relu_net", "--data", "toy_nets:own_labels", "--metrics", "trace"]) == 1
    assert "error: the package rich" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("-m", "experiments"), ("-m", "analysis", "verdicts", *PUBLISHED),
                                   (str(ROOT / "experiments/keskar2017.py"), "--scale", "quick")])
def test_a_system_without_locks_is_told_so(words: tuple[str, ...], tmp_path: Path) -> None:
    """On Windows the first import would fail."""
    done = started(*words, shim=hide(tmp_path, "fcntl"), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "Linux and macOS" in done.stderr
    assert "WSL" in (ROOT / "README.md").read_text("utf-8")


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder called ~ would be made in the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["store", "check", "--store=~/mine"]) == 1 and f"{tmp_path}/mine" in capsys.readouterr().err
    (tmp_path / "mine" / "runs").mkdir(parents=True)
    assert main(["store", "export", "~/runs.tar", "--store=~/mine"]) == 0 and (tmp_path / "runs.tar").exists()
    assert main(["store", "import", "~/runs.tar", "--store=~/other"]) == 0 and (tmp_path / "other" / "runs").is_dir()
    analysis(["verdicts", "keskar2017", "--scale", "quick", "--store=~/mine"])
    assert f"--store {tmp_path}/mine" in capsys.readouterr().err
    plan = ["plan", "keskar2017", "--scale", "quick", "--store=~/mine"]
    assert main([*plan, "--data-dir=~/nowhere"]) == 1 and f"{tmp_path}/nowhere" in capsys.readouterr().err
    assert main([*plan, "--dataset", "cifar-bin:~/nowhere"]) == 1 and f"{tmp_path}/nowhere" in capsys.readouterr().err
    sharpness(["--model", "toy_nets:relu_net", "--data", "toy_nets:own_labels", "--weights", "~/w.safetensors"])
    assert f"{tmp_path}/w.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "store"), [("", "store"), ("~/mine", "HOME/mine")])
def test_the_stores_variable(value: str, store: str, tmp_path: Path) -> None:
    """An empty one would put `runs/` among the user's own files."""
    environment = {"BATCHLAB_STORE": value, "HOME": str(tmp_path)}
    done = started("-m", "experiments", "--json", env=environment, cwd=tmp_path, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["store"] == store.replace("HOME", str(tmp_path))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Containers and clusters give numbers to users, and no names: what needs no folder must work."""
    for name in ("HOME", "BATCHLAB_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["nobody"])
    assert len(datasets.load("fashion-mini").train.targets) == 10_000 and autotune.cache() is None
    with pytest.raises(DataError, match=r"--data-dir or BATCHLAB_DATA_DIR"):
        datasets.load("mnist")
    with pytest.raises(DataError, match="begins with a home folder, and this user has none"):
        datasets.load("cifar-bin:~/mine")
    assert main(["store", "check", "--store", "~/mine"]) == 2 and capsys.readouterr().err.count("\n") == 1
