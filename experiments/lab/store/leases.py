"""Who computes a run: a file that one process owns and keeps warm.

The file is read and changed under an exclusive lock on itself, which the system drops when its holder dies. A lease is
stale when its process is gone from the same machine, or when another machine has not touched it for `EXPIRY` seconds;
only a stale lease is taken over. The owner writes to its run under the same lock, so that it is the owner while it writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.lab.store.files import UNSUPPORTED

EXPIRY = 120.0
"""seconds without a touch after which a lease of another machine is stale"""
TOUCH = 10.0
"""seconds between touches"""
LOCK_SECONDS = 10.0
"""how long to wait for a process that holds the lock"""
HIDDEN = ""
"""start of a process that exists but is not ours to look at"""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: on this machine or another, which process, and since when (null where an older batchlab took it)."""

    here: bool
    pid: int
    since: float | None


@dataclass(frozen=True)
class Lease:
    """The right to record one run. `token` is unlike any other lease's."""

    path: Path
    token: str

    def held(self) -> bool:
        return _read(self.path).get("token") == self.token

    @contextlib.contextmanager
    def keep(self) -> Iterator[bool]:
        """Whether the lease is held; inside the block nobody can take it."""
        descriptor = _lock(self.path, os.O_RDWR)
        try:
            yield descriptor is not None and _parse(os.pread(descriptor, 4096, 0)).get("token") == self.token
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def touch(self) -> None:
        with contextlib.suppress(OSError):
            if self.held():
                try:
                    os.utime(self.path)
                except OSError:  # the file system sets times by itself, when the content is written
                    self._write_again()

    def _write_again(self) -> None:
        if (descriptor := _lock(self.path, os.O_RDWR)) is not None:
            try:
                if _parse(content := os.pread(descriptor, 4096, 0)).get("token") == self.token:
                    os.pwrite(descriptor, content, 0)
            finally:
                os.close(descriptor)

    def keep_warm(self) -> Callable[[], None]:
        """Touch it every `TOUCH` seconds, however long an update or an evaluation takes; returns what ends that."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(TOUCH):
                self.touch()

        threading.Thread(target=beat, daemon=True).start()
        return done.set

    def release(self) -> None:
        """Never fails: a lease that cannot be removed is stale when its process ends."""
        with contextlib.suppress(OSError), self.keep() as held:
            if held:
                self.path.unlink()


def acquire(folder: Path) -> Lease | None:
    """The lease of the run in `folder`, or None while a live process holds it."""
    path, token = folder / "lease.json", secrets.token_hex(8)
    if is_live(path) or (descriptor := _lock(path, os.O_RDWR | os.O_CREAT)) is None:
        return None
    try:
        if _alive(_parse(os.pread(descriptor, 4096, 0)), path):  # another one was faster
            return None
        owner = {"token": token, "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid()),
                 "since": time.time()}
        try:
            os.ftruncate(descriptor, 0)
            content = json.dumps(owner).encode()
            while content:  # a short write is followed by the error that cut it short
                content = content[os.write(descriptor, content) :]
        except OSError:
            path.unlink()
            raise
        return Lease(path, token)
    finally:
        os.close(descriptor)


def clear_record(folder: Path) -> None:
    """Remove what a process that was killed just after it recorded its run left there: checkpoints and its lease."""
    if not (folder / "lease.json").exists() and not any(folder.glob("checkpoint.*.safetensors")):
        return
    if (lease := acquire(folder)) is not None:
        for pattern in ("checkpoint.*.safetensors", ".*.tmp"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        lease.release()


def is_live(path: Path) -> bool:
    """Whether a process holds the lease file `path`."""
    return _alive(_read(path), path)


def holder(path: Path) -> Holder | None:
    """Who holds the lease file `path`, None where nobody does. Asks where it may not write, too."""
    owner = _read(path)
    try:
        alive = _alive(owner, path)
    except FileNotFoundError:
        return None
    except OSError:  # a store that may only be read: this machine's clock has to do
        alive = time.time() - path.stat().st_mtime < EXPIRY
    since = owner.get("since")
    return Holder(owner["machine"] == _machine(), owner["pid"], since if isinstance(since, float) else None) if alive else None


def _alive(owner: dict[str, Any], path: Path) -> bool:
    """Whether `owner`, as it stands in `path`, is at work; a damaged or empty lease is nobody's."""
    if not owner:
        return False
    if owner["machine"] == _machine() and (started := _started(owner["pid"])) != HIDDEN:
        return started == owner["started"] is not None
    try:
        return _now(path.parent) - path.stat().st_mtime < EXPIRY
    except FileNotFoundError:
        return False


def _lock(path: Path, flags: int) -> int | None:
    """A descriptor of `path` with the lock on it; None where it is missing or somebody keeps it locked.

    Where the file system has no locks, two processes may take one stale lease at the same instant: the later one owns
    it, the other notices at its next checkpoint.
    """
    import fcntl  # where it is needed: records are read without it

    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if flags & os.O_CREAT:
                raise
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = os.stat(path)
            if os.path.samestat(current, os.fstat(descriptor)):
                return descriptor  # and not a file that its owner removed meanwhile
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.002)
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        return {}


def _parse(content: bytes) -> dict[str, Any]:
    """The owner that a lease names; empty where it is damaged."""
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    kinds = {"token": str, "machine": str, "pid": int, "started": str}
    whole = isinstance(owner, dict) and all(isinstance(owner.get(name), kind) for name, kind in kinds.items())
    return owner if whole and owner["pid"] > 0 else {}


def _now(folder: Path) -> float:
    """The time by the clock that stamps files in `folder`: on a network it is not this machine's."""
    probe = folder / f".clock.{secrets.token_hex(4)}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """A name for this machine and its process table; hashed, because host names are nobody else's business."""
    parts = [socket.gethostname()]
    for probe in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text("ascii"), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(probe().strip())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _started(pid: int) -> str | None:
    """When process `pid` started, so that a reused pid is not mistaken for its predecessor; None when it is gone.

    `HIDDEN` where it exists and the system tells no more: another user's, or no /proc. Then touches have to do.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # which holds the program's name, in any encoding
    except OSError:
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except OSError:
            pass
        return HIDDEN
    fields = stat[stat.rindex(b")") + 2 :].decode("ascii").split()
    return None if fields[0] in "ZX" else fields[19]
