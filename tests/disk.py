"""A disk that fails, or a machine that dies, at a chosen call. Only for processes that end soon: nothing is put back."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("write", "fsync", "replace", "rename", "link", "mkdir", "truncate", "ftruncate", "utime")
"""calls that change files, beside opening for writing and `unlink`"""
FREEING = ("unlink", "truncate", "ftruncate", "flock")
"""calls that succeed on a full disk"""


class Disk:
    """Counts the calls that change files below `root`, or lock one, and lets `fault` decide about each."""

    def __init__(self, root: Path, fault: Callable[[int, str], OSError | None]) -> None:
        self.root, self.fault, self.calls, self.files, self.lock = str(root), fault, 0, set[int](), threading.Lock()
        for name in (*CHANGES, "unlink"):
            setattr(os, name, self._watched(name, getattr(os, name)))
        self.opened, os.open = os.open, self.open
        self.closed, os.close = os.close, self.close
        fcntl.flock = self._watched("flock", fcntl.flock)

    def open(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        inside = self._inside(path)
        if inside and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and (error := self._next("open")):
            raise error
        descriptor = self.opened(path, flags, *rest, **options)
        if inside:
            self.files.add(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        self.files.discard(descriptor)
        self.closed(descriptor)

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(target: Any, *rest: Any, **options: Any) -> Any:
            if self._inside(target):
                if name == "write":  # what fails, fails after half of it was written
                    half = call(target, rest[0][: len(rest[0]) // 2])
                    if error := self._next(name):
                        raise error
                    return half + call(target, rest[0][half:])
                if error := self._next(name):
                    raise error
            return call(target, *rest, **options)

        return watched

    def _inside(self, target: Any) -> bool:
        return target in self.files if isinstance(target, int) else os.fspath(target).startswith(self.root)

    def _next(self, name: str) -> OSError | None:
        with self.lock:
            self.calls += 1
            number = self.calls
        return self.fault(number, name)


def dies_at(call: int) -> Callable[[int, str], None]:
    """SIGKILL instead of the given call."""
    return lambda number, name: os.kill(os.getpid(), signal.SIGKILL) if number == call else None


def fails_from(call: int, code: int, *, spares: tuple[str, ...] = (), once: bool = False) -> Callable[[int, str], OSError | None]:
    """Error `code` at the given call and, unless `once`, at all that follow; `spares` names calls that succeed."""

    def fault(number: int, name: str) -> OSError | None:
        hit = number == call if once else number >= call
        return OSError(code, os.strerror(code)) if hit and name not in spares else None

    return fault
