"""One folder put in the place of another: a reader, or a kill at any instant, finds the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import time
from pathlib import Path

from experiments.lab.store.files import LEFTOVER_SECONDS, sync_folder, writing

UNDER_WAY = ".publishing-"
"""beginning of the name of a folder in which something is prepared; readers look for no such name"""
ASIDE = "aside"


def swap(new: Path, place: Path) -> None:
    """Put the folder `new` at `place`; what was there lies at `new` afterwards, or, where the file system cannot exchange two
    names at once, below the folder `aside` beside it. Both are on one file system. Raises `StoreError`."""
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            os.replace(new, place)
        elif not _exchange(new, place):
            old = _aside(new)
            old.parent.mkdir(parents=True, exist_ok=True)
            os.replace(place, old)
            try:
                os.replace(new, place)
            except OSError:
                os.replace(old, place)
                raise
        sync_folder(place.parent)


def clear(root: Path) -> None:
    """What a killed process left below `root`: a page that it had taken from its place goes back, the rest is removed."""
    for left in root.glob(f"{UNDER_WAY}*"):
        for old in left.glob(f"{ASIDE}/*/*"):
            place = root / old.relative_to(left / ASIDE)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(old, place)
        with contextlib.suppress(FileNotFoundError):  # another one was faster
            if time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _aside(new: Path) -> Path:
    """Where the old page waits: `new` is <prepared>/<study>/<scale>."""
    return new.parents[1] / ASIDE / new.parent.name / new.name


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step, by renameat2 (Linux) or renamex_np (macOS); False where that is not to be had."""
    here, exchange = -100, 2  # AT_FDCWD; RENAME_EXCHANGE and RENAME_SWAP are both 2
    try:
        libc, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(first), os.fsencode(second))
        if sys.platform == "darwin":
            return libc.renamex_np(*names, exchange) == 0
        return libc.renameat2(here, names[0], here, names[1], exchange) == 0
    except (AttributeError, OSError, TypeError):
        return False
