"""Texts as sequences of characters, each to be told from those before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .base import DataError, Dataset
from .memory import COPIES, check_memory
from .own import Arrays, assembled

LENGTH = 64
"""characters of a sequence"""
TEST_SHARE = 10
"""the last tenth of a text is the test"""


def sequences(text: str) -> Arrays:
    """`train` and `test`, inputs and targets int64 [N, 64]: consecutive pieces, the target of a character is the next one.

    A character's token is its place among those of the text, sorted. ValueError where a text is too short.
    """
    characters, tokens = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    count = (len(tokens) - 1) // LENGTH
    if count < 2:
        raise ValueError(f"has {len(tokens)} characters, but needs at least {2 * LENGTH + 1}")
    if len(characters) < 2:
        raise ValueError("repeats one character")
    tokens = tokens.reshape(-1).astype(np.int64)
    inputs, targets = (tokens[shift : shift + count * LENGTH].reshape(count, LENGTH) for shift in (0, 1))
    first = count - max(1, count // TEST_SHARE)
    return {"train": (inputs[:first], targets[:first]), "test": (inputs[first:], targets[first:])}


def load_text(name: str, path: Path) -> Dataset:
    """text:FILE, in UTF-8. DataError where it cannot be read or is too short."""
    try:
        check_memory(path, 2 * COPIES["i"] * path.stat().st_size)
        return assembled(name, sequences(path.read_bytes().decode("utf-8-sig")))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a text file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 (byte {error.start}); convert it.") from error
    except ValueError as error:
        raise DataError(f"{path} {error}; take a longer text.") from error
