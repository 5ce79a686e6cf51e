"""Around a command line: terminals of any encoding, readers that go, what is not installed, paths as a user writes them.

`python -m sharpness`, which imports nothing from here, has a few lines of its own.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import io
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.lab.declare.errors import UsageError

NO_READER = 141
"""exit status where nobody reads the output any more: that of a process which SIGPIPE ended"""
EXTRAS = {"pooch": "data"} | dict.fromkeys(("pandas", "pyarrow", "matplotlib", "seaborn", "PIL"), "analysis")
"""package -> the extra that installs it; every other one comes with batchlab itself"""
ANALYSIS = ("verdicts", "figures", "tables", "report", "pilot", "histories", "publish")
"""commands of `python -m analysis`"""
EXPERIMENTS = ("plan", "run", "status", "train", "sweep", "measure", "store")
"""commands of `python -m experiments`"""
PLAIN = {
    "×": "x", "÷": "/", "±": "+/-", "−": "-", "–": "-", "—": "-", "·": "*", "√": "sqrt ", "²": "^2", "‖": "||", "°": " degrees",
    "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"',
    "α": "alpha", "λ": "lambda", "µ": "u", "ρ": "rho", "σ": "sigma", "φ": "phi",
}
"""what is printed where the terminal's encoding lacks a character"""


def run(main: Callable[[], int]) -> int:
    """Be the process of a command line; returns its exit status."""
    for number in (0, 2):  # where one is closed, the next file opened would get its number and what is written to it
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        return complain("standard output is closed; send it to a file, or to /dev/null", 1)
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return complain("this system has no file locks (fcntl): batchlab runs on Linux and macOS; on Windows use WSL", 1)
    try:
        try:
            return main()
        finally:
            _written(sys.stdout.flush)  # what the parser of options printed
    except BrokenPipeError:
        _forget(2)
        return NO_READER
    except OSError as error:
        return complain(error, 1)


def show(text: str) -> None:
    """Print on stdout, now; raises `OSError`, one sentence, where that cannot be done, `BrokenPipeError` where nobody reads."""
    _written(lambda: print(text, flush=True))


def command_line(command: str, study: str, options: Any, *more: str) -> str:
    """A line to paste, of the program that was called: `command` on `study` at the scale, store and studies of `options`."""
    program = f"python -m {'analysis' if command in ANALYSIS else 'experiments'}"
    words = [command, study, *([] if options.scale is None else ["--scale", options.scale]), "--store", str(options.store)]
    own = [] if options.studies is None else ["--studies", str(options.studies)]
    own += [word for given in options.set for word in ("--set", given)]
    return f"{'batchlab' if Path(sys.argv[0]).stem == 'batchlab' else program} {shlex.join([*words, *own, *more])}"


def complain(error: object, status: int = 1) -> int:
    """Say on stderr what is wrong, in one line; returns `status`."""
    with contextlib.suppress(OSError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def missing(error: ImportError) -> str:
    """What to install, in a sentence; raises `error` again where the fault is ours."""
    name = (error.name or "").partition(".")[0]
    if name in ("experiments", "analysis", "sharpness"):
        raise error
    extra = f"[{EXTRAS[name]}]" if name in EXTRAS else ""
    return f"the package {name or 'needed'} cannot be imported ({error}); pip install 'batchlab{extra}'"


def expanded(options: Any) -> Any:
    """`options` with `~` in their paths as the user's home folder."""
    paths = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    try:
        return dataclasses.replace(options, **{n: path.expanduser() for n, path in paths.items() if isinstance(path, Path)})
    except RuntimeError as error:
        raise UsageError(f"~ in a path cannot be expanded ({error}); write the whole path") from error


def _written(write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        _forget(1)
        if isinstance(error, BrokenPipeError):
            raise
        said = error.strerror or error
        raise OSError(f"standard output cannot be written ({said}); free space there, or send it elsewhere") from error


def _forget(number: int) -> None:
    """What is left to write there fails no second time, at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be encoded: the error handler of the streams."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in lacking), error.end
