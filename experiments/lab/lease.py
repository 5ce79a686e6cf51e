"""Who computes a run: a file that one process owns and keeps warm.

A lease is created exclusively. It is stale when its process is gone from the same machine, or when another machine has
not touched it for `EXPIRY` seconds; only a stale lease is taken over. Publishing asks for the lease once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

EXPIRY = 120.0
"""seconds without a touch after which a lease of another machine is stale"""
TOUCH = 10.0
"""seconds between touches"""


@dataclass(frozen=True)
class Lease:
    """The right to record one run. `token` is unlike any other lease's."""

    path: Path
    token: str

    def held(self) -> bool:
        owner = _read(self.path)
        return owner is not None and owner.get("token") == self.token

    def touch(self) -> None:
        if self.held():
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        if self.held():
            self.path.unlink(missing_ok=True)


def acquire(folder: Path) -> Lease | None:
    """The lease of the run in `folder`, or None while a live process holds it."""
    path, token = folder / "lease.json", secrets.token_hex(8)
    owner = {"token": token, "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
    draft = folder / f".lease.{token}"
    draft.write_text(json.dumps(owner))
    try:
        for _ in range(2):
            try:
                os.link(draft, path)  # fails if a lease is there, and never shows half a file
                return Lease(path, token)
            except FileExistsError:
                if not _remove_stale(path, token):
                    return None
    finally:
        draft.unlink(missing_ok=True)
    return None


def is_live(path: Path) -> bool:
    """Whether a process holds the lease file `path`."""
    owner = _read(path)
    if owner is None:
        return False
    if owner.get("machine") == _machine():
        return _started(owner["pid"]) == owner["started"] is not None
    try:
        return time.time() - path.stat().st_mtime < EXPIRY
    except FileNotFoundError:
        return False


def _remove_stale(path: Path, token: str) -> bool:
    """Remove a stale lease; False if it is live, or if another process was first."""
    before = _read(path)
    if is_live(path):
        return False
    aside = path.with_name(f".stale.{token}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    taken = _read(aside)
    if taken != before and taken is not None:  # a new owner came between the look and the rename: give it back
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink(missing_ok=True)
        return False
    aside.unlink(missing_ok=True)
    return True


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _machine() -> str:
    """A name for this machine and its process table; hashed, because host names are nobody else's business."""
    parts = [socket.gethostname()]
    for probe in (Path("/proc/sys/kernel/random/boot_id").read_text, lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(probe().strip())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _started(pid: int) -> str | None:
    """When process `pid` started, so that a reused pid is not mistaken for its predecessor; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:  # no /proc on this system: the pid has to do
            os.kill(pid, 0)
        except OSError:
            return None
        return "unknown"
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else fields[19]
