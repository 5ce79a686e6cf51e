"""Data sets: the embedded one, those downloaded on first use, and any folder in CIFAR's binary layout.

Cheap to import: numpy and the loaders come with the first `load`.
"""

from __future__ import annotations

import os
from pathlib import Path

from .base import DataError, Dataset, Split

__all__ = ["NAMES", "DataError", "Dataset", "Split", "available", "identity", "load"]

NAMES: tuple[str, ...] = (
    "fashion-mini", "fashion-mnist", "mnist", "cifar10", "cifar100", "cifar10-jpeg", "noisy-quadratic"
)  # fmt: skip
FOLDER_PREFIX = "cifar-bin:"


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """The data set `name`: one of NAMES, or "cifar-bin:FOLDER" for a folder in CIFAR's binary layout.

    data_dir: where files lie and are downloaded to; default $BATCHLAB_DATA_DIR, else ~/.cache/batchlab.
    DataError when the name is unknown or a file is missing, damaged, altered or mislabelled.
    """
    _check_name(name)
    if name.startswith(FOLDER_PREFIX):
        from .cifar import load_folder

        return load_folder(name, _folder(name))
    if name == "fashion-mini":
        from .embedded import load_fashion_mini

        return load_fashion_mini()
    if name == "noisy-quadratic":
        from .quadratic import load_noisy_quadratic

        return load_noisy_quadratic()
    root = _root(data_dir)
    if name in ("fashion-mnist", "mnist"):
        from . import mnist

        return mnist.load_idx(mnist.FASHION_MNIST if name == "fashion-mnist" else mnist.MNIST, root / name)
    if name == "cifar10-jpeg":
        from .cifar import JPEG_COPY, load_pinned_folder

        return load_pinned_folder(JPEG_COPY, root)
    from . import cifar_archive

    return cifar_archive.load_archive(
        cifar_archive.CIFAR10 if name == "cifar10" else cifar_archive.CIFAR100, root
    )


def identity(name: str, data_dir: Path | None = None) -> str | None:
    """What must join the name in a run's identity: None for NAMES, whose content is pinned.

    For "cifar-bin:FOLDER" the SHA-256 of the content, so that a moved folder is the same data and an edited
    one is not. DataError as `load`.
    """
    _check_name(name)
    if not name.startswith(FOLDER_PREFIX):
        return None
    from .cifar import folder_sha256

    return folder_sha256(_folder(name))


def available(name: str, data_dir: Path | None = None) -> bool:
    """Whether `load` finds the files without a download, by name only; DataError when `name` is unknown."""
    _check_name(name)
    if name in ("fashion-mini", "noisy-quadratic"):
        return True
    if name.startswith(FOLDER_PREFIX):
        from .cifar import folder_files

        try:
            return bool(folder_files(_folder(name)))
        except DataError:
            return False
    root = _root(data_dir)
    if name in ("fashion-mnist", "mnist"):
        from .mnist import MNIST

        return all((root / name / file).is_file() for file, _ in MNIST.files)
    if name == "cifar10-jpeg":
        from .cifar import JPEG_COPY, pinned_folder

        try:
            return bool(pinned_folder(JPEG_COPY, root))
        except DataError:
            return False
    from . import cifar_archive

    spec = cifar_archive.CIFAR10 if name == "cifar10" else cifar_archive.CIFAR100
    return (root / spec.file).is_file()


def _root(data_dir: Path | None) -> Path:
    """The only place where the environment variable is read."""
    return _expanded(data_dir or os.environ.get("BATCHLAB_DATA_DIR") or "~/.cache/batchlab")


def _folder(name: str) -> Path:
    return _expanded(name.removeprefix(FOLDER_PREFIX))


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{path} is not found, expected a home folder for it ({error}); name a folder with --data-dir or BATCHLAB_DATA_DIR."
        ) from error


def _check_name(name: str) -> None:
    if name not in NAMES and not (name.startswith(FOLDER_PREFIX) and len(name) > len(FOLDER_PREFIX)):
        raise DataError(
            f"there is no data set {name!r}, expected one of {', '.join(NAMES)} or {FOLDER_PREFIX}FOLDER; "
            "correct the name."
        )
