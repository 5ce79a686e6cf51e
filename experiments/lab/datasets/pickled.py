"""CIFAR's Python layout: pickled dicts of pixel rows and labels, as torchvision and Keras keep them, read without running them.

A pickle is a program, and Python's own reader calls whatever it names. Here it finds only stand-ins for what numpy's arrays are
made of; every other name is refused. What is taken is pixels and labels, checked, in CIFAR's binary layout.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from .base import DataError

MOST_BYTES = 1 << 30
"""of one file"""
PIXELS = 3 * 32 * 32
LABELS = {1: ("labels",), 2: ("coarse_labels", "fine_labels")}
"""label bytes of a record -> the names of their lists"""
_FOREIGN = {"DUP", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
"""opcodes that no pickled array has"""


class RefusedError(Exception):
    """What a pickle holds beside arrays and labels, in a few words."""


class Array:
    """An array as its pickle tells it; inert."""

    def __init__(self, dtype: Any = None, shape: Any = None, raw: Any = None, order: Any = "C") -> None:
        self.dtype, self.shape, self.raw, self.order = dtype, shape, raw, order

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, fortran, self.raw = state
        self.order = "F" if fortran else "C"

    def numpy(self) -> np.ndarray:
        """The integers; `RefusedError` where they are none, or fewer or more than the shape says."""
        dtype, shape = self.dtype, self.shape
        if not isinstance(dtype, DType) or not isinstance(shape, tuple) or not isinstance(self.raw, (bytes, bytearray)):
            raise RefusedError("an array that is none")
        if len(shape) > 2 or not all(type(length) is int and 0 <= length < 1 << 32 for length in shape):
            raise RefusedError("an array of another shape")
        if math.prod(shape) * dtype.size != len(self.raw):
            raise RefusedError(f"an array of shape {shape} in {len(self.raw)} bytes")
        order = "F" if self.order in ("F", b"F") else "C"
        return np.frombuffer(self.raw, dtype.text).reshape(shape, order=order)


class DType:
    """The type of an array's integers; inert."""

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin-1") if isinstance(code, bytes) else code
        if code not in {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}:
            raise RefusedError(f"numbers of type {str(code)[:20]!r}")
        self.code, self.size, self.byte_order = code, int(code[1]), "<"

    def __setstate__(self, state: Any) -> None:
        self.byte_order = ">" if state[1] in (">", b">") else "<"

    @property
    def text(self) -> str:
        return self.byte_order + self.code


class Inert:
    """Stands for a function: holds nothing, cannot be changed, and calls what is in this module alone."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("a change of what reads it")


def _encode(text: Any, codec: Any) -> bytes:
    if not isinstance(text, str) or codec not in ("latin1", "latin-1", b"latin1"):
        raise RefusedError("text in an unexpected encoding")
    return text.encode("latin-1")


_KINDS = {
    "_reconstruct": Inert(lambda *_: Array()),
    "_frombuffer": Inert(lambda raw, dtype, shape, order, *_: Array(dtype, shape, raw, order)),
    "ndarray": Inert(lambda *_: Array()),
    "dtype": Inert(DType),
}
STAND_INS: dict[tuple[str, str], Inert] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _KINDS["_reconstruct"] for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _KINDS["_frombuffer"] for core in ("core", "_core")},
    ("numpy", "ndarray"): _KINDS["ndarray"],
    ("numpy", "dtype"): _KINDS["dtype"],
    ("_codecs", "encode"): Inert(_encode),
    **{(module, "bytes"): Inert(lambda: b"") for module in ("__builtin__", "builtins")},
}
"""all that a pickle may name: how arrays of old and new numpy, and bytes of Python 2's protocols, are written"""


class Reader(pickle.Unpickler):
    """Unpickles numbers, texts, lists, dicts and stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return STAND_INS[module, name]
        except KeyError:
            raise RefusedError(f"{f'{module}.{name}'[:80]!r}, which is no part of an array") from None


def read_pickle(path: Path, content: bytes, label_bytes: int, remedy: str) -> bytes:
    """The examples of one file as records of CIFAR's binary layout: `label_bytes` labels, then 3,072 pixels.

    Without coarse labels these are 0. DataError when the file is no such pickle, or asks for anything else.
    """
    try:
        return _records(_load(content), label_bytes)
    except RefusedError as error:
        raise DataError(f"{path} holds {error}, expected a dict of pixels and labels alone; {remedy}.") from None
    except Exception as error:  # a damaged pickle makes its reader raise nearly anything
        said = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise DataError(f"{path} is no pickle of CIFAR's Python layout ({said}); {remedy}.") from error


def _load(content: bytes) -> Any:
    """The object of a pickle whose opcodes were looked at first: memory stays in proportion to the file, time too."""
    known: set[int] = set()
    tuples: set[int] = set()
    last = ""
    for count, (opcode, given, _) in enumerate(pickletools.genops(content), 1):
        name, argument = opcode.name, cast(Any, given)
        if name in _FOREIGN:
            raise RefusedError(f"the instruction {name}")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(known) if name == "MEMOIZE" else int(argument)
            if index > count:
                raise RefusedError("a reference beyond its end")
            known.add(index)
            if last.startswith("TUPLE"):
                tuples.add(index)
        elif name.endswith("GET") and int(argument) in tuples:  # tuples of tuples of the same take forever to hash
            raise RefusedError("a tuple twice")
        last = name
    return Reader(io.BytesIO(content), encoding="bytes").load()


def _records(batch: Any, label_bytes: int) -> bytes:
    if not isinstance(batch, dict):
        raise RefusedError(f"a {type(batch).__name__}")
    named = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data = named.get("data")
    pixels = data.numpy() if isinstance(data, Array) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise RefusedError(f"no 'data' of bytes [N, {PIXELS}]")
    names = LABELS[label_bytes]
    if names[-1] not in named:
        raise RefusedError(f"no {names[-1]!r}")
    columns = [_labels(named[name], name, len(pixels)) if name in named else np.zeros(len(pixels), np.uint8) for name in names]
    return np.concatenate([*(column[:, None] for column in columns), pixels], 1).tobytes()


def _labels(values: Any, name: str, count: int) -> np.ndarray:
    found = values.numpy().tolist() if isinstance(values, Array) else values
    if not isinstance(found, list) or not all(type(label) is int for label in found):
        raise RefusedError(f"{name!r} that are no whole numbers")
    if len(found) != count:
        raise RefusedError(f"{len(found)} {name!r} for {count} images")
    if not all(0 <= label < 256 for label in found):
        raise RefusedError(f"{name!r} outside 0 to 255")
    return np.array(found, np.uint8)
