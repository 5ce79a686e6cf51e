"""cifar10 and cifar100: the official binary archives, downloaded when absent, read without unpacking.

Where an archive is not there, its content is taken from what others keep of it, unpacked or in the Python layout: each file,
as records of the binary layout, must have the SHA-1 that MXNet publishes of it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .archives import SLACK, read_members
from .base import DataError, Dataset
from .cifar import CIFAR10_LAYOUT, CIFAR100_LAYOUT, FolderFiles, Layout, decode_records, places, read_records, sha256_of
from .download import fetch
from .pickled import read_pickle

PICKLED = 1.1
"""a pickled file is so many times as long at most: it names its images"""


@dataclass(frozen=True)
class ArchiveSpec:
    """An archive: sha256 is of the .tar.gz itself; members are exact names with their number of records.

    sha1: of each member, training members first. python_file, python_folder: the archive of the same in the Python layout.
    """

    name: str
    file: str
    sha256: str
    urls: tuple[str, ...]
    layout: Layout
    train_members: tuple[tuple[str, int], ...]
    test_member: tuple[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha1: tuple[str, ...]
    python_file: str
    python_folder: str

    @property
    def folder(self) -> str:
        """What the archive unpacks to."""
        return self.test_member[0].split("/")[0]

    def sizes(self) -> dict[str, int]:
        """Bytes of each member, training members first."""
        return {name: count * self.layout.record_size for name, count in (*self.train_members, self.test_member)}


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
    sha1=(
        "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "26e2849e66a845b7f1e4614ae70f4889ae604628",
        "67eb016db431130d61cd03c7ad570b013799c88c",
    ),
    python_file="cifar-10-python.tar.gz",
    python_folder="cifar-10-batches-py",
)

CIFAR100 = ArchiveSpec(
    name="cifar100", file="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",), layout=CIFAR100_LAYOUT,
    train_members=(("cifar-100-binary/train.bin", 50_000),),
    test_member=("cifar-100-binary/test.bin", 10_000), mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    sha1=("e207cd2e05b73b1393c74c7f5e7bea451d63e08e", "8fb6623e830365ff53cf14adec797474f5478006"),
    python_file="cifar-100-python.tar.gz", python_folder="cifar-100-python",
)


def load_archive(spec: ArchiveSpec, root: Path) -> Dataset:
    """Images [N, 3, 32, 32] from `root`/`spec.file`, else from what lies there unpacked or in the Python layout.

    DataError when nothing of it is there (and the archive cannot be downloaded), or it is damaged, altered or mislabelled.
    """
    path = root / spec.file
    contents = None if path.exists() else _elsewhere(spec, root)
    if contents is None:
        if not path.exists():
            _download(spec, path)
        check_archive(spec, path)
        members = read_members(path, spec.sizes(), _remedy(spec))
        contents = [members[name] for name in spec.sizes()]
    paths = [path / name for name in spec.sizes()]
    return Dataset(name=spec.name, train=decode_records(contents[:-1], spec.layout, paths[:-1], _remedy(spec)),
                   test=decode_records(contents[-1:], spec.layout, paths[-1:], _remedy(spec)),
                   outputs=spec.layout.classes, mean=spec.mean, std=spec.std, sha256=sha256_of(contents))


def _download(spec: ArchiveSpec, path: Path) -> None:
    try:
        fetch(spec.urls, path, verify=lambda candidate: check_archive(spec, candidate))
    except DataError as error:
        others = ", ".join(str(files.test.parent) for files in archive_places(spec, path.parent))
        if not others:
            raise
        raise DataError(f"what lies in {others} is not the official {spec.name} by its SHA-1, and {error}") from error


def archive_places(spec: ArchiveSpec, root: Path) -> list[FolderFiles]:
    """Where the archive's content may lie unpacked, in either layout; by name only."""
    names = [name.split("/")[-1] for name in spec.sizes()]
    return places(root, (spec.folder, spec.python_folder), names[:-1], names[-1], spec.layout)


def _elsewhere(spec: ArchiveSpec, root: Path) -> list[bytes] | None:
    """The records of each file, the test file last; None where nothing of the name lies there, or only other data."""
    labels, remedy = len(spec.layout.label_classes), _remedy(spec)
    for files in archive_places(spec, root):
        paths = (*files.train, files.test)
        with contextlib.suppress(DataError):  # other data under the same names are no damage
            return _checked(spec, files.test.parent, (read_records(p, spec.layout, remedy, pickled=files.pickled) for p in paths))
    archive = root / spec.python_file
    if not archive.exists():
        return None
    remedy = f"delete it, or copy the official {spec.python_file} there"
    sizes = {
        f"{spec.python_folder}/{Path(name).stem}": int(PICKLED * size) + SLACK for name, size in spec.sizes().items()
    }  # names of images are there, too
    members = read_members(archive, sizes, remedy, at_most=True)
    return _checked(spec, archive, (read_pickle(archive / name, members[name], labels, remedy) for name in sizes))


def _checked(spec: ArchiveSpec, place: Path, contents: Iterable[bytes]) -> list[bytes]:
    """`contents`; DataError at the first that is not the official one."""
    found = []
    for content, name, sha1 in zip(contents, spec.sizes(), spec.sha1, strict=True):
        if (own := hashlib.sha1(content, usedforsecurity=False).hexdigest()) != sha1:
            raise DataError(f"{place} is not {spec.name}: as {name} it has SHA-1 {own}, expected {sha1}; {_remedy(spec)}.")
        found.append(content)
    return found


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
