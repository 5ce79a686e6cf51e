"""CIFAR's binary layout: records of one label byte (CIFAR-100: two) and 3,072 pixel bytes, channel-major."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .base import DataError, Dataset, Split

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
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


@dataclass(frozen=True)
class FolderFiles:
    """The files of one folder in CIFAR's layout, training files in order."""

    layout: Layout
    train: tuple[Path, ...]
    test: Path


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
            raise DataError(
                f"{path} has {len(content)} bytes, expected whole records of {layout.record_size}; {remedy}."
            )
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
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(split.labels))
    return Split(split.images[order], split.labels[order])


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], in units where a pixel is 0..1."""
    totals = np.zeros(
        (2, images.shape[1]), np.int64
    )  # integers: exact, however the images are split into chunks
    for start in range(0, len(images), STATISTICS_CHUNK):
        chunk = images[start : start + STATISTICS_CHUNK].astype(np.int64)
        totals += np.stack([chunk.sum(axis=(0, 2, 3)), np.square(chunk).sum(axis=(0, 2, 3))])
    pixels = images[:, 0].size
    mean = totals[0] / pixels
    std = np.sqrt(np.maximum(totals[1] / pixels - mean**2, 0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def folder_files(folder: Path) -> FolderFiles:
    """The data files of `folder`; DataError unless it holds exactly one of the two layouts."""
    remedy = "name a folder with data_batch_1.bin ... and test_batch.bin, or with train.bin and test.bin"
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder in CIFAR's binary layout; {remedy}.")
    batches = {path: re.fullmatch(r"data_batch_(\d+)\.bin", path.name) for path in folder.iterdir()}
    numbered = sorted((int(match[1]), path) for path, match in batches.items() if match and path.is_file())
    ten = bool(numbered) and (folder / "test_batch.bin").is_file()
    hundred = (folder / "train.bin").is_file() and (folder / "test.bin").is_file()
    if ten == hundred:
        found = "both of CIFAR's binary layouts" if ten else "neither of CIFAR's binary layouts"
        raise DataError(f"{folder} holds {found}, expected one; {remedy}.")
    if ten:
        return FolderFiles(CIFAR10_LAYOUT, tuple(path for _, path in numbered), folder / "test_batch.bin")
    return FolderFiles(CIFAR100_LAYOUT, (folder / "train.bin",), folder / "test.bin")


def folder_sha256(folder: Path) -> str:
    """SHA-256 of what `load_folder` would read, however it is cut into files; DataError as there."""
    files = folder_files(folder)
    return _content_sha256(files, [_read(path) for path in files.train], _read(files.test))


def load_folder(name: str, folder: Path) -> Dataset:
    """Any folder in CIFAR's binary layout, mean and std computed from its training files.

    DataError when the folder is not in that layout, a file is cut, or a label is out of range.
    """
    files = folder_files(folder)
    train_contents, test_content = [_read(path) for path in files.train], _read(files.test)
    remedy = "write it again in CIFAR's binary layout"
    train = decode_records(train_contents, files.layout, files.train, remedy)
    test = decode_records([test_content], files.layout, [files.test], remedy)
    mean, std = channel_statistics(train.images)
    digest = _content_sha256(files, train_contents, test_content)
    return Dataset(name, train, test, files.layout.classes, mean, std, digest)


def pinned_folder(spec: PinnedFolder, root: Path) -> Path:
    """Where below `root` the files of `spec` lie; DataError when one is missing in every place."""
    names = (*spec.train_files, spec.test_file)
    places = (root / "cifar-10-batches-bin", root)
    for place in places:
        if all((place / name).is_file() for name in names):
            return place
    raise DataError(
        f"{places[0]} lacks a file of {spec.name}, expected {names[0]} to {names[-2]} and {names[-1]} there "
        f"or in {root}; copy them there, or point --data-dir or BATCHLAB_DATA_DIR at their folder."
    )


def load_pinned_folder(spec: PinnedFolder, root: Path) -> Dataset:
    """A pinned copy of CIFAR-10; DataError when a file is missing, cut, altered or mislabelled."""
    folder = pinned_folder(spec, root)
    paths = [folder / name for name in (*spec.train_files, spec.test_file)]
    remedy = f"copy {spec.name}'s files there again"
    expected = spec.records_per_file * CIFAR10_LAYOUT.record_size
    for path in paths:
        if path.stat().st_size != expected:
            raise DataError(f"{path} has {path.stat().st_size} bytes, expected {expected}; {remedy}.")
    contents = [_read(path) for path in paths]
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    if digest.hexdigest() != spec.sha256:
        raise DataError(
            f"{folder} is not {spec.name}: its files have SHA-256 {digest.hexdigest()}, "
            f"expected {spec.sha256}; {remedy}, or name the data cifar-bin:{folder}."
        )
    return Dataset(
        name=spec.name,
        train=decode_records(contents[:-1], CIFAR10_LAYOUT, paths[:-1], remedy),
        test=shuffled(decode_records(contents[-1:], CIFAR10_LAYOUT, paths[-1:], remedy)),
        classes=CIFAR10_LAYOUT.classes,
        mean=spec.mean,
        std=spec.std,
        sha256=digest.hexdigest(),
    )


def _content_sha256(files: FolderFiles, train: Sequence[bytes], test: bytes) -> str:
    digest = hashlib.sha256()
    for content in (*train, test):
        digest.update(content)
    # Without the lengths, moving the boundary between training and test would keep the hash.
    lengths = f"{len(files.layout.label_classes)} {sum(map(len, train))} {len(test)}"
    digest.update(lengths.encode())
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}), expected a readable file; check its permissions."
        ) from error
