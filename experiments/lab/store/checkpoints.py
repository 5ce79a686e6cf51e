"""Checkpoints on disk: one safetensors file each, with its own digest, the last two kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from experiments.lab.store.checksums import LIGHT, PUBLISHED
from experiments.lab.store.files import REPAIR, StoreError, write_atomic
from experiments.lab.store.records import Store
from experiments.lab.store.underway import checkpoint_numbers
from experiments.lab.training.state import Checkpoint, Pass, Snapshot, Tensors

PARTS = ("current", "above", "below")


def digest(tensors: Tensors, text: str = "") -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors` in name order, and `text`."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def pack_tensors(tensors: Tensors, text: str = "") -> bytes:
    """The content of a file of `tensors` with their digest."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"sha256": digest(contiguous, text)}  # alone, because safetensors writes several in random order
    return save(contiguous, metadata=metadata | ({"text": text} if text else {}))


def save_tensors(path: Path, tensors: Tensors, text: str = "") -> str:
    """Write `tensors` atomically with their digest; returns the SHA-256 of the file."""
    content = pack_tensors(tensors, text)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def load_tensors(path: Path) -> tuple[Tensors, str] | None:
    """The tensors and text of a file, or None where it is missing, truncated or altered."""
    try:
        content = path.read_bytes()  # not `safe_open`, which maps the file: some shared folders cannot do that
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except (OSError, SafetensorError, ValueError, RuntimeError, AttributeError, KeyError):  # of a type torch lacks
        return None
    text = metadata.get("text", "")
    return (tensors, text) if digest(tensors, text) == metadata.get("sha256") else None


def whole(folder: Path, name: str, summary: Mapping[str, Any]) -> bool:
    """Whether a file of tensors is the one that a summary of schema 1 stands for."""
    loaded = load_tensors(folder / name)
    return loaded is not None and digest(*loaded) == summary["files"].get(name)


def final_weights(store: Store, run_id: str) -> Tensors:
    """The weights that a finished run ended with; raises `StoreError` where they are missing, altered or not finished."""
    name, summary = "final.safetensors", store.summary(run_id)
    if summary is None:
        raise StoreError(f"run {run_id} is not finished; run its study first")
    if summary.get(PUBLISHED):
        raise StoreError(f"run {run_id} is a published record, which has no weights; train it in another store")
    if summary.get(LIGHT) is True:
        raise StoreError(f"run {run_id} was imported without its weights; run its study again into another store")
    content = store.recorded(run_id, name)
    if content is None or (summary.get("schema", 1) == 1 and not whole(store.folder(run_id), name, summary)):
        raise StoreError(f"{store.folder(run_id)}/{name} is missing or altered; {REPAIR}")
    return load(content)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, history_sha256: str) -> None:
    """Write the next checkpoint and drop all but the last two, so that a torn one never stands alone.

    It holds the digest of the `history_bytes` that belong to it, so that no damaged history is continued.
    """
    tensors: Tensors = {}
    steps: dict[str, int] = {}
    for part in PARTS:
        snapshot: Snapshot | None = getattr(checkpoint, part)
        if snapshot is not None:
            steps[part] = snapshot.step
            tensors |= {f"{part}.{name}": value for name, value in snapshot.tensors.items()}
    text = json.dumps({
        "steps": steps,
        "passes": [asdict(p) for p in checkpoint.passes],
        "history_bytes": checkpoint.history_bytes,
        "history_sha256": history_sha256,
        "run_id": folder.name,
    })
    existing = checkpoint_numbers(folder)
    save_tensors(folder / f"checkpoint.{existing[-1] + 1 if existing else 0}.safetensors", tensors, text)
    for number in existing[:-1]:
        (folder / f"checkpoint.{number}.safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: Path, newest: int | None = None) -> Checkpoint | None:
    """The newest checkpoint (of step `newest` at most) that reads back whole, with its history before it, or None.

    Those after it are removed: damaged, or behind what the run goes on from, one would be kept in a whole one's place.
    """
    path = folder / "history.jsonl"
    history = path.read_bytes() if path.exists() else b""
    for number in reversed(checkpoint_numbers(folder)):
        loaded = load_tensors(folder / f"checkpoint.{number}.safetensors")
        checkpoint = None if loaded is None else _checkpoint(*loaded, folder.name, history)
        if checkpoint is not None and (newest is None or checkpoint.current.step <= newest):
            for later in [later for later in checkpoint_numbers(folder) if later > number]:
                (folder / f"checkpoint.{later}.safetensors").unlink(missing_ok=True)
            return checkpoint
    return None


def _checkpoint(tensors: Tensors, text: str, run_id: str, history: bytes) -> Checkpoint | None:
    """What a file of tensors says, None where it is of another run or the history before it is not the one it knows."""
    try:
        facts = json.loads(text)
        length = facts["history_bytes"]
        known = hashlib.sha256(history[:length]).hexdigest()
        if facts.get("run_id", run_id) != run_id or len(history) < length or facts.get("history_sha256", known) != known:
            return None
        current = _part("current", facts["steps"], tensors)
        passes = tuple(Pass(**p) for p in facts["passes"])
        above, below = (_part(part, facts["steps"], tensors) for part in ("above", "below"))
        return None if current is None else Checkpoint(current, above, below, passes, length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # nobody here wrote it
        return None


def clear_checkpoints(folder: Path) -> None:
    for number in checkpoint_numbers(folder):
        (folder / f"checkpoint.{number}.safetensors").unlink(missing_ok=True)


def _part(part: str, steps: dict[str, int], tensors: Tensors) -> Snapshot | None:
    if part not in steps:
        return None
    prefix = f"{part}."
    return Snapshot(steps[part], {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
