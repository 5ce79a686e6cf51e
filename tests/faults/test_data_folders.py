"""Missing, damaged, altered and mislabelled data files outside archives: one clear sentence, nothing written."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_files import MEGABYTE, ONE_SENTENCE, RECORDS, at_most, records

from experiments.lab import datasets
from experiments.lab.datasets import DataError, cifar, embedded, idx, mnist
from experiments.lab.datasets.compressed import read_exactly

# --- loose CIFAR files ------------------------------------------------------------------------------------


def small_pinned_folder(folder: Path) -> cifar.PinnedFolder:
    """Six small files in `folder`, and their specification."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (*cifar.JPEG_COPY.train_files, cifar.JPEG_COPY.test_file)
    for label, name in enumerate(names):
        (folder / name).write_bytes(records(label))
    content = b"".join((folder / name).read_bytes() for name in names)
    return replace(cifar.JPEG_COPY, sha256=hashlib.sha256(content).hexdigest(), records_per_file=RECORDS)


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_pinned_folder_is_found_and_checked(tmp_path: Path, place: str) -> None:
    """Breaks when cifar10-jpeg is not found in one of its places, or damage goes unnoticed."""
    spec = small_pinned_folder(tmp_path / place)
    assert cifar.load_pinned_folder(spec, tmp_path).train.targets.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    path = tmp_path / place / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not cifar10-jpeg.*expected.*copy"):
        cifar.load_pinned_folder(spec, tmp_path)
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin has 6145 bytes, expected 6146; copy"):
        cifar.load_pinned_folder(spec, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"lacks a file of cifar10-jpeg.*BATCHLAB_DATA_DIR"):
        cifar.load_pinned_folder(spec, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (records()[:-1], "6145 bytes, expected whole records of 3073"),
        (b"", "0 bytes, expected whole records of 3073"),
    ],
)
def test_damaged_cifar_folder(tmp_path: Path, content: bytes, message: str) -> None:
    """Breaks when a cut, empty or mislabelled file of the user's own data is trained on."""
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    (tmp_path / "test_batch.bin").write_bytes(records())
    with pytest.raises(DataError, match=rf"data_batch_1\.bin.*{message}; "):
        datasets.load(f"cifar-bin:{tmp_path}")


@pytest.mark.parametrize("label", [b"\x14\x00", b"\x00\x64"])
def test_both_labels_of_cifar100_are_checked(tmp_path: Path, label: bytes) -> None:
    """Breaks when a shifted or damaged file of CIFAR-100 passes because only one label is looked at."""
    with pytest.raises(DataError, match=r"train\.bin holds the label"):
        cifar.decode_records([label + bytes(3072)], cifar.CIFAR100_LAYOUT, [tmp_path / "train.bin"], "remedy")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "neither"),
        (("data_batch_1.bin",), "neither"),
        (("test_batch.bin",), "neither"),
        (("data_batch_1.bin", "test_batch.bin", "train.bin", "test.bin"), "both"),
    ],
)
def test_folder_in_no_single_layout(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    """Breaks when a folder is guessed at instead of refused."""
    for name in files:
        (tmp_path / name).write_bytes(records())
    for call in (datasets.load, datasets.identity):
        with pytest.raises(DataError, match=message):
            call(f"cifar-bin:{tmp_path}")
    assert not datasets.available(f"cifar-bin:{tmp_path}")


def test_folder_that_is_none(tmp_path: Path) -> None:
    """Breaks when a mistyped folder is a traceback."""
    with pytest.raises(DataError, match="nowhere is not a folder"):
        datasets.load(f"cifar-bin:{tmp_path / 'nowhere'}")


# --- IDX files --------------------------------------------------------------------------------------------


def one_idx_file(content: bytes) -> mnist.IdxSpec:
    """A specification whose first file has `content`; two images."""
    digest = hashlib.sha256(content).hexdigest()
    return replace(mnist.MNIST, files=(("images.gz", digest),), train_count=2)


def test_every_damage_of_a_gzipped_file_is_noticed(tmp_path: Path) -> None:
    """Breaks when a truncated or altered download of MNIST is read silently."""
    content = idx.encode_images(np.arange(2 * 784, dtype=np.uint8).reshape(2, 1, 28, 28))
    spec, path = one_idx_file(content), tmp_path / "images.gz"
    packed = gzip.compress(content, mtime=0)
    path.write_bytes(packed)
    assert mnist.read_file(spec, 0, path) == content
    for length in range(0, len(packed), 5):
        path.write_bytes(packed[:length])
        with pytest.raises(DataError, match=ONE_SENTENCE):
            mnist.read_file(spec, 0, path)
    for position in range(10, len(packed), 5):  # before lies gzip's own header, which holds no data
        damaged = bytearray(packed)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=ONE_SENTENCE):
            mnist.read_file(spec, 0, path)


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_compressed_bomb_is_refused_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    """Breaks when a small file that expands to 64 MB is expanded."""
    path = tmp_path / "bomb"
    compress = gzip.compress if kind == "gz" else lzma.compress
    path.write_bytes(compress(bytes(64 * MEGABYTE)))
    with at_most(16 * MEGABYTE), pytest.raises(DataError, match="holds more bytes, expected 1000"):
        read_exactly(path, 1000, "gz" if kind == "gz" else "xz", "remedy")


def test_wrong_magic_count_and_label(tmp_path: Path) -> None:
    """Breaks when labels are read as images, counts disagree, or a label is out of range."""
    images = idx.encode_images(np.zeros((2, 1, 28, 28), np.uint8))
    path = tmp_path / "file"
    assert idx.decode_images(images, 2, path, "remedy").shape == (2, 1, 28, 28)
    swapped = b"\0\0\x08\x01" + images[4:]
    for content, count in ((swapped, 2), (images, 3), (images[:-1], 2), (images + b"\0", 2), (b"", 0)):
        with pytest.raises(DataError, match="not an IDX file of"):
            idx.decode_images(content, count, path, "remedy")
    labels = idx.encode_labels(np.array([3, 10]))
    for content, count in ((images[:10], 2), (labels, 1), (labels[:-1], 2)):
        with pytest.raises(DataError, match="not an IDX file of"):
            idx.decode_labels(content, count, 10, path, "remedy")
    with pytest.raises(DataError, match="holds the label 10, expected 0 to 9; remedy"):
        idx.decode_labels(labels, 2, 10, path, "remedy")


# --- the embedded data ------------------------------------------------------------------------------------


def test_damaged_embedded_data_is_noticed(tmp_path: Path) -> None:
    """Breaks when a bad clone or an edited label in the embedded data is trained on."""
    folder = tmp_path / "fashion_mini"
    shutil.copytree(embedded.FOLDER, folder)
    path = folder / "train-labels-idx1-ubyte.xz"
    content = bytearray(lzma.decompress(path.read_bytes()))
    content[-1] = (content[-1] + 1) % 10
    path.write_bytes(lzma.compress(bytes(content)))
    with pytest.raises(DataError, match=r"was altered.*SHA-256.*git checkout"):
        embedded.load_fashion_mini(folder)
    path.write_bytes(lzma.compress(bytes(content[:-1])))
    with pytest.raises(DataError, match=r"only 10007 bytes, expected 10008.*git checkout"):
        embedded.load_fashion_mini(folder)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot be read as a \.xz file.*git checkout"):
        embedded.load_fashion_mini(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.xz is missing; .*git checkout"):
        embedded.load_fashion_mini(folder)
