"""fashion-mnist and mnist: four gzipped IDX files, downloaded when they are not there."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from . import idx
from .base import DataError, Dataset
from .compressed import read_exactly
from .download import fetch


@dataclass(frozen=True)
class IdxSpec:
    """A data set of four files.

    files: names with the SHA-256 of their *decompressed* content (mirrors and distributions compress the same
    content differently): training images, training labels, test images, test labels.
    mirrors: addresses of folders, tried in order.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    mirrors: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_count: int = 60_000
    test_count: int = 10_000
    classes: int = 10

    def size(self, position: int) -> int:
        """Decompressed bytes of the file at `position` of `files`."""
        count = self.train_count if position < 2 else self.test_count
        return idx.labels_size(count) if position % 2 else idx.images_size(count)


FASHION_MNIST = IdxSpec(
    name="fashion-mnist",
    files=(
        ("train-images-idx3-ubyte.gz", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        ("train-labels-idx1-ubyte.gz", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        ("t10k-images-idx3-ubyte.gz", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        ("t10k-labels-idx1-ubyte.gz", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    mean=(0.2860,),
    std=(0.3530,),
)

MNIST = IdxSpec(
    name="mnist",
    files=(
        ("train-images-idx3-ubyte.gz", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train-labels-idx1-ubyte.gz", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("t10k-images-idx3-ubyte.gz", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("t10k-labels-idx1-ubyte.gz", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    mean=(0.1307,),
    std=(0.3081,),
)


def read_file(spec: IdxSpec, position: int, path: Path) -> bytes:
    """The verified content of one of the four files; DataError when missing, damaged or altered."""
    name, expected = spec.files[position]
    remedy = f"delete it and run again to download it, or copy {spec.name}'s {name} there"
    content = read_exactly(path, spec.size(position), "gz", remedy)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(f"{path} was altered: its content has SHA-256 {found}, expected {expected}; {remedy}.")
    return content


def idx_folder(spec: IdxSpec, root: Path) -> Path:
    """Where below `root` the four files of `spec` lie or belong: the folder of its name, or `root` where that holds them."""
    own, (labels, sha256) = root / spec.name, spec.files[3]
    if not own.is_dir() and all((root / name).is_file() for name, _ in spec.files):
        with contextlib.suppress(DataError):  # the files of a relative, under the same names
            if hashlib.sha256(read_exactly(root / labels, spec.size(3), "gz", "")).hexdigest() == sha256:
                return root
    return own


def load_idx(spec: IdxSpec, folder: Path, *, download: bool = True) -> Dataset:
    """Images [N, 1, 28, 28] from the four files in `folder`.

    DataError when a file is missing (and cannot be downloaded), damaged, altered or mislabelled.
    """
    files = []
    for position, (name, _) in enumerate(spec.files):
        path = folder / name
        if download and not path.exists():
            urls = tuple(mirror + name for mirror in spec.mirrors)
            fetch(urls, path, verify=lambda candidate, position=position: read_file(spec, position, candidate))
        files.append((path, read_file(spec, position, path)))
    remedy = f"delete it and copy {spec.name}'s original there"
    return Dataset(
        name=spec.name, train=idx.decode_split(files[0], files[1], spec.train_count, spec.classes, remedy),
        test=idx.decode_split(files[2], files[3], spec.test_count, spec.classes, remedy),
        outputs=spec.classes, mean=spec.mean, std=spec.std,
        sha256=hashlib.sha256(b"".join(content for _, content in files)).hexdigest(),
    )
