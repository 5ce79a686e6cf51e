"""Data sets: the embedded ones, those downloaded on first use, and a user's own (`own`, `formats`).

Cheap to import: numpy and the loaders come with the first `load`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from experiments.lab.declare.own_code import DATA_FORMATS, is_own_data

from .base import DataError, Dataset, Kind, Split

__all__ = ["IN_FILE_ORDER", "NAMES", "DataError", "Dataset", "Kind", "Split", "available", "candidates", "identity", "load"]

NAMES: tuple[str, ...] = ("fashion-mini", "fashion-mnist", "mnist", "cifar10", "cifar100", "cifar10-jpeg", "noisy-quadratic",
                          "austen", "teacher")
IN_FILE_ORDER = frozenset({"fashion-mini", "cifar10-jpeg", "noisy-quadratic"})
"""data sets whose subsets are the first examples as they lie, because published results were made so; each is in an order
without meaning (`cifar10-jpeg` once its test file is shuffled). Of all others subsets are random: see `RunConfig.train_draw`."""
OWN_FORMS = "your own as MODULE:FUNCTION, npz:FILE, images:FOLDER, idx:FOLDER, cifar-bin:FOLDER or text:FILE"


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """The data set `name`: one of NAMES, FORMAT:PATH of a file or folder of the user's, or MODULE:FUNCTION that gives arrays.

    data_dir: where files lie and are downloaded to; default $BATCHLAB_DATA_DIR, else ~/.cache/batchlab.
    DataError when the name is unknown or a file is missing, damaged, altered or mislabelled.
    """
    _check_name(name)
    if name == "fashion-mini":
        from .embedded import load_fashion_mini

        return load_fashion_mini()
    if name == "noisy-quadratic":
        from .quadratic import load_noisy_quadratic

        return load_noisy_quadratic()
    if name == "teacher":
        from .teacher import load_teacher

        return load_teacher()
    if name == "austen":
        from .austen_text import load_austen

        return load_austen()
    if is_own_data(name):
        from .formats import READERS, load_function

        form = name.partition(":")[0]
        return READERS[form](name, _folder(name, data_dir)) if form in DATA_FORMATS else load_function(name)
    root = _root(data_dir)
    if name in ("fashion-mnist", "mnist"):
        from . import mnist

        spec = mnist.FASHION_MNIST if name == "fashion-mnist" else mnist.MNIST
        return mnist.load_idx(spec, mnist.idx_folder(spec, root))
    if name == "cifar10-jpeg":
        from .cifar import JPEG_COPY, load_pinned_folder

        return load_pinned_folder(JPEG_COPY, root)
    from . import cifar_archive

    return cifar_archive.load_archive(cifar_archive.CIFAR10 if name == "cifar10" else cifar_archive.CIFAR100, root)


def identity(name: str, data_dir: Path | None = None) -> str | None:
    """What must join the name in a run's identity: None for NAMES, whose content is pinned.

    Of a user's own data the SHA-256 of the content, so that moved files are the same data and edited ones are not. DataError as
    `load`.
    """
    _check_name(name)
    if not is_own_data(name):
        return None
    if not in_files(name):
        return load(name, data_dir).sha256
    from .formats import unchanged_sha256

    return unchanged_sha256(name, _folder(name, data_dir))


def in_files(name: str) -> bool:
    """Whether `name` is FORMAT:PATH, a file or folder of the user's."""
    return name.partition(":")[0] in DATA_FORMATS


def available(name: str, data_dir: Path | None = None) -> bool:
    """Whether `load` finds the files without a download, by name only; DataError when `name` is unknown."""
    _check_name(name)
    if name in ("fashion-mini", "noisy-quadratic", "austen", "teacher"):
        return True
    if is_own_data(name):
        try:
            if name.startswith("cifar-bin:"):
                from .cifar import folder_files

                return bool(folder_files(_folder(name, data_dir)))
            return not in_files(name) or _folder(name, data_dir).exists()
        except DataError:
            return False
    root = _root(data_dir)
    if name in ("fashion-mnist", "mnist"):
        from . import mnist

        spec = mnist.FASHION_MNIST if name == "fashion-mnist" else mnist.MNIST
        return all((mnist.idx_folder(spec, root) / file).is_file() for file, _ in spec.files)
    if name == "cifar10-jpeg":
        from .cifar import JPEG_COPY, pinned_places

        try:
            return bool(pinned_places(JPEG_COPY, root))
        except DataError:
            return False
    from . import cifar_archive

    spec = cifar_archive.CIFAR10 if name == "cifar10" else cifar_archive.CIFAR100
    archived = any((root / file).is_file() for file in (spec.file, spec.python_file))
    return archived or bool(cifar_archive.archive_places(spec, root))


def candidates(name: str, data_dir: Path | None = None) -> list[Path]:
    """Places in which the data "FORMAT:PATH" may lie now, the likeliest first: PATH as it is named from here; the data folder
    itself, PATH in it, and all else in it."""
    found = _named(name, data_dir)[:1]
    with contextlib.suppress(DataError, OSError):
        root = _root(data_dir)
        found += [root, *_named(name, data_dir)[1:], *sorted(root.iterdir())]
    return list(dict.fromkeys(Path(os.path.abspath(path)) for path in found))


def _root(data_dir: Path | None) -> Path:
    """The only place where the environment variable is read."""
    if data_dir is not None:
        return _expanded(Path(data_dir))
    return _expanded(Path(os.environ.get("BATCHLAB_DATA_DIR") or "~/.cache/batchlab"))


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise DataError(
            f"{path} begins with a home folder, and this user has none; name another with --data-dir or BATCHLAB_DATA_DIR."
        ) from None


def _named(name: str, data_dir: Path | None) -> list[Path]:
    """The file or folder of "FORMAT:PATH" as it is named from here, and as it is named from the data folder."""
    folder = _expanded(Path(name.partition(":")[2]))
    try:
        root = _root(data_dir)
    except DataError:  # a user without a home
        return [folder]
    return [folder, root / folder, root / folder.name]


def _folder(name: str, data_dir: Path | None) -> Path:
    """The first of these that exists; if none does, as it is named from here."""
    places = _named(name, data_dir)
    return next((place for place in places if place.exists()), places[0])


def _check_name(name: str) -> None:
    if name not in NAMES and not is_own_data(name):
        raise DataError(f"there is no data set {name!r}, expected one of {', '.join(NAMES)}; or {OWN_FORMS}; correct the name.")
