"""cifar10 and cifar100: the official binary archives, downloaded when absent, read without unpacking."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .base import DataError, Dataset
from .cifar import CIFAR10_LAYOUT, CIFAR100_LAYOUT, Layout, decode_records
from .download import fetch
from .tar_stream import read_members


@dataclass(frozen=True)
class ArchiveSpec:
    """An archive: sha256 is of the .tar.gz itself; members are exact names with their number of records."""

    name: str
    file: str
    sha256: str
    urls: tuple[str, ...]
    layout: Layout
    train_members: tuple[tuple[str, int], ...]
    test_member: tuple[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def sizes(self) -> dict[str, int]:
        """Bytes of each member, training members first."""
        return {
            name: count * self.layout.record_size for name, count in (*self.train_members, self.test_member)
        }


CIFAR10 = ArchiveSpec(
    name="cifar10",
    file="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    urls=(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    ),
    layout=CIFAR10_LAYOUT,
    train_members=tuple((f"cifar-10-batches-bin/data_batch_{number}.bin", 10_000) for number in range(1, 6)),
    test_member=("cifar-10-batches-bin/test_batch.bin", 10_000),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = ArchiveSpec(
    name="cifar100",
    file="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
    layout=CIFAR100_LAYOUT,
    train_members=(("cifar-100-binary/train.bin", 50_000),),
    test_member=("cifar-100-binary/test.bin", 10_000),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def load_archive(spec: ArchiveSpec, root: Path) -> Dataset:
    """Images [N, 3, 32, 32] from `root`/`spec.file`.

    DataError when the archive is missing (and cannot be downloaded), damaged, altered or mislabelled.
    """
    path = root / spec.file
    if not path.exists():
        fetch(spec.urls, path, verify=lambda candidate: check_archive(spec, candidate))
    check_archive(spec, path)
    members = read_members(path, spec.sizes(), _remedy(spec))
    contents = [members[name] for name in spec.sizes()]
    places = [path / name for name in spec.sizes()]
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return Dataset(
        name=spec.name,
        train=decode_records(contents[:-1], spec.layout, places[:-1], _remedy(spec)),
        test=decode_records(contents[-1:], spec.layout, places[-1:], _remedy(spec)),
        classes=spec.layout.classes,
        mean=spec.mean,
        std=spec.std,
        sha256=digest.hexdigest(),
    )


def check_archive(spec: ArchiveSpec, path: Path) -> None:
    """DataError unless the file at `path` is, byte for byte, the official archive."""
    try:
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_remedy(spec)}.") from error
    if found != spec.sha256:
        raise DataError(f"{path} has SHA-256 {found}, expected {spec.sha256}; {_remedy(spec)}.")


def _remedy(spec: ArchiveSpec) -> str:
    return f"delete it and run again to download it, or copy the official {spec.file} there"
