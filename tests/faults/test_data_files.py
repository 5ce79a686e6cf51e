"""Damaged and hostile archives of data: one clear sentence, nothing written."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_files import MEGABYTE, ONE_SENTENCE, RECORDS, at_most, records

from experiments.lab.datasets import DataError, cifar_archive
from experiments.lab.datasets.archives import read_members

TRAIN, TEST = "cifar-10-batches-bin/data_batch_1.bin", "cifar-10-batches-bin/test_batch.bin"
SIZES = {TRAIN: RECORDS * 3073, TEST: RECORDS * 3073}


def regular(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def write_archive(path: Path, *members: tuple[tarfile.TarInfo, bytes], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w:gz", format=tar_format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def spec_of(path: Path) -> cifar_archive.ArchiveSpec:
    """The specification by which the small archive at `path` is the official one."""
    return replace(cifar_archive.CIFAR10, file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), urls=(),
                   train_members=((TRAIN, RECORDS),), test_member=(TEST, RECORDS))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A small archive in order."""
    return write_archive(tmp_path / "cifar.tar.gz", regular(TRAIN, records()), regular(TEST, records()))


# --- archives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_good_archive_loads_without_unpacking(tmp_path: Path, tar_format: int) -> None:
    """Breaks when archives of one of the tar dialects can no longer be read, or something is unpacked."""
    readme = regular("cifar-10-batches-bin/readme.html", b"x" * 700)
    folder = special("cifar-10-batches-bin", tarfile.DIRTYPE)
    members = (folder, regular(TEST, records(5)), readme, regular(TRAIN, records()))
    path = write_archive(tmp_path / "cifar.tar.gz", *members, tar_format=tar_format)
    data = cifar_archive.load_archive(spec_of(path), tmp_path)
    assert data.train.targets.tolist() == [3, 3] and data.test.targets.tolist() == [5, 5]
    assert data.train.inputs[0].tobytes() == bytes(range(256)) * 12
    assert data.sha256 == hashlib.sha256(records() + records(5)).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "member",
    [
        regular("../escaped.bin", b"evil"),
        regular("/tmp/escaped.bin", b"evil"),
        regular("cifar-10-batches-bin/../../escaped.bin", b"evil"),
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard", tarfile.LNKTYPE, "../escaped.bin"),
        special("device", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
        regular("x" * 300, b"evil"),
    ],
    ids=lambda member: member[0].name[:30],
)
def test_unexpected_members_are_skipped(tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]) -> None:
    """Breaks when a path that leaves the folder, a link or a device in an archive has any effect."""
    inside = tmp_path / "data"
    inside.mkdir()
    path = write_archive(inside / "cifar.tar.gz", member, regular(TRAIN, records()), member, regular(TEST, records()))
    before = sorted(tmp_path.rglob("*"))
    assert read_members(path, SIZES, "remedy") == {TRAIN: records(), TEST: records()}
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/escaped.bin").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_expected_member_must_be_a_regular_file(tmp_path: Path, kind: bytes) -> None:
    """Breaks when a link or device takes the place of a data file."""
    path = write_archive(tmp_path / "a.tar.gz", special(TRAIN, kind, "/etc/passwd"), regular(TEST, records()))
    with pytest.raises(DataError, match="not a regular file"):
        read_members(path, SIZES, "remedy")


def test_duplicate_member_is_refused(tmp_path: Path) -> None:
    """Breaks when a second copy of a member silently replaces the first."""
    members = (regular(TRAIN, records()), regular(TEST, records()), regular(TRAIN, records(4)))
    with pytest.raises(DataError, match="there twice"):
        read_members(write_archive(tmp_path / "a.tar.gz", *members), SIZES, "remedy")


@pytest.mark.parametrize("count", [RECORDS - 1, RECORDS + 1, 0])
def test_member_of_another_size_is_refused(tmp_path: Path, count: int) -> None:
    """Breaks when a shorter or longer member is taken."""
    path = write_archive(tmp_path / "a.tar.gz", regular(TRAIN, records(count=count)), regular(TEST, records()))
    with pytest.raises(DataError, match=rf"{count * 3073} bytes, expected {RECORDS * 3073}"):
        read_members(path, SIZES, "remedy")


def test_missing_member_is_named(tmp_path: Path) -> None:
    """Breaks when an archive without its test file is taken."""
    with pytest.raises(DataError, match=r"test_batch\.bin is missing"):
        read_members(write_archive(tmp_path / "a.tar.gz", regular(TRAIN, records())), SIZES, "remedy")


@pytest.mark.parametrize("where", ["member", "after", "header"])
def test_bomb_is_refused_in_bounded_memory(tmp_path: Path, where: str) -> None:
    """Breaks when an archive that expands to 64 MB, in any place, takes more than a few MB of memory."""
    path = tmp_path / "bomb.tar.gz"
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as tar:
        for info, content in (regular(TRAIN, records()), regular(TEST, records())):
            tar.addfile(info, io.BytesIO(content))
    bomb = tarfile.TarInfo("readme.html")
    bomb.size = 64 * MEGABYTE
    if where == "header":  # an extended header of 64 MB, which ordinary readers hold in memory
        bomb.type = tarfile.XHDTYPE
    with gzip.open(path, "wb", compresslevel=1) as stream:
        if where != "after":
            stream.write(bomb.tobuf(tarfile.USTAR_FORMAT))
        else:
            stream.write(good.getvalue())
        for _ in range(64):
            stream.write(bytes(MEGABYTE))
    with at_most(2 * MEGABYTE), pytest.raises(DataError, match="more data than it should"):
        read_members(path, SIZES, "remedy")


@pytest.mark.parametrize("field", [b"\x80" + bytes(3) + b"\xff" * 8, b"99999999999\0", b"-0000000001\0"])
def test_absurd_size_in_a_header_is_refused(tmp_path: Path, field: bytes) -> None:
    """Breaks when a header's size that is negative, not octal or astronomic is believed."""
    header = bytearray(tarfile.TarInfo(TRAIN).tobuf(tarfile.USTAR_FORMAT)[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(header) + bytes(1024)))
    with pytest.raises(DataError, match="not the expected archive"):
        read_members(tmp_path / "a.tar.gz", SIZES, "remedy")


def test_every_truncation_of_an_archive_is_noticed(good: Path) -> None:
    """Breaks when a download that stopped early is read as if complete, with the hash or without."""
    spec, content = spec_of(good), good.read_bytes()
    for length in (0, 1, 10, len(content) // 2, len(content) - 8, len(content) - 1):
        good.write_bytes(content[:length])
        with pytest.raises(DataError, match=ONE_SENTENCE):
            cifar_archive.load_archive(spec, good.parent)
        with pytest.raises(DataError, match=ONE_SENTENCE):
            read_members(good, SIZES, "remedy")


def test_every_flipped_byte_of_an_archive_is_noticed(good: Path) -> None:
    """Breaks when a damaged archive is used."""
    spec, content = spec_of(good), good.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        good.write_bytes(damaged)
        with pytest.raises(DataError, match="SHA-256"):
            cifar_archive.load_archive(spec, good.parent)


def test_random_damage_never_escapes_as_another_error(good: Path) -> None:
    """Breaks when some damage makes the reader itself fail with a traceback instead of a DataError."""
    raw = gzip.decompress(good.read_bytes())
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(raw)
        for position in generator.integers(0, 1024, 3):
            damaged[position] = generator.integers(0, 256)
        good.write_bytes(gzip.compress(bytes(damaged), compresslevel=1))
        with contextlib.suppress(DataError):
            assert set(read_members(good, SIZES, "remedy")) == set(SIZES)


def test_label_out_of_range_in_an_archive(tmp_path: Path) -> None:
    """Breaks when a mislabelled record reaches training."""
    path = write_archive(tmp_path / "a.tar.gz", regular(TRAIN, records(10)), regular(TEST, records()))
    with pytest.raises(DataError, match=r"data_batch_1\.bin holds the label 10, expected 0 to 9; "):
        cifar_archive.load_archive(spec_of(path), tmp_path)


def test_missing_archive_says_where_to_put_it(good: Path, tmp_path: Path) -> None:
    """Breaks when offline users are not told which file is expected where."""
    spec = spec_of(good)
    with pytest.raises(DataError, match=r"elsewhere/cifar\.tar\.gz is missing.*copy the file there"):
        cifar_archive.load_archive(spec, tmp_path / "elsewhere")
