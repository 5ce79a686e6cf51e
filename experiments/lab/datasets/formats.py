"""A user's own data in files, FORMAT:PATH, and their function, MODULE:FUNCTION: which reader is for which."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from .base import DataError, Dataset
from .cifar import load_folder
from .idx_folder import load_idx_folder
from .image_folder import load_images
from .own import load_given, load_npz
from .text import load_text

READERS: Mapping[str, Callable[[str, Path], Dataset]] = {
    "npz": load_npz, "images": load_images, "idx": load_idx_folder, "cifar-bin": load_folder, "text": load_text,
}
"""format -> f(name, path)"""


def load_function(name: str) -> Dataset:
    """What MODULE:FUNCTION gives; DataError where it cannot be imported, fails or gives no task."""
    from sharpness.problem.named import named  # brings torch, which no plan of files needs

    try:
        return load_given(name, named(name, "--data"))
    except ValueError as error:
        raise DataError(str(error)) from error


def unchanged_sha256(name: str, place: Path) -> str:
    """Of what the data `name` would be at `place`, remembered while no file's size or time changes: a worker asks before each
    run. DataError as its reader."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    if not place.exists():
        return READERS[name.partition(":")[0]](name, place).sha256  # its own sentence
    facts = [(str(path), path.stat()) for path in files]
    known = tuple((where, fact.st_size, fact.st_mtime_ns, fact.st_ino) for where, fact in facts)
    return _remembered(name.partition(":")[0], place, known)


@functools.lru_cache(maxsize=16)
def _remembered(form: str, place: Path, facts: tuple[tuple[str | int, ...], ...]) -> str:
    return READERS[form](f"{form}:{place}", place).sha256
