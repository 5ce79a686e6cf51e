"""Take a few known files out of a .tar.gz from the internet, in memory and without trusting anything in it.

The standard library's tarfile follows links, obeys extended headers of any length and has had its extraction
filter bypassed; nothing of that is needed to read a handful of plain files of known name and size.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

from .base import DataError

BLOCK = 512
CHUNK = 1 << 16
SLACK = 1 << 20  # read-me files and padding beside the expected members
REGULAR = (b"0", b"\0")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes


class ArchiveError(Exception):
    """What is wrong with the archive, in a few words."""


class BoundedReader:
    """Reads exactly what is asked for, and never more than `limit` decompressed bytes in all."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int) -> bytes:
        data = self._take(size)
        if len(data) < size:
            raise ArchiveError("it ends too early")
        return data

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.read(min(size, CHUNK)))

    def drain(self) -> None:
        """Read to the end, where gzip's check sum is verified."""
        while self._take(CHUNK):
            pass

    def _take(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError("it holds more data than it should")
        return data


def read_members(path: Path, sizes: Mapping[str, int], remedy: str, *, at_most: bool = False) -> dict[str, bytes]:
    """The contents of the regular files named in `sizes` (exact name -> exact bytes); all others are skipped.

    at_most: sizes are the largest that are taken.

    Nothing is written to disk; memory is bounded by the sum of `sizes`, whatever the archive claims or
    expands to.
    DataError when the archive is missing or damaged, or an expected member is missing, of another size, twice
    there, or a link or device.
    """
    limit = SLACK + sum(BLOCK + padded(size) for size in sizes.values())
    try:
        with gzip.open(path, "rb") as stream:
            return _read(BoundedReader(cast(BinaryIO, stream), limit), sizes, at_most)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {remedy}.") from None
    except (OSError, EOFError, zlib.error, ArchiveError) as error:
        raise DataError(f"{path} is not the expected archive: {error}; {remedy}.") from error


def _read(reader: BoundedReader, sizes: Mapping[str, int], at_most: bool) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    while any(header := reader.read(BLOCK)):
        name, kind, size = parse_header(header)
        if name not in sizes:
            reader.skip(0 if kind in WITHOUT_DATA else padded(size))
            continue
        if kind not in REGULAR:
            raise ArchiveError(f"its member {name} is not a regular file")
        if name in found:
            raise ArchiveError(f"its member {name} is there twice")
        if size > sizes[name] or (size < sizes[name] and not at_most):
            raise ArchiveError(f"its member {name} has {size} bytes, expected {sizes[name]}{' at most' if at_most else ''}")
        found[name] = reader.read(size)
        reader.skip(padded(size) - size)
    reader.drain()
    missing = [name for name in sizes if name not in found]
    if missing:
        raise ArchiveError(f"its member {missing[0]} is missing")
    return found


def parse_header(header: bytes) -> tuple[str, bytes, int]:
    """Name, type flag and size in bytes of a ustar header; where links point to is not looked at."""
    check_sum = sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")
    if _octal(header[148:156]) != check_sum:
        raise ArchiveError("a header's check sum is wrong")
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345:346] != b"\0":
        name = f"{_text(header[345:500])}/{name}"
    return name, header[156:157], _octal(header[124:136])


def _octal(field: bytes) -> int:
    digits = field.strip(b"\0 ")
    if not all(
        digit in b"01234567" for digit in digits
    ):  # also refuses the binary form of sizes beyond 8 GiB
        raise ArchiveError("a header's number is not octal")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("latin-1")


def padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
