"""What is under way in a store: runs that a process computes now, that stopped half-way, or that failed last time.

Reads without torch, and looks only into folders that exist. Other processes go on meanwhile, so that every file may vanish.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from experiments.lab.store.files import StoreError, to_json, write_atomic
from experiments.lab.store.leases import holder
from experiments.lab.store.records import Store

FAILURE = "failed.json"
"""in a run's folder: why it ended without a record; its next attempt removes it"""
LARGEST_HEADER = 100_000_000
"""bytes; safetensors allows no more"""


@dataclass(frozen=True)
class Begun:
    """A run with a folder and without a record."""

    state: str
    """`running`: a process holds its lease; `failed`: the last attempt did; `interrupted`: it goes on from a checkpoint;
    `waiting`: nothing of it is kept"""
    step: int | None = None
    """of its newest checkpoint"""
    here: bool | None = None
    """whether this machine computes it"""
    pid: int | None = None
    """the process that does, on this machine"""
    since: float | None = None
    """seconds since 1970 at which that process took it, by the clock of its machine"""
    failure: str | None = None
    """why the last attempt failed"""


def look(store: Store, run_id: str) -> Begun | None:
    """What `run_id` is, None where it has no folder or has been recorded meanwhile."""
    folder = store.folder(run_id)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        owner, step, failure = holder(folder / "lease.json"), checkpoint_step(folder), _failure(folder)
        if store.finished(run_id) or not folder.is_dir():  # the last look: what ended meanwhile is no longer under way
            return None
        if owner is not None:
            return Begun("running", step, owner.here, owner.pid if owner.here else None, owner.since)
        state = "failed" if failure is not None else "waiting" if step is None else "interrupted"
        return Begun(state, step, failure=failure)
    return None


def begun(store: Store, run_ids: Iterable[str]) -> dict[str, Begun | None]:
    """`look` at those of `run_ids`, all just now without a record, that have a folder."""
    folders = set(store.run_ids())
    return {run_id: look(store, run_id) for run_id in run_ids if run_id in folders}


def checkpoint_step(folder: Path) -> int | None:
    """Step of the newest checkpoint in `folder` that can be read; its weights are not."""
    with contextlib.suppress(OSError):
        steps = (_step(folder / f"checkpoint.{number}.safetensors") for number in reversed(checkpoint_numbers(folder)))
        return next((step for step in steps if step is not None), None)


def checkpoint_numbers(folder: Path) -> list[int]:
    """The k of every `checkpoint.<k>.safetensors` in `folder`, ascending."""
    parts = [path.name.split(".") for path in folder.glob("checkpoint.*.safetensors")]
    return sorted(int(number) for _, number, *rest in parts if number.isdecimal() and len(rest) == 1)


def _step(path: Path) -> int | None:
    """The step in the header of a checkpoint file."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= LARGEST_HEADER else {}
        step = json.loads(header["__metadata__"]["text"])["steps"]["current"]
        return step if type(step) is int else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def note_failure(store: Store, run_id: str, sentence: str) -> None:
    """Remember why an attempt at `run_id` failed. Never fails itself: the sentence is printed too."""
    folder = store.folder(run_id)
    if not folder.is_dir() or store.finished(run_id):
        return
    with contextlib.suppress(OSError, StoreError):
        if holder(folder / "lease.json") is None:
            write_atomic(folder / FAILURE, to_json({"sentence": sentence, "when": time.time()}), durable=False)


def _failure(folder: Path) -> str | None:
    try:
        sentence = json.loads((folder / FAILURE).read_bytes())["sentence"]
        return sentence if isinstance(sentence, str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
