"""Checkpoints on disk: one safetensors file each, with its own digest, the last two kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from experiments.lab.store import write_atomic
from experiments.lab.training.budget import Pass
from experiments.lab.training.state import Checkpoint, Snapshot, Tensors

PARTS = ("current", "above", "below")


def digest(tensors: Tensors, text: str = "") -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors` in name order, and `text`."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def save_tensors(path: Path, tensors: Tensors, text: str = "") -> str:
    """Write `tensors` atomically with their digest; returns the digest."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    sha = digest(contiguous, text)
    write_atomic(path, save(contiguous, metadata={"sha256": sha, "text": text}))
    return sha


def load_tensors(path: Path) -> tuple[Tensors, str] | None:
    """The tensors and text of a file, or None where it is missing, truncated or altered."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return None
    text = metadata.get("text", "")
    return (tensors, text) if digest(tensors, text) == metadata.get("sha256") else None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the next checkpoint and drop all but the last two, so that a torn one never stands alone."""
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
    })  # fmt: skip
    existing = _numbers(folder)
    save_tensors(folder / f"checkpoint.{existing[-1] + 1 if existing else 0}.safetensors", tensors, text)
    for number in existing[:-1]:
        (folder / f"checkpoint.{number}.safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: Path, newest: int | None = None) -> Checkpoint | None:
    """The newest checkpoint (of step `newest` at most) that reads back whole, or None."""
    for number in reversed(_numbers(folder)):
        loaded = load_tensors(folder / f"checkpoint.{number}.safetensors")
        if loaded is None:
            continue
        tensors, text = loaded
        facts = json.loads(text)
        parts = {part: _part(part, facts["steps"], tensors) for part in PARTS}
        assert parts["current"] is not None
        if newest is not None and parts["current"].step > newest:
            continue
        return Checkpoint(
            current=parts["current"],
            above=parts["above"],
            below=parts["below"],
            passes=tuple(Pass(**p) for p in facts["passes"]),
            history_bytes=facts["history_bytes"],
        )
    return None


def clear_checkpoints(folder: Path) -> None:
    for number in _numbers(folder):
        (folder / f"checkpoint.{number}.safetensors").unlink(missing_ok=True)


def _part(part: str, steps: dict[str, int], tensors: Tensors) -> Snapshot | None:
    if part not in steps:
        return None
    prefix = f"{part}."
    return Snapshot(steps[part], {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.name.split(".")[1]) for path in folder.glob("checkpoint.*.safetensors"))
