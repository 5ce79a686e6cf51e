"""austen: the characters of *Pride and Prejudice*, which lie in the repository."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from .base import DataError, Dataset
from .compressed import read_exactly
from .own import assembled
from .text import sequences

FILE = Path(__file__).parent / "austen" / "pride_and_prejudice.txt.xz"
SIZE = 684_768
SHA256 = "dfc684d4f857fa938268f9ab9c5567b64bd0691251eca959644adeabe6287a4d"
REMEDY = "restore it with `git checkout -- experiments/lab/datasets/austen`"


def load_austen(file: Path = FILE) -> Dataset:
    """9,630 training and 1,069 test sequences of 64 characters, of 75 kinds; DataError unless exactly the pinned text."""
    content = read_exactly(file, SIZE, "xz", REMEDY)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise DataError(f"{file} was altered: its content has SHA-256 {digest}, expected {SHA256}; {REMEDY}.")
    return replace(assembled("austen", sequences(content.decode())), sha256=digest)
