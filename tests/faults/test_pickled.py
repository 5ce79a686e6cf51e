"""CIFAR's Python layout, hostile and damaged: nothing runs, memory stays small, one sentence; in order it is the same data."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_folders import Examples, batch, records, two_kinds, write_binary, write_pickled
from data_files import MEGABYTE, ONE_SENTENCE, at_most

from experiments.lab import datasets
from experiments.lab.datasets import DataError, cifar, cifar_archive
from experiments.lab.datasets.pickled import read_pickle

TRAIN, TEST = two_kinds(6, 0), two_kinds(4, 1)
OLD = b"numpy.core.multiarray"


class Calls:
    """Pickled, a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def old_pickle(examples: Examples) -> bytes:
    """As Python 2 and its numpy wrote the official files: byte strings of protocol 2, names of numpy.core."""
    pixels, labels = examples
    raw = pixels.tobytes()

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    made = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03"
    made += text(b"b") + b"q\x04\x87q\x05Rq\x06"
    dtype = b"cnumpy\ndtype\nq\x08" + text(b"u1") + b"K\x00K\x01\x87q\x09Rq\x0a"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + 2 * integer(-1) + b"K\x00tq\x0bb"
    shape = integer(len(pixels)) + b"M\x00\x0c\x86q\x07"
    array = made + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"q\x0ctq\x0db"
    listed = b"](" + b"".join(b"K" + bytes([int(label)]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def test_the_official_files_pickles(tmp_path: Path) -> None:
    """What Python 2 wrote twenty years ago would be refused."""
    assert pickle.loads(old_pickle(TRAIN), encoding="bytes")[b"labels"] == TRAIN[1].tolist()
    assert read_pickle(tmp_path, old_pickle(TRAIN), 1, "remedy") == records(TRAIN)


@pytest.mark.parametrize("key", [bytes, str])
@pytest.mark.parametrize("protocol", range(6))
def test_both_layouts_are_the_same_data(tmp_path: Path, protocol: int, key: type) -> None:
    """Runs on torchvision's copy would be others than those on the binary files."""
    binary = write_binary(tmp_path / "binary", TRAIN, TEST)
    pickled = write_pickled(tmp_path / "pickled", TRAIN, TEST, protocol, key)
    first, second = (datasets.load(f"cifar-bin:{folder}") for folder in (binary, pickled))
    assert first.sha256 == second.sha256 == datasets.identity(f"cifar-bin:{pickled}")
    assert (first.train.inputs == second.train.inputs).all() and first.test.targets.tolist() == second.test.targets.tolist()
    assert (first.mean, first.std, first.outputs) == (second.mean, second.std, second.outputs)


def test_fine_labels_of_cifar100(tmp_path: Path) -> None:
    """The twenty coarse labels would be learned."""
    for name, (pixels, labels) in (("train", TRAIN), ("test", TEST)):
        named = {b"data": np.asfortranarray(pixels), b"fine_labels": labels + 90, b"coarse_labels": [7] * len(labels)}
        (tmp_path / name).write_bytes(pickle.dumps(named, 4))
    data = datasets.load(f"cifar-bin:{tmp_path}")
    assert data.train.targets.tolist() == (TRAIN[1] + 90).tolist() and data.outputs == 92
    assert data.train.inputs.reshape(6, -1).tolist() == TRAIN[0].tolist()
    assert records((TRAIN[0], TRAIN[1] + 90), coarse=7) == read_pickle(tmp_path, (tmp_path / "train").read_bytes(), 2, "remedy")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, __import__, np.load, pickle.loads])
def test_nothing_runs(tmp_path: Path, function: Callable[..., Any], protocol: int) -> None:
    """A folder from the internet would run what it likes."""
    argument = str(tmp_path / "ran")
    hostile = pickle.dumps(batch(TRAIN) | {b"extra": Calls(function, argument)}, protocol)
    name = function.__name__
    with pytest.raises(DataError, match=rf"holds '[\w.]*{name}'.*{ONE_SENTENCE[1:]}"):
        read_pickle(tmp_path / "data_batch_1", hostile, 1, "remedy")
    assert not (tmp_path / "ran").exists()


GLOBAL = b"cnumpy\nndarray\n"
HOSTILE = {
    "changes a stand-in": b"\x80\x02" + GLOBAL + b"}U\x05_makeK\x01sb.",
    "makes an object of a stand-in": b"\x80\x02" + GLOBAL + b")\x81.",
    "an array that says it is larger": old_pickle(TRAIN).replace(b"M\x00\x0c", b"M\x00\xff"),
    "floats": pickle.dumps({b"data": TRAIN[0].astype(np.float32), b"labels": TRAIN[1].tolist()}, 2),
    "objects": pickle.dumps({b"data": np.array([b"x"], object), b"labels": [0]}, 2),
    "rows of another length": pickle.dumps({b"data": TRAIN[0][:, 1:], b"labels": TRAIN[1].tolist()}, 2),
    "too few labels": pickle.dumps({b"data": TRAIN[0], b"labels": [0]}, 2),
    "labels that are texts": pickle.dumps({b"data": TRAIN[0], b"labels": ["a"] * 6}, 2),
    "labels beyond a byte": pickle.dumps({b"data": TRAIN[0], b"labels": [256] * 6}, 2),
    "negative labels": pickle.dumps({b"data": TRAIN[0], b"labels": [-1] * 6}, 2),
    "no labels": pickle.dumps({b"data": TRAIN[0]}, 2),
    "no data": pickle.dumps({b"labels": [0]}, 2),
    "a list": pickle.dumps([1, 2], 2),
    "nothing": b"",
    "a text": b"these are no images",
    "a cut file": old_pickle(TRAIN)[:-100],
    "persistent ids": b"\x80\x02U\x01aQ.",
    "a memo of 64 GiB": b"\x80\x02K\x01r\xff\xff\xff\xff.",
    "8 EiB of bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "8 EiB in one frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
    "a text of a million digits": b"I" + b"9" * MEGABYTE + b"\n.",
    "tuples that take a year to hash": b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(60)) + b"K\x01s.",
    "the same by protocol 4": b"\x80\x04})" + b"".join(b"\x94h%c\x86" % k for k in range(60)) + b"K\x01s.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_and_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    """A traceback, a machine out of memory, or images that are none."""
    with at_most(64 * MEGABYTE), pytest.raises(DataError, match=ONE_SENTENCE) as caught:
        read_pickle(tmp_path / "data_batch_1", content, 1, "write it again")
    assert "data_batch_1" in str(caught.value) and len(str(caught.value)) < 500


def test_every_damaged_byte_is_refused_or_read(tmp_path: Path) -> None:
    """A damaged pickle would end in an exception of its reader's own."""
    content = pickle.dumps({b"data": TRAIN[0][:1, :], b"labels": [1]}, 4)
    for position in [*range(150), *range(len(content) - 60, len(content))]:
        for bit in (1, 16, 128):
            damaged = bytearray(content)
            damaged[position] ^= bit
            try:
                assert len(read_pickle(tmp_path, bytes(damaged), 1, "remedy")) % 3073 == 0
            except DataError as error:
                assert "\n" not in str(error)


# --- pinned data sets


def pinned(train: Examples, test: Examples) -> tuple[cifar.PinnedFolder, cifar_archive.ArchiveSpec]:
    """Specifications by which these are the known data."""
    content = records(train), records(test)
    folder = replace(cifar.JPEG_COPY, sha256=hashlib.sha256(b"".join(content)).hexdigest(), train_files=("data_batch_1.bin",),
                     records_per_file=len(train[1]))
    files = (("data_batch_1.bin", train), ("test_batch.bin", test))
    names = tuple((f"cifar-10-batches-bin/{name}", len(labels)) for name, (_, labels) in files)
    sha1 = tuple(hashlib.sha1(c).hexdigest() for c in content)
    return folder, replace(cifar_archive.CIFAR10, urls=(), train_members=names[:1], test_member=names[1], sha1=sha1)


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar-10-batches-bin", ""])
def test_unpacked_copies_are_known_by_content(tmp_path: Path, place: str) -> None:
    """An offline machine that has the images could not use them; or would take others for them."""
    same, other = two_kinds(6, 0), two_kinds(6, 2)
    folder, archive = pinned(same, same)
    write = write_binary if place.endswith("bin") else write_pickled
    for root, examples in ((tmp_path / "right", same), (tmp_path / "wrong", other)):
        root.mkdir()
        write(root / "x", examples, examples).rename(root / place) if place else write(root / "x", examples, examples)
    right, wrong = (tmp_path / name / ("" if place else "x") for name in ("right", "wrong"))
    assert cifar.load_pinned_folder(folder, right).train.targets.tolist() == same[1].tolist()
    found = cifar_archive.load_archive(archive, right)
    assert found.test.targets.tolist() == same[1].tolist()
    assert found.sha256 == hashlib.sha256(records(same) * 2).hexdigest()
    for load in (lambda: cifar.load_pinned_folder(folder, wrong), lambda: cifar_archive.load_archive(archive, wrong)):
        with pytest.raises(DataError, match=rf"{wrong}.*{ONE_SENTENCE[1:]}"):
            load()


def test_torchvisions_archive(tmp_path: Path) -> None:
    """What torchvision and Keras download would have to be downloaded again."""
    same = two_kinds(6, 0)
    _, archive = pinned(same, same)
    write_pickled(tmp_path / "cifar-10-batches-py", same, same)
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    assert cifar_archive.load_archive(archive, tmp_path / "data").train.targets.tolist() == same[1].tolist()
    with pytest.raises(DataError, match="SHA-1"):
        cifar_archive.load_archive(replace(archive, sha1=(archive.sha1[0], "0" * 40)), tmp_path / "data")
