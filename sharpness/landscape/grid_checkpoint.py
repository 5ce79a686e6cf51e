"""The points of a grid in a file, kept as they are finished, so that a killed measurement goes on where it was.

The file has two lines: what it is and the hash of the second one, then in JSON a hash of everything that decides the values, the
loss of the first batch, and the points so far. It is rewritten whole and renamed into place. A damaged file is as good as absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharpness.landscape.weight_mover import WeightMover
from sharpness.problem.arguments import shown
from sharpness.problem.evaluate import evaluate
from sharpness.problem.parameters import Weights
from sharpness.problem.problem import Problem, Vector
from sharpness.problem.progress import SILENT, Meter

_MAGIC = "sharpness-grid-2"
Point = tuple[float, float]


def measure_points(
    mover: WeightMover,
    where: Sequence[tuple[float, ...]],
    weights: Callable[[tuple[float, ...]], Vector],
    parts: Sequence[Any],
    checkpoint: str | os.PathLike[str] | None,
    meter: Meter = SILENT,
) -> tuple[Vector, Vector, int]:
    """Losses and accuracies [m] at the coordinates `where`, in order, and how many were read from
    `checkpoint`.

    `weights` gives w at a coordinate, the first entry of which is also the fraction between the mover's ends;
    `parts` decide the values together with the model, loss and data. Raises ValueError for a file of
    something else, OSError where it cannot be written.
    """
    if not (checkpoint is None or isinstance(checkpoint, (str, os.PathLike))):
        raise ValueError(f"checkpoint is {shown(checkpoint)}: it must be the path of a file, or None")
    problem = mover.problem
    done: list[Point] = []
    name, probe = "", float("nan")
    with problem.untouched(), problem.movable():
        if checkpoint is not None:
            name = _fingerprint(mover, [*parts, list(where)])
            probe = _probe(mover, weights(where[0]), where[0][0])
            done = _read(Path(checkpoint), name, probe, float(np.finfo(problem.dtype).eps))
            _write(Path(checkpoint), name, probe, done)  # says now, not in an hour, that it cannot be written
        resumed = len(done)
        for _ in done:
            meter.tick()
        for at in where[resumed:]:
            mover.move(weights(at), at[0])
            done.append(evaluate(problem))
            if checkpoint is not None:
                _write(Path(checkpoint), name, probe, done)
            meter.tick()
    found = np.array(done)
    return found[:, 0].copy(), found[:, 1].copy(), resumed


def _probe(mover: WeightMover, w: Vector, fraction: float) -> float:
    """The loss of the first batch at the first point: what no hash can see, the code of model and loss."""
    mover.move(w, fraction)
    with mover.problem.without_gradients():
        return mover.problem.on_first(lambda inputs, targets: float(mover.problem.batch_loss(inputs, targets)))


def _read(path: Path, name: str, probe: float, eps: float) -> list[Point]:
    """The points of this grid that the file holds, in order."""
    if not path.exists():
        return []
    text = path.read_bytes().decode("ascii", errors="replace")
    if not text.startswith(_MAGIC) and not _MAGIC.startswith(text):
        raise ValueError(f"checkpoint {path} is not a file of grid points: pass another path")
    head, _, body = text.partition("\n")
    if head != _head(body):
        return []  # damaged
    grid, first, points = json.loads(body)
    if grid != name:
        raise ValueError(
            f"checkpoint {path} holds points of another grid (other weights, directions, points, modes, "
            "loss or data): pass another path, or delete it"
        )
    if not np.isclose(first, probe, rtol=1e4 * eps, atol=0, equal_nan=True):
        raise ValueError(
            f"checkpoint {path} was made where the loss of the first batch was {first:.6g} and it is {probe:.6g} now "
            "(another model, loss or hook under the same name): pass another path"
        )
    return [(loss, accuracy) for loss, accuracy in points]


def _write(path: Path, name: str, probe: float, points: Sequence[Point]) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint {path} is in a folder that does not exist: create it")
    body = json.dumps([name, probe, points]) + "\n"
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{_head(body)}\n{body}")
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as error:  # of a file system that cannot be waited for it says nothing
                if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                    raise
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _head(body: str) -> str:
    return f"{_MAGIC} {hashlib.sha256(body.encode()).hexdigest()}"


def _fingerprint(mover: WeightMover, parts: Sequence[Any]) -> str:
    """SHA-256 of all that decides the values and can be hashed; inside `untouched`."""
    problem, sha = mover.problem, hashlib.sha256()
    facts = [problem.mode, problem.seed, mover.bn_mode, _name(problem.criterion), _name(mover.hook), problem.names]
    _digest(sha, [_MAGIC, type(problem.model).__qualname__, *facts, *parts])
    _digest(sha, [[name, b] for name, b in problem.model.named_buffers() if not mover.replaces(name)])
    _digest(sha, [] if mover.ends is None else [_buffers(problem.model, end) for end in mover.ends])
    _digest(sha, _batches(problem))
    if mover.calibration is not None:
        _digest(sha, _batches(mover.calibration))
    return sha.hexdigest()


def _buffers(model: nn.Module, end: Weights) -> dict[str, Tensor]:
    """The parameters of an end are among the parts already."""
    return {name: end[name] for name, _ in model.named_buffers() if name in end}


def _batches(problem: Problem) -> list[str]:
    """A digest per batch: the data are never all in memory."""
    found = []
    for inputs, targets, _ in problem.passes():
        sha = hashlib.sha256()
        _digest(sha, [inputs, targets])
        found.append(sha.hexdigest())
    return found


def _name(function: Any) -> str:
    if isinstance(function, nn.Module) or not hasattr(function, "__qualname__"):
        return type(function).__qualname__
    return str(function.__qualname__)


def _digest(sha: Any, value: Any) -> None:
    """Values and types, nested; of what is neither plain nor an array, the type's name only."""
    sha.update(f"{type(value).__name__}:".encode())
    if isinstance(value, Tensor):
        sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        sha.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _digest(sha, [str(key), value[key]])
    elif isinstance(value, (list, tuple)):
        sha.update(f"{len(value)}".encode())
        for part in value:
            _digest(sha, part)
    elif isinstance(value, (str, int, float, bool, type(None))):
        sha.update(repr(value).encode() + b";")
