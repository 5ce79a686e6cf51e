"""Take files out of a .tar from anywhere with the standard library's `tarfile`, in bounded memory and without trusting it.

Nothing is unpacked: members are read one after the other, and whoever reads them decides by name, type and size what to take.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from .base import DataError

CHUNK = 1 << 16
"""bytes that are read at once, and the most that a name or an extended header may have"""
SLACK = 1 << 20  # read-me files and padding beside the expected members


class ArchiveError(Exception):
    """What is wrong with the archive, in a few words."""


class Reader:
    """What `tarfile` reads from: forwards alone, CHUNK bytes at once and `limit` decompressed bytes in all."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit, self._at = stream, limit, 0
        self.last = b""

    def read(self, size: int) -> bytes:
        self.last = self._stream.read(min(size, CHUNK + 1, self._limit - self._at + 1))
        self._at += len(self.last)
        if len(self.last) > CHUNK or self._at > self._limit:
            raise ArchiveError("it holds more data than it should")
        return self.last

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        if position < self._at:
            raise ArchiveError("a header's size is wrong")
        for _ in self.content(position - self._at):
            pass

    def content(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in pieces."""
        while size > 0:
            if not (piece := self.read(min(size, CHUNK))):
                raise ArchiveError("it ends too early")
            size -= len(piece)
            yield piece


def members(reader: Reader) -> Iterator[tarfile.TarInfo]:
    """Every member, `reader` standing where its content begins; ArchiveError where the archive is not whole."""
    try:
        tar: Any = tarfile.TarFile(fileobj=cast(BinaryIO, reader))
        while (member := tar.next()) is not None:
            tar.members.clear()  # a list of all would grow with the archive
            yield member
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise ArchiveError(str(error)) from error
    if reader.last != bytes(tarfile.BLOCKSIZE):
        raise ArchiveError("a header is damaged or missing")  # which `tarfile` takes for the end
    while reader.read(CHUNK):  # to the end, where gzip's check sum is verified
        pass


def is_file(member: tarfile.TarInfo) -> bool:
    """Whether `member` is its own content: no link, device or folder, and not sparse."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def read_members(path: Path, sizes: Mapping[str, int], remedy: str, *, at_most: bool = False) -> dict[str, bytes]:
    """The contents of the regular files of a .tar.gz that `sizes` names (exact name -> exact bytes); all others are skipped.

    at_most: sizes are the largest that are taken.

    Nothing is written to disk; memory is bounded by the sum of `sizes`, whatever the archive claims or
    expands to.
    DataError when the archive is missing or damaged, or an expected member is missing, of another size, twice
    there, or a link or device.
    """
    found: dict[str, bytes] = {}
    limit = SLACK + sum(2 * tarfile.BLOCKSIZE + size for size in sizes.values())
    try:
        with gzip.open(path, "rb") as stream:
            reader = Reader(cast(BinaryIO, stream), limit)
            for member in members(reader):
                if (name := member.name) not in sizes:
                    continue
                if not is_file(member):
                    raise ArchiveError(f"its member {name} is not a regular file")
                if name in found:
                    raise ArchiveError(f"its member {name} is there twice")
                if member.size > sizes[name] or (member.size < sizes[name] and not at_most):
                    most = " at most" if at_most else ""
                    raise ArchiveError(f"its member {name} has {member.size} bytes, expected {sizes[name]}{most}")
                found[name] = b"".join(reader.content(member.size))
            if missing := [name for name in sizes if name not in found]:
                raise ArchiveError(f"its member {missing[0]} is missing")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {remedy}.") from None
    except (OSError, EOFError, zlib.error, ArchiveError) as error:
        raise DataError(f"{path} is not the expected archive: {error}; {remedy}.") from error
    return found
