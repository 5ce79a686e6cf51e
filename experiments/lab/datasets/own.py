"""A user's own data, as arrays: what they may look like, and how they become a `Dataset`.

Two sources: a function of the user's, `MODULE:FUNCTION`, and Keras' file of arrays, `npz:FILE`. Other formats bring their own
readers and end here as well.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .base import DataError, Dataset, Kind, Split
from .cifar import channel_statistics
from .memory import COPIES, OTHERS, check_memory

IGNORED = -100
"""a target that does not count"""
TEST_SHARE = 5
"""of one pair, every fifth example of a random order that is always the same becomes a test example"""
SPLIT_KEY = 20180613
NAMES = ("train", "validation", "test")

Arrays = Mapping[str, tuple[np.ndarray, np.ndarray]]


def load_given(name: str, function: Any) -> Dataset:
    """What a user's function gives: a mapping with `train`, `test` and perhaps `validation`, or one pair that is split.

    It is called twice, and both answers must be the same: a run that is continued reads them again. DataError otherwise.
    """
    found, again = (assembled(name, _called(name, function)) for _ in range(2))
    if found.sha256 != again.sha256:
        raise DataError(f"{name} gave other data at its second call; draw them from a generator with a fixed seed.")
    return found


def _called(name: str, function: Any) -> Any:
    if not callable(function):
        return function
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise DataError(f"{name}() failed ({type(error).__name__}: {' '.join(str(error).split())}); correct it.") from error


def load_npz(name: str, path: Path) -> Dataset:
    """`x_train, y_train, x_test, y_test` of a NumPy archive, as Keras names them; perhaps `x_val, y_val`."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = {entry.removesuffix(".npy") for entry in archive.namelist()}
            splits = {"train": "train", "test": "test"} | ({"validation": "val"} if "x_val" in there else {})
            wanted = [f"{axis}_{short}" for short in splits.values() for axis in "xy"]
            if missing := [key for key in wanted if key not in there]:
                raise DataError(f"{path} has no array {missing[0]}; it needs {', '.join(wanted)}.")
            check_memory(path, sum(_needed(archive, key) for key in wanted))
            arrays = {key: _stored(archive, key) for key in wanted}
        return assembled(name, {key: (arrays[f"x_{short}"], arrays[f"y_{short}"]) for key, short in splits.items()})
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; name an .npz file.") from None
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an .npz file of plain arrays ({why}); write it with numpy.savez.") from error


def _stored(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _needed(archive: zipfile.ZipFile, key: str) -> int:
    """Bytes of memory that an array takes until it is a tensor, from its header alone; ValueError where it holds objects."""
    with archive.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{key} holds Python objects")
    return math.prod(shape) * dtype.itemsize * COPIES.get(dtype.kind, OTHERS)


def assembled(name: str, given: Any) -> Dataset:
    """The `Dataset` of a mapping of splits or of one pair; DataError where the arrays are no task."""
    arrays = _splits(name, given)
    splits = {key: _split(f"{name}, {key}", *pair) for key, pair in arrays.items()}
    train = splits["train"]
    for key, split in splits.items():
        if split.inputs.shape[1:] != train.inputs.shape[1:] or split.inputs.dtype != train.inputs.dtype:
            raise DataError(f"{name}, {key}: inputs are {_shown(split.inputs)}, but those of train are {_shown(train.inputs)}; "
                            "make them alike.")
        if split.targets.shape[1:] != train.targets.shape[1:] or split.targets.dtype != train.targets.dtype:
            raise DataError(f"{name}, {key}: targets are {_shown(split.targets)}, but those of train are "
                            f"{_shown(train.targets)}; make them alike.")
    kind = _kind(train)
    if kind is Kind.NUMBERS:
        outputs = 1 if train.targets.ndim == 1 else train.targets.shape[1]
    else:
        outputs = max(2, 1 + max(int(split.targets.max()) for split in splits.values()))
        if kind is Kind.TOKENS and train.inputs.dtype == np.int64:
            outputs = max(outputs, 1 + max(int(split.inputs.max()) for split in splits.values()))
        unseen = set(np.unique(splits["test"].targets)) - set(np.unique(train.targets)) if kind is Kind.CLASSES else ()
        if unseen:
            raise DataError(f"{name}, test: the class {min(unseen)} is in no training example; take it out or add some.")
    mean, std = channel_statistics(train.inputs) if train.inputs.dtype == np.uint8 else ((), ())
    scale = tuple(value or 1.0 for value in std)
    return Dataset(name, train, splits["test"], outputs, mean, scale, content_sha256(splits), None, kind,
                   splits.get("validation"))


def _shown(array: np.ndarray) -> str:
    """Type and shape of one example."""
    return f"{array.dtype} {list(array.shape[1:])}"


def content_sha256(splits: Mapping[str, Split]) -> str:
    """Of every array with its name, type and shape."""
    digest = hashlib.sha256()
    for key in NAMES:
        if key in splits:
            for array in (splits[key].inputs, splits[key].targets):
                digest.update(f"{key} {array.dtype.str} {array.shape}\0".encode())
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _splits(name: str, given: Any) -> dict[str, tuple[Any, Any]]:
    if isinstance(given, Mapping):
        if unknown := [key for key in given if key not in NAMES]:
            raise DataError(f"{name} gave {unknown[0]!r}, but a mapping has train, test and perhaps validation.")
        if missing := [key for key in ("train", "test") if key not in given]:
            raise DataError(f"{name} gave no {missing[0]!r}, but a mapping needs train and test, each a pair (inputs, targets).")
        return {key: _pair(f"{name}, {key}", pair) for key, pair in given.items()}
    inputs, targets = (_array(name, one) for one in _pair(name, given))
    if len(inputs) != len(targets) or len(inputs) < TEST_SHARE:
        raise DataError(f"{name} gave {len(inputs)} inputs and {len(targets)} targets, but a pair needs as many of both, at "
                        f"least {TEST_SHARE}.")
    order = np.argsort(np.random.Philox(key=SPLIT_KEY).random_raw(len(inputs)), kind="stable")
    held = len(inputs) // TEST_SHARE
    test, train = np.sort(order[:held]), np.sort(order[held:])
    return {"train": (inputs[train], targets[train]), "test": (inputs[test], targets[test])}


def _pair(where: str, given: Any) -> tuple[Any, Any]:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise DataError(f"{where}: expected a pair (inputs, targets) of arrays, not a {type(given).__name__}.")
    return given[0], given[1]


def _array(where: str, given: Any) -> np.ndarray:
    """Of an array, a tensor or a nested list."""
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    try:
        found = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected an array ({error}); convert it.") from error
    if found.ndim == 0 or found.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected an array of real numbers, not {found.dtype} of shape {list(found.shape)}; convert "
                        "it.")
    return found


def _split(where: str, inputs: Any, targets: Any) -> Split:
    x, y = _inputs(where, _array(where, inputs)), _targets(where, _array(where, targets))
    if not x.size or not y.size:
        raise DataError(f"{where}: inputs are {list(x.shape)} and targets {list(y.shape)}, but neither may be empty; give some "
                        "examples.")
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} inputs and {len(y)} targets; give as many of both.")
    per_position = y.ndim == 2 and y.dtype == np.int64 and y.shape == x.shape and (y.shape[1] > 1 or x.dtype == np.int64)
    if y.ndim == 2 and y.dtype == np.int64 and not per_position:
        if y.shape[1] != 1:
            raise DataError(f"{where}: integer targets are {list(y.shape[1:])} per example and inputs {list(x.shape[1:])}; give "
                            "one class per example, or one token per input token, or floats for numbers.")
        y = y[:, 0]
    if y.dtype == np.int64 and (bad := y[(y < 0) & ~((y == IGNORED) & (y.ndim == 2))]).size:
        raise DataError(f"{where}: the target {bad.flat[0]} is out of range; classes and tokens begin at 0"
                        + (f", and {IGNORED} marks tokens that do not count." if y.ndim == 2 else "."))
    if per_position and (y == IGNORED).all():
        raise DataError(f"{where}: every target is {IGNORED}, so nothing counts; give some tokens.")
    return Split(x, y)


def _inputs(where: str, x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint8:
        return _images(where, x)
    if np.issubdtype(x.dtype, np.floating) or x.dtype == bool:
        x = np.ascontiguousarray(x, np.float64 if x.dtype == np.float64 else np.float32)
        if not np.isfinite(x).all():
            raise DataError(f"{where}: inputs hold NaN or infinity; take those examples out or fill them in.")
        return x[:, None] if x.ndim == 1 else x
    if x.ndim != 2:
        raise DataError(f"{where}: integer inputs are tokens [N, T], but these are {list(x.shape)}; give floats, or images as "
                        "uint8.")
    if x.min(initial=0) < 0:
        raise DataError(f"{where}: the input token {x.min()} is out of range; tokens begin at 0.")
    return np.ascontiguousarray(x, np.int64)


def _images(where: str, x: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W], [N, C, H, W] or [N, H, W, C] with 1, 3 or 4 channels as [N, C, H, W]."""
    if x.ndim == 3:
        return np.ascontiguousarray(x[:, None])
    first, last = (x.ndim == 4 and x.shape[axis] in (1, 3, 4) for axis in (1, 3))
    if first == last:
        problem = "could have their channels first or last" if first else "are no images of 1, 3 or 4 channels"
        raise DataError(f"{where}: uint8 inputs of shape {list(x.shape)} {problem}; give [N, C, H, W] or [N, H, W, C], or "
                        "floats, or tokens as int64.")
    return np.ascontiguousarray(x if first else np.moveaxis(x, 3, 1))


def _targets(where: str, y: np.ndarray) -> np.ndarray:
    if np.issubdtype(y.dtype, np.floating):
        if y.ndim > 2:
            raise DataError(f"{where}: targets of shape {list(y.shape)}, but numbers are [N] or [N, columns].")
        y = np.ascontiguousarray(y, np.float64 if y.dtype == np.float64 else np.float32)
        if not np.isfinite(y).all():
            raise DataError(f"{where}: targets hold NaN or infinity; take those examples out or fill them in.")
        return y
    if y.ndim > 2:
        raise DataError(f"{where}: integer targets of shape {list(y.shape)}, but classes are [N] and tokens [N, T].")
    return np.ascontiguousarray(y, np.int64)


def _kind(split: Split) -> Kind:
    if split.targets.dtype != np.int64:
        return Kind.NUMBERS
    return Kind.TOKENS if split.targets.ndim == 2 else Kind.CLASSES
