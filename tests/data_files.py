"""What the tests of damaged data files share."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator

RECORDS = 2
MEGABYTE = 1 << 20
ONE_SENTENCE = r"^[^\n]*; [^\n]*\.$"  # what was found and expected; the remedy


def records(label: int = 3, count: int = RECORDS) -> bytes:
    """Whole CIFAR-10 records, all of one label."""
    return (bytes([label]) + bytes(range(256)) * 12) * count


@contextlib.contextmanager
def at_most(peak: int) -> Iterator[None]:
    """Fails when Python allocates more than `peak` bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < peak
    finally:
        tracemalloc.stop()
