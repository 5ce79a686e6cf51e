"""Decompress a whole file of known size without ever holding more than that size."""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path
from typing import Literal

from .base import DataError


def read_exactly(path: Path, size: int, kind: Literal["gz", "xz"], remedy: str) -> bytes:
    """The content of a compressed file, `size` bytes; DataError when missing, damaged, shorter or longer.

    At most `size` + 1 bytes are decompressed, however much a hostile file would expand to.
    """
    opener = gzip.open if kind == "gz" else lzma.open
    try:
        with opener(path, "rb") as stream:
            content = stream.read(size + 1)
            if len(content) == size:
                stream.read(1)  # reaches the trailer, whose check sum is verified only there
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {remedy}.") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a .{kind} file ({error}); {remedy}.") from error
    if len(content) != size:
        found = f"only {len(content)}" if len(content) < size else "more"
        raise DataError(f"{path} holds {found} bytes, expected {size}; {remedy}.")
    return content
