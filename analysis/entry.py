"""The command `batchlab`: the project's command lines under one name.

It looks for the project where it is installed. `python -m experiments` looks into the current folder first, so that a
folder there called `experiments` takes its place.
"""

from __future__ import annotations

import sys

from experiments.lab.sweep import terminal


def main() -> int:
    """The process of `batchlab`; returns its exit status."""
    return terminal.run(_command)


def _command() -> int:
    """`batchlab sharpness ...` is `python -m sharpness ...`; the other commands are those of `analysis` and of `experiments`."""
    words = sys.argv[1:]
    if words[:1] == ["sharpness"]:
        from sharpness.__main__ import main as sharpness

        return sharpness(words[1:])
    from analysis.__main__ import COMMANDS
    from analysis.__main__ import main as analysis
    from experiments.__main__ import COMMANDS as OTHERS
    from experiments.__main__ import main as experiments

    if words in (["--help"], ["-h"]):
        terminal.show(f"usage: batchlab {{{', '.join([*OTHERS, *COMMANDS, 'sharpness'])}}}; each has its own --help")
        return 0
    if words[:1] and not words[0].startswith("-") and words[0] not in (*OTHERS, *COMMANDS):
        names = ", ".join([*OTHERS, *COMMANDS, "sharpness"])
        return terminal.complain(f"there is no command {words[0]!r}; the commands are {names}", 2)
    return (analysis if words[:1] and words[0] in COMMANDS else experiments)(words, "batchlab")
