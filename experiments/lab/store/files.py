"""Files of a store: written whole or not at all (beside their place, synced, renamed), and read with care."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.lab.store.checksums import newer, why_broken

REPAIR = "`python -m experiments store check --repair` moves it aside, then run the same command again"
BLOCK = 1 << 16
"""bytes read at once"""
LEFTOVER_SECONDS = 3600.0
"""age of a file under way after which nobody writes it any more"""
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOTTY, errno.EPERM,
                         errno.EACCES})
"""how file systems say that they have no locks, or cannot be waited for"""


class StoreError(Exception):
    """The store cannot be used as asked; the message is one sentence with the remedy."""


class Unreadable(StoreError):
    """The system does not give a file, or a newer batchlab wrote it: it may be whole, so nothing is redone for it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says while `path` is written into a `StoreError` with the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk")
        raise StoreError(f"{path} cannot be written ({error.strerror or error}); {remedy} and run the same command again: "
                         "finished runs and checkpoints are kept") from error


_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there") | {
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable or choose another folder"),
}


def write_atomic(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` beside `path`, sync, rename: after a crash at any instant the old or the new file is whole.

    Raises `StoreError` where that fails; then the old file is there. Not `durable`: after a power failure it may be the
    old one until the next `sync_folder`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            append(temporary, content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def write_together(folder: Path, contents: Mapping[str, bytes], *, also: Sequence[Path] = (), durable: bool = True) -> None:
    """`write_atomic` for several files of `folder`, name -> content, in little more time than one takes: a disk that is
    asked to keep several files at the same time keeps them in one go. `also` are files and folders that were changed
    before and are to be kept with them. Each file is whole; after a failure any of them may be the old one.
    """
    temporaries = {name: folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp" for name in contents}
    with writing(folder):
        try:
            with ThreadPoolExecutor(len(contents) + len(also)) as pool:
                synced = pool.map(sync_folder, also)
                list(pool.map(append, temporaries.values(), contents.values()))
                list(synced)
            for name, temporary in temporaries.items():
                os.replace(temporary, folder / name)
        except BaseException:
            for temporary in temporaries.values():
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(folder)


def append(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Add `content` to the file `path`, made if missing, and wait for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        if durable:
            sync(descriptor)
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """Wait until a file is on the disk, where the file system can be asked for that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(path: Path) -> None:
    """Wait until the names in `path` are on the disk, where the file system can be asked for that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return
        raise
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def name_first(draft: Path, path: Path) -> bool:
    """Give the file `draft` the name `path` too; False where that name is taken, whose file stays.

    Where the file system has no hard links it is renamed, and only a lock that the caller holds keeps two from doing so at
    the same instant. Nothing is left behind that could stand in anybody's way.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # EPERM, ENOSYS, EMLINK, EXDEV, ...: if it was the disk, renaming says so
        if path.exists():
            return False
        os.rename(draft, path)
    return True


def try_out(folder: Path) -> None:
    """Do to a file in `folder` what a run will do, so that a file system that refuses it says so before any training.

    Raises `OSError`, which says what was refused.
    """
    one, other = (folder / f".probe.json.{os.getpid()}.{secrets.token_hex(4)}.tmp" for _ in range(2))
    steps = {
        "write a file": lambda: append(one, b"{}", durable=False),
        "add to a file": lambda: append(one, b"\n"),
        "read it back": lambda: _expect(one, b"{}\n"),
        "cut a file": lambda: os.truncate(one, 2),
        "write a second file": lambda: append(other, b"{}", durable=False),
        "replace a file": lambda: os.replace(other, one),
        "wait for the disk": lambda: sync_folder(folder),
        "read that back": lambda: _expect(one, b"{}"),
        "remove a file": one.unlink,
    }
    try:
        for what, step in steps.items():
            try:
                step()
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror or error}, when asked to {what}") from error
    finally:
        for path in (one, other):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _expect(path: Path, content: bytes) -> None:
    if (found := path.read_bytes()) != content:
        raise OSError(errno.EIO, f"it holds {found!r}, not {content!r}")


def clear_leftovers(folder: Path) -> None:
    """Remove old halves of JSON files from `folder`: processes that were killed while they wrote left them."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another one was faster
                if _HALF.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > LEFTOVER_SECONDS:
                    os.unlink(entry)


_HALF = re.compile(r"\..+\.json\.\d+\.[0-9a-f]{8}\.tmp")


def to_json(document: Any) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def finite_or_null(document: Any) -> Any:
    """`document` with every number that is not finite as null: JSON has no other honest word for it."""
    match document:
        case float():
            return document if math.isfinite(document) else None
        case dict():
            return {name: finite_or_null(value) for name, value in document.items()}
        case list() | tuple():
            return [finite_or_null(value) for value in document]
        case _:
            return document


def read_document(path: Path) -> dict[str, Any] | None:
    content = read_file(str(path))
    return None if content is None else parse(str(path), content)


def parse(path: str, content: bytes) -> dict[str, Any]:
    """The JSON object of a file; raises `StoreError` where it is none, or its checksum is wrong."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({error}); {REPAIR}") from error
    if isinstance(document, dict) and newer(content, document):
        raise Unreadable(f"{path} has schema {document['schema']}, which a newer batchlab wrote; use that one")
    why = why_broken(content, document) if isinstance(document, dict) else "it is no JSON object"
    if why is not None:
        raise StoreError(f"{path} is damaged ({why}); {REPAIR}")
    return document


def read_file(path: str) -> bytes | None:
    """The content of a file, None where it is missing; raises `StoreError` where a folder has its place, `Unreadable`
    where the system does not give it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a fifth of the time of Path.read_bytes
        try:
            parts = [os.read(descriptor, BLOCK)]
            while len(parts[-1]) == BLOCK:
                parts.append(os.read(descriptor, BLOCK))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise StoreError(f"{path} is damaged (it is a folder); {REPAIR}") from error
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror}); check the disk and the folder's permissions") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)
