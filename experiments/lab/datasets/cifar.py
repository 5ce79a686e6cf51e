"""CIFAR's binary layout: records of one label byte (CIFAR-100: two) and 3,072 pixel bytes, channel-major.

The Python layout, pickles of the same names without `.bin`, is read into the same records; see `pickled`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .base import DataError, Dataset, Split
from .pickled import MOST_BYTES, PIXELS, read_pickle

SHAPE = (3, 32, 32)
STATISTICS_CHUNK = 4096


@dataclass(frozen=True)
class Layout:
    """label_classes: how many values each label byte may take; the last byte is the label that is learned."""

    label_classes: tuple[int, ...]

    @property
    def classes(self) -> int:
        return self.label_classes[-1]

    @property
    def record_size(self) -> int:
        """Bytes of one record."""
        return len(self.label_classes) + PIXELS


CIFAR10_LAYOUT = Layout((10,))
CIFAR100_LAYOUT = Layout((20, 100))  # coarse, fine
OWN_LAYOUTS = (Layout((256,)), Layout((256, 256)))
"""of a user's own folder, whose labels may be any byte"""
REMEDY = "write it again in CIFAR's binary or Python layout"


@dataclass(frozen=True)
class FolderFiles:
    """The files of one folder in one of CIFAR's layouts, training files in order."""

    layout: Layout
    train: tuple[Path, ...]
    test: Path
    pickled: bool = False
    """in the Python layout"""

    def read(self, remedy: str = REMEDY) -> list[bytes]:
        """The records of each file, the test file last."""
        return [read_records(path, self.layout, remedy, pickled=self.pickled) for path in (*self.train, self.test)]


@dataclass(frozen=True)
class PinnedFolder:
    """A known copy of CIFAR-10 as loose files; sha256 is of their concatenation, the test file last.

    Test examples are read in a fixed random order: the files hold them class by class, and learning curves look at the first
    2,000.
    """

    name: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_files: tuple[str, ...] = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    test_file: str = "test_batch.bin"
    records_per_file: int = 10_000


FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
"""below the data folder, as the archives of CIFAR-10 unpack"""
JPEG_COPY = PinnedFolder(
    name="cifar10-jpeg",
    sha256="f9ee3e880e33d456f04c660ed3e5cdfdd073c6314d49ade3e66545693d0e6231",
    mean=(0.4913, 0.4821, 0.4465),
    std=(0.2452, 0.2428, 0.2606),
)


def decode_records(contents: Sequence[bytes], layout: Layout, paths: Sequence[Path], remedy: str) -> Split:
    """Images [N, 3, 32, 32] and labels of files of whole records, in order.

    DataError when a file is not whole records or holds a label out of range.
    """
    images, labels = [], []
    for content, path in zip(contents, paths, strict=True):
        if not content or len(content) % layout.record_size:
            raise DataError(f"{path} has {len(content)} bytes, expected whole records of {layout.record_size}; {remedy}.")
        records = np.frombuffer(content, np.uint8).reshape(-1, layout.record_size)
        for column, classes in enumerate(layout.label_classes):
            largest = records[:, column].max()
            if largest >= classes:
                raise DataError(f"{path} holds the label {largest}, expected 0 to {classes - 1}; {remedy}.")
        labels.append(records[:, len(layout.label_classes) - 1].astype(np.int64))
        images.append(records[:, len(layout.label_classes) :].reshape(-1, *SHAPE))
    return Split(np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels))


def shuffled(split: Split) -> Split:
    """The same examples in an order that is always the same."""
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(split.targets))
    return Split(split.inputs[order], split.targets[order])


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], in units where a pixel is 0..1."""
    sums = np.zeros((2, images.shape[1]), np.int64)  # integers: exact, however the images are split into chunks
    for start in range(0, len(images), STATISTICS_CHUNK):
        chunk = images[start : start + STATISTICS_CHUNK].astype(np.int64)
        sums += np.stack([chunk.sum(axis=(0, 2, 3)), np.square(chunk).sum(axis=(0, 2, 3))])
    n = images[:, 0].size
    mean = tuple(total / n / 255 for total in sums[0].tolist())
    # Python's integers: of a constant channel the difference is 0, not what rounding leaves
    std = tuple(math.sqrt((n * squares - total**2) / n**2) / 255 for total, squares in sums.T.tolist())
    return mean, std


def folder_files(folder: Path) -> FolderFiles:
    """The data files of `folder`; DataError unless it holds exactly one of the layouts."""
    remedy = ("name a folder with data_batch_1.bin ... and test_batch.bin, or with train.bin and test.bin, or with the same "
              "names without .bin in CIFAR's Python layout")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder in CIFAR's binary or Python layout; {remedy}.")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    found = []
    for suffix in (".bin", ""):
        numbers = {name: re.fullmatch(rf"data_batch_(\d+){re.escape(suffix)}", name) for name in names}
        batches = tuple(folder / name for _, name in sorted((int(match[1]), name) for name, match in numbers.items() if match))
        if batches and f"test_batch{suffix}" in names:
            found.append(FolderFiles(OWN_LAYOUTS[0], batches, folder / f"test_batch{suffix}", not suffix))
        if {f"train{suffix}", f"test{suffix}"} <= names:
            found.append(FolderFiles(OWN_LAYOUTS[1], (folder / f"train{suffix}",), folder / f"test{suffix}", not suffix))
    if len(found) != 1:
        state = f"both {found[0].test.name} and {found[1].test.name}" if found else "neither of CIFAR's layouts"
        raise DataError(f"{folder} holds {state}, expected one layout; {remedy}.")
    return found[0]


def load_folder(name: str, folder: Path) -> Dataset:
    """Any folder in one of CIFAR's layouts: mean and std computed from its training files, classes from all its labels.

    A channel that is the same everywhere is divided by 1. DataError when the folder is in no layout or a file is cut.
    """
    files = folder_files(folder)
    contents = files.read()
    train = decode_records(contents[:-1], files.layout, files.train, REMEDY)
    test = decode_records(contents[-1:], files.layout, [files.test], REMEDY)
    mean, std = channel_statistics(train.inputs)
    classes = max(2, 1 + int(max(train.targets.max(), test.targets.max())))
    scale = tuple(value or 1.0 for value in std)
    former = (CIFAR10_LAYOUT, CIFAR100_LAYOUT)[len(files.layout.label_classes) - 1].classes
    return Dataset(name, train, test, classes, mean, scale, _content_sha256(files.layout, contents), former)


def places(root: Path, folders: Sequence[str], train: Sequence[str], test: str, layout: Layout) -> list[FolderFiles]:
    """Where a known copy of CIFAR lies whole, in the binary layout or in Python's: below `root` in one of `folders`, or in it.

    train, test: names in the binary layout. By name only; OSError where a folder cannot be looked into.
    """
    found = []
    for suffix, folder in ((suffix, folder) for suffix in (".bin", "") for folder in (*(root / name for name in folders), root)):
        paths = [folder / f"{name.removesuffix('.bin')}{suffix}" for name in (*train, test)]
        if all(path.is_file() for path in paths):
            found.append(FolderFiles(layout, tuple(paths[:-1]), paths[-1], not suffix))
    return found


def pinned_places(spec: PinnedFolder, root: Path) -> list[FolderFiles]:
    """Where below `root` the files of `spec` may lie; DataError when one is missing in every place."""
    found = places(root, FOLDERS, spec.train_files, spec.test_file, CIFAR10_LAYOUT)
    if not found:
        raise DataError(
            f"{root / FOLDERS[0]} lacks a file of {spec.name}, expected {spec.train_files[0]} to {spec.train_files[-1]} and "
            f"{spec.test_file} there or in {root}, or the same in CIFAR's Python layout in {root / FOLDERS[1]}; "
            "copy them there, or point --data-dir or BATCHLAB_DATA_DIR at their folder."
        )
    return found


def load_pinned_folder(spec: PinnedFolder, root: Path) -> Dataset:
    """A pinned copy of CIFAR-10; DataError when a file is missing, cut, altered or mislabelled in every place."""
    refusals = []
    for files in pinned_places(spec, root):
        try:
            return _load_pinned(spec, files)
        except DataError as error:
            refusals.append(error)
    raise refusals[0]


def _load_pinned(spec: PinnedFolder, files: FolderFiles) -> Dataset:
    folder, paths = files.test.parent, (*files.train, files.test)
    remedy = f"copy {spec.name}'s files there again"
    expected = spec.records_per_file * CIFAR10_LAYOUT.record_size
    for path in paths:
        if not files.pickled and path.stat().st_size != expected:
            raise DataError(f"{path} has {path.stat().st_size} bytes, expected {expected}; {remedy}.")
    contents = files.read(remedy)
    digest = sha256_of(contents)
    if digest != spec.sha256:
        raise DataError(f"{folder} is not {spec.name}: its files have SHA-256 {digest}, "
                        f"expected {spec.sha256}; {remedy}, or name the data cifar-bin:{folder}.")
    return Dataset(name=spec.name, train=decode_records(contents[:-1], CIFAR10_LAYOUT, paths[:-1], remedy),
                   test=shuffled(decode_records(contents[-1:], CIFAR10_LAYOUT, paths[-1:], remedy)),
                   outputs=CIFAR10_LAYOUT.classes, mean=spec.mean, std=spec.std, sha256=digest)


def read_records(path: Path, layout: Layout, remedy: str, *, pickled: bool) -> bytes:
    """The content of a file in the binary layout, or the same made of one in the Python layout; DataError as `pickled` says."""
    try:
        if pickled and os.path.getsize(path) > MOST_BYTES:
            raise DataError(f"{path} has more than the {MOST_BYTES} bytes that a pickle may have; {remedy}.")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}), expected a readable file; check its permissions.") from error
    return read_pickle(path, content, len(layout.label_classes), remedy) if pickled else content


def _content_sha256(layout: Layout, contents: Sequence[bytes]) -> str:
    """Of training files and, last, the test file."""
    # Without the lengths, moving the boundary between training and test would keep the hash.
    lengths = f"{len(layout.label_classes)} {sum(map(len, contents[:-1]))} {len(contents[-1])}"
    return sha256_of([*contents, lengths.encode()])


def sha256_of(contents: Sequence[bytes]) -> str:
    """Of all `contents` as one."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()
