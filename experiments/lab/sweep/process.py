"""What a process that computes has of its own, before torch is imported: its answer to signals, its threads, its memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


class Stopper:
    """Remembers a signal. A training run looks at `asked`; a measurement is cut short, because it leaves nothing half done."""

    def __init__(self) -> None:
        self.asked = False
        self.measuring = False

    def __call__(self, number: int, frame: object) -> None:
        self.asked = True
        if self.measuring:  # not before: an import here could break off the one that the signal interrupted
            from experiments.lab.store.run_folder import Interrupted

            raise Interrupted("measurement")


def set_blas_threads(threads: int) -> None:
    """numpy's BLAS has threads of its own, read once at its import: two workers' would fight for the same cores."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


def keep_freed_memory() -> None:
    """Ask glibc's malloc, where it is the allocator, never to return memory.

    It gives large blocks back to the system and gets them again, zeroed page by page, at every update: for Keskar's C1 at
    batch size 500 that was 40% of the time (0.67 s per update instead of 0.39 s). Small networks gain nothing and lose nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
