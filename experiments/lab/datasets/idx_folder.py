"""idx:FOLDER: four IDX files under the names of MNIST's, plain or gzipped, with images of any size."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from . import idx
from .base import DataError, Dataset
from .compressed import read_exactly
from .memory import COPIES, check_memory
from .own import assembled

FILES = {split: (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte") for split in ("train", "t10k")}


def load_idx_folder(name: str, folder: Path) -> Dataset:
    """DataError where a file is missing, damaged, or of other numbers than bytes."""
    train, test = (tuple(_read(folder, file) for file in pair) for pair in FILES.values())
    return assembled(name, {"train": train, "test": test})


def _read(folder: Path, file: str) -> np.ndarray:
    """uint8 images [N, H, W], or labels [N]."""
    places = [folder / file, folder / f"{file}.gz"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(f"{places[0]} is missing; it may be gzipped, as {places[1].name}.")
    zipped, axes, remedy = path.suffix == ".gz", 3 if "idx3" in file else 1, "copy the original there"
    try:
        with (gzip.open if zipped else open)(path, "rb") as stream:
            header = stream.read(4 + 4 * axes)
        shape = idx.shape_of(header, axes)
        size = len(header) + math.prod(shape or ())
        if shape is None or not (zipped or path.stat().st_size == size):
            raise DataError(f"{path} is not an IDX file of unsigned bytes with {axes} axes; {remedy}.")
        check_memory(path, COPIES["u"] * size)
        content = read_exactly(path, size, "gz", remedy) if zipped else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); {remedy}.") from error
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()
