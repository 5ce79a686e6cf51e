"""The IDX format of MNIST and its relatives: big-endian magic, dimensions, then unsigned bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from .base import DataError, Split

IMAGES_MAGIC = 0x0803
LABELS_MAGIC = 0x0801
SIDE = 28
IMAGES_HEADER = 16
LABELS_HEADER = 8


def images_size(count: int) -> int:
    """Bytes of an IDX file of `count` images of 28 x 28."""
    return IMAGES_HEADER + count * SIDE * SIDE


def labels_size(count: int) -> int:
    """Bytes of an IDX file of `count` labels."""
    return LABELS_HEADER + count


def shape_of(header: bytes, axes: int) -> tuple[int, ...] | None:
    """What the first 4 + 4 `axes` bytes of an IDX file say of it; None where it has other axes, or no unsigned bytes."""
    if len(header) != 4 + 4 * axes or header[:4] != bytes([0, 0, 8, axes]):
        return None
    return struct.unpack(f">{axes}I", header[4:])


def decode_images(content: bytes, count: int, path: Path, remedy: str) -> np.ndarray:
    """Images uint8 [count, 1, 28, 28]; DataError when header or length is not that of `count` such images."""
    header = struct.pack(">IIII", IMAGES_MAGIC, count, SIDE, SIDE)
    if content[:IMAGES_HEADER] != header or len(content) != images_size(count):
        raise DataError(f"{path} is not an IDX file of {count} images of {SIDE} x {SIDE} bytes; {remedy}.")
    return np.frombuffer(content, np.uint8, offset=IMAGES_HEADER).reshape(count, 1, SIDE, SIDE).copy()


def decode_labels(content: bytes, count: int, classes: int, path: Path, remedy: str) -> np.ndarray:
    """Labels int64 [count]; DataError when header, length or the range 0..classes-1 is violated."""
    header = struct.pack(">II", LABELS_MAGIC, count)
    if content[:LABELS_HEADER] != header or len(content) != labels_size(count):
        raise DataError(f"{path} is not an IDX file of {count} labels; {remedy}.")
    labels = np.frombuffer(content, np.uint8, offset=LABELS_HEADER).astype(np.int64)
    if count and labels.max() >= classes:
        raise DataError(f"{path} holds the label {labels.max()}, expected 0 to {classes - 1}; {remedy}.")
    return labels


def decode_split(images: tuple[Path, bytes], labels: tuple[Path, bytes], count: int, classes: int, remedy: str) -> Split:
    """The split of two decompressed IDX files, each with the path it came from; DataError as above."""
    return Split(decode_images(images[1], count, images[0], remedy), decode_labels(labels[1], count, classes, labels[0], remedy))


def encode_images(images: np.ndarray) -> bytes:
    """The IDX file of uint8 images [N, 1, 28, 28]."""
    return struct.pack(">IIII", IMAGES_MAGIC, len(images), SIDE, SIDE) + images.astype(np.uint8).tobytes()


def encode_labels(labels: np.ndarray) -> bytes:
    """The IDX file of labels [N] in 0..255."""
    return struct.pack(">II", LABELS_MAGIC, len(labels)) + labels.astype(np.uint8).tobytes()
