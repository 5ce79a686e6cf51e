"""Whether a user's data fit into memory, asked before they are read: a process that needs too much is killed without a word."""

from __future__ import annotations

import os
from pathlib import Path

from .base import DataError

COPIES = {"u": 12, "i": 20}
"""bytes that a byte of an array takes at most until it is a tensor: pixels become float32, classes and short tokens int64"""
OTHERS = 3
"""of floats: themselves, a copy in the order of the run, and a tensor"""


def free() -> int | None:
    """Bytes that can be had, None where the system does not say."""
    try:
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
        return 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def check_memory(path: Path, needed: int) -> None:
    """DataError where fewer bytes are free."""
    if (there := free()) is not None and needed > there:
        raise DataError(f"{path} needs {needed / 2**30:.3g} GiB of memory once it is read, more than the {there / 2**30:.3g} GiB "
                        "that are free; take fewer examples.")
