"""The command `batchlab`: the project's command lines under one name, from any folder.

It looks for the project where it lies itself. `python -m experiments` looks into the current folder first, so that a
folder there called `experiments` takes its place. The wheel has `sharpness` alone: studies live in a checkout.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """The process of `batchlab`; returns its exit status."""
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["sharpness"]:
        del sys.argv[1]
        runpy.run_module("sharpness", run_name="__main__", alter_sys=True)
    if not (ROOT / "experiments" / "lab").is_dir():
        print("error: studies run in a checkout of batchlab, after `make setup` there; here only its library is installed, "
              "and the command `batchlab sharpness`", file=sys.stderr)
        return 2
    from experiments.lab.sweep import terminal

    return terminal.run(_command)


def _command() -> int:
    """The commands of `analysis` and of `experiments`."""
    from analysis.__main__ import COMMANDS
    from analysis.__main__ import main as analysis
    from experiments.__main__ import COMMANDS as OTHERS
    from experiments.__main__ import main as experiments
    from experiments.lab.sweep import terminal

    words = sys.argv[1:]
    if words in (["--help"], ["-h"]):
        terminal.show(f"usage: batchlab {{{', '.join([*OTHERS, *COMMANDS, 'sharpness'])}}}; each has its own --help")
        return 0
    if words[:1] and not words[0].startswith("-") and words[0] not in (*OTHERS, *COMMANDS):
        names = ", ".join([*OTHERS, *COMMANDS, "sharpness"])
        return terminal.complain(f"there is no command {words[0]!r}; the commands are {names}", 2)
    return (analysis if words[:1] and words[0] in COMMANDS else experiments)(words, "batchlab")


if __name__ == "__main__":
    sys.exit(main())
