"""images:FOLDER: PNG, JPEG and BMP files in a folder per class, below train/, test/ and perhaps validation/, or all together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .base import DataError, Dataset
from .memory import COPIES, check_memory
from .own import NAMES, assembled

FILE_FORMATS = ("PNG", "JPEG", "BMP")
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}
"""how the pixels of a file are read: in grey or in colour"""


def load_images(name: str, folder: Path) -> Dataset:
    """Classes are the folders' names in alphabetical order. Names that begin with a dot are passed over.

    Without train/ and test/ every fifth image of a random order, always the same, is a test image. DataError where a folder is
    empty, a file is no image, or one differs from the others in size or colours.
    """
    parts = _folders(folder)
    if not {"train", "test"} & parts.keys():
        return assembled(name, _read(folder, list(parts)))
    if odd := [part for part in parts if part not in NAMES]:
        raise DataError(f"{folder} has {odd[0]} beside train and test; keep train, test and perhaps validation alone.")
    if missing := [part for part in ("train", "test") if part not in parts]:
        raise DataError(f"{folder} has no folder {missing[0]}; it needs train and test, or a folder per class.")
    classes = list(_folders(parts["train"]))
    return assembled(name, {part: _read(parts[part], classes) for part in NAMES if part in parts})


def _folders(folder: Path) -> dict[str, Path]:
    """By name, in alphabetical order."""
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); name a folder of images.") from error
    if files := [path for path in found if not path.is_dir()]:
        raise DataError(f"{files[0]} is in no class's folder; put it into one, or take it away.")
    if not found:
        raise DataError(f"{folder} is empty; it needs a folder per class.")
    return {path.name: path for path in found}


def _read(folder: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W] or [N, H, W, 3], and the number of each one's class."""
    folders = _folders(folder)
    if len(classes) < 2:
        raise DataError(f"{folder} has one class, {classes[0]}; it needs a folder for each of at least two.")
    if unknown := [name for name in folders if name not in classes]:
        raise DataError(f"{folders[unknown[0]]} is a class without training images; add some, or take it away.")
    files, labels = [], []
    for name, place in folders.items():
        inside = sorted(path for path in place.iterdir() if not path.name.startswith("."))
        if not inside:
            raise DataError(f"{place} is empty; put images of the class into it, or take it away.")
        files += inside
        labels += [classes.index(name)] * len(inside)
    first = _pixels(files[0])
    check_memory(folder, COPIES["u"] * len(files) * first.size)
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, path in enumerate(files):
        pixels = _pixels(path)
        if pixels.shape != first.shape:
            raise DataError(f"{path} is {_said(pixels)}, but {files[0].name} is {_said(first)}; make all images alike.")
        images[i] = pixels
    return images, np.array(labels, np.int64)


def _said(pixels: np.ndarray) -> str:
    """As in "32 x 24 pixels in grey"."""
    return f"{pixels.shape[1]} x {pixels.shape[0]} pixels in {'grey' if pixels.ndim == 2 else 'colour'}"


def _pixels(path: Path) -> np.ndarray:
    Image = _pillow()
    try:
        with Image.open(path, formats=FILE_FORMATS) as file:
            if file.mode not in MODES:
                raise DataError(f"{path} has pixels of mode {file.mode}; save it in grey or RGB with 8 bits per channel.")
            return np.asarray(file.convert(MODES[file.mode]))
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a PNG, JPEG or BMP image ({' '.join(str(error).split())}); replace it, or "
                        "take it away.") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DataError("images are read with the package pillow, which is missing; pip install 'batchlab[data]'.") from None
    return Image
