"""What `store check` looks for: records that are not what was written, and what nothing vouches for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.lab.declare.config import SCIENCE_VERSION
from experiments.lab.store.checksums import BITS, LIGHT, config_id, sha256_of
from experiments.lab.store.files import REPAIR, StoreError, Unreadable, read_document, sync_folder, writing
from experiments.lab.store.leases import acquire
from experiments.lab.store.records import Store

ASIDE = "damaged"
"""folder of the store that repair moves damaged records to"""
ALWAYS = {"config.json", "provenance.json", "history.jsonl", "final.safetensors"}
"""files that every summary of schema 2 stands for"""
KNOWN = ALWAYS | {"plan.json", "history.safetensors", "predictions.safetensors", BITS}
"""files that a summary may stand for: nothing else is opened, whatever it names"""
LINE_BYTES = 1 << 16
"""longest row of a history of schema 1, which nothing vouches for: parsed, it takes many times its size"""


@dataclass
class Findings:
    """What is wrong with the finished runs and the measurements of a store."""

    damaged: list[tuple[Path, str]] = field(default_factory=list)
    """what has to be redone (the folder of a run, or a measurement), and a sentence"""
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    """what the system does not give or a newer batchlab wrote, and a sentence: it may be whole and is never moved;
    and what cannot be repaired yet"""
    unchecked: list[str] = field(default_factory=list)
    """runs and measurements of schema 1: only their weights and predictions have digests"""
    foreign: list[str] = field(default_factory=list)
    """runs of another science version: kept, never used"""


def check(store: Store) -> Findings:
    """Look into every finished run and every measurement."""
    found = Findings()
    for run_id in store.run_ids():
        try:
            if store.finished(run_id):
                check_run(store, run_id, found)
        except OSError as error:
            found.unreadable.append(_not_given(store.folder(run_id), error))
    for path in sorted((store.root / "measurements").glob("*.json")):
        check_measurement(path, None, found)
    return found


def check_run(store: Store, run_id: str, found: Findings) -> None:
    """Add what is wrong with one finished run and its measurements to `found`."""
    folder = store.folder(run_id)
    found.damaged += [(folder, sentence) for sentence in _of_run(store, run_id, found)]
    for path in sorted((folder / "measurements").glob("*.json")):
        check_measurement(path, run_id, found)


def _of_run(store: Store, run_id: str, found: Findings) -> Iterator[str]:
    folder = store.folder(run_id)
    try:
        summary, document = store.summary(run_id), read_document(folder / "config.json")
        if summary is None or document is None or config_id(document) != run_id or summary.get("run_id") != run_id:
            yield f"{folder} holds the record of another run; {REPAIR}"
            return
        if document.get("science_version") != SCIENCE_VERSION:
            found.foreign.append(run_id)
        if summary.get("schema", 1) == 1:
            found.unchecked.append(run_id)
        if not _plausible(summary):
            yield f"the files in {folder}/summary.json are not those of a record; {REPAIR}"
            return
        for name in _altered(folder, summary):
            yield f"{folder / name} is missing or altered; {REPAIR}"
    except Unreadable as error:
        found.unreadable.append((folder, str(error)))
    except OSError as error:
        found.unreadable.append(_not_given(folder, error))
    except (StoreError, ValueError, KeyError, AttributeError, TypeError) as error:
        yield str(error) if isinstance(error, StoreError) else f"{folder} cannot be read ({error}); {REPAIR}"


def _not_given(path: Path, error: OSError) -> tuple[Path, str]:
    return path, f"{path} cannot be read ({error.strerror or error}); check the disk and the folder's permissions"


def _plausible(summary: dict[str, Any]) -> bool:
    """Whether the summary stands for the files of a record, and for what is in them."""
    files = summary["files"]
    needed = set() if summary.get("schema", 1) == 1 else ALWAYS - ({"final.safetensors"} if summary.get(LIGHT) is True else set())
    return needed <= files.keys() <= KNOWN and all(map(_SHA256.fullmatch, files.values()))


_SHA256 = re.compile("[0-9a-f]{64}")


def _altered(folder: Path, summary: dict[str, Any]) -> Iterator[str]:
    """Names of the files that are not what the summary stands for."""
    if summary.get("schema", 1) > 1:
        yield from (name for name, sha256 in summary["files"].items() if sha256_of(folder / name) != sha256)
        return
    from experiments.lab.store.checkpoints import whole

    for name in summary["files"]:  # the digest first: it says where the system does not give the file
        if sha256_of(folder / name) is None or not whole(folder, name, summary):
            yield name
    try:
        with open(folder / "history.jsonl", "rb") as file:
            while line := file.readline(LINE_BYTES):
                json.loads(line)
    except FileNotFoundError:
        pass
    except (ValueError, RecursionError, IsADirectoryError):
        yield "history.jsonl"


def check_measurement(path: Path, run_id: str | None, found: Findings) -> None:
    """Add what is wrong with one measurement, of the run `run_id` or of a pair (none), to `found`."""
    try:
        document = read_document(path) or {}
        metric, runs = document.get("metric"), document.get("runs")
        others = (runs != [run_id]) if run_id else not (isinstance(runs, list) and len(runs) > 1)
        if others or not path.name.startswith(f"{metric}-"):
            found.damaged.append((path, f"{path} is another measurement than its name says; {REPAIR}"))
        elif document.get("schema", 1) == 1:
            found.unchecked.append(path.name)
    except Unreadable as error:
        found.unreadable.append((path, str(error)))
    except StoreError as error:
        found.damaged.append((path, str(error)))


def repair(store: Store, found: Findings) -> list[str]:
    """Move what is damaged aside, so that `run` makes it anew; returns where to. Each is looked at again just before:
    it may have been redone meanwhile, or somebody be at work on it."""
    moved = []
    for path in sorted({path for path, _ in found.damaged}):
        if path.parent != store.root / "runs" or not path.exists():
            if _check_again(store, path):
                moved.append(_move_aside(store, path))
            continue
        with writing(path):
            lease = acquire(path)
        if lease is None:
            busy = f"{path} is damaged, but a process is at work on it; repair it when that has ended"
            found.unreadable.append((path, busy))
            continue
        try:
            with lease.keep() as held:
                if held and _check_again(store, path):
                    moved.append(_move_aside(store, path))
                    (Path(moved[-1]) / lease.path.name).unlink()
        finally:
            lease.release()
    return moved


def _check_again(store: Store, path: Path) -> bool:
    """Whether the run or measurement in `path` is there and damaged still."""
    again = Findings()
    if path.parent == store.root / "runs":
        if store.finished(path.name):  # not one that was moved meanwhile and is under way anew
            check_run(store, path.name, again)
    elif path.exists():  # not in the folder of a run that has been moved
        check_measurement(path, path.parent.parent.name if path.parent.parent != store.root else None, again)
    return path in [where for where, _ in again.damaged]


def _move_aside(store: Store, path: Path) -> str:
    aside = store.root / ASIDE
    own = path.name if path.is_dir() or path.parent.parent == store.root else f"{path.parent.parent.name}.{path.name}"
    target, number = aside / own, 0
    with writing(target):
        aside.mkdir(exist_ok=True)
        while target.exists():
            number += 1
            target = aside / f"{own}.{number}"
        path.rename(target)
        sync_folder(path.parent)
    return str(target)
