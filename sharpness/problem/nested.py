"""Nested inputs and targets: tensors, and dicts, lists, tuples and named tuples of them."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_SAMPLE = 2**16  # bytes of a tensor whose places count in its fingerprint
_PLAIN = (bool, int, float, str, bytes, type(None))


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with each tensor replaced by `function` of it; what holds no tensors stays itself."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        parts = {key: mapped(function, part) for key, part in value.items()}
        if type(value) is dict or not hasattr(value, "update"):
            return parts
        other = copy.copy(value)  # a collator's own kind of dict
        other.update(parts)  # pyright: ignore[reportAttributeAccessIssue]
        return other
    if isinstance(value, (list, tuple)):
        return rebuilt(value, [mapped(function, part) for part in value])
    return value


def rebuilt(value: Any, parts: list[Any]) -> Any:
    """A list, tuple or named tuple like `value` with other parts."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in `value`, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_of(part)


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with its tensors there, cut off from what computed them; objects that know `.to` are asked."""
    if isinstance(value, (Tensor, Mapping, list, tuple)) or not hasattr(value, "to"):
        return mapped(lambda t: (t.clone() if t.is_inference() else t.detach()).to(device), value)
    return value.to(device)


def cloned(value: Any) -> Any:
    """A copy that a model may write into."""
    if isinstance(value, (Tensor, Mapping, list, tuple, *_PLAIN)):
        return mapped(lambda t: t.detach().clone(), value)
    return copy.deepcopy(value)


def rows(value: Any) -> int | None:
    """The number of examples: length of the first tensor with a dimension, or of a list with one entry per example;
    None where nothing has a length."""
    if isinstance(value, Tensor):
        return value.size(0) if value.ndim else None
    if isinstance(value, list) and value and not _stacked(value):
        return len(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return next((n for n in map(rows, parts) if n is not None), None)


def _stacked(parts: list[Any]) -> bool:
    """Whether a list holds tensors over the same examples, not one entry per example."""
    return all(isinstance(p, Tensor) and p.ndim > 0 for p in parts) and len({p.size(0) for p in parts}) == 1


def take(value: Any, index: Tensor, length: int) -> Any:
    """The examples `index` [i] of a batch of `length`: tensors with the batch first are cut, also inside dicts, lists
    and tuples; other tensors and plain values are shared by all examples. A list that holds one entry per example is cut
    itself.

    Raises ValueError for an object that cannot be cut.
    """
    if isinstance(value, _PLAIN) or (length == 1 and index.numel() == 1):
        return value
    if isinstance(value, Tensor):
        if not value.ndim or value.size(0) != length:
            return value
        if value.is_nested or value.layout != torch.strided:
            raise ValueError(
                f"inputs hold a tensor of layout {value.layout}, which cannot be cut into examples: pass data as a list "
                "of batches"
            )
        return value.index_select(0, index.to(value.device))
    if isinstance(value, Mapping):
        parts = {key: take(part, index, length) for key, part in value.items()}
        return parts
    if isinstance(value, (list, tuple)):
        batched = any(isinstance(part, Tensor) and part.ndim and part.size(0) == length for part in value)
        if isinstance(value, list) and len(value) == length and not batched:
            return [value[int(i)] for i in index]
        return rebuilt(value, [take(part, index, length) for part in value])
    raise ValueError(f"inputs hold a {type(value).__name__}, which cannot be cut into examples: pass data as a list of "
                     "batches of one example")


def fingerprint(value: Any) -> tuple[Any, ...]:
    """Equal for equal values: types, shapes, the sum of all bytes as integers, and a checksum of some 65,000 bytes in
    their places."""
    if isinstance(value, Tensor):
        return (str(value.dtype), str(value.layout), *(_checksum(part) for part in _stored(value)))
    if isinstance(value, Mapping):
        return tuple((str(key), fingerprint(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return (len(value), *(fingerprint(part) for part in value))
    return (repr(value),) if isinstance(value, _PLAIN) else (type(value).__qualname__,)


def _stored(t: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor consists of."""
    t = t.detach()
    if t.is_nested:
        parts: Any = t
        return [parts.values(), parts.offsets()] if t.layout == torch.jagged else list(t.unbind())
    if t.layout == torch.sparse_coo:
        return [t._indices(), t._values()]
    if t.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [t.crow_indices(), t.col_indices(), t.values()]
    if t.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [t.ccol_indices(), t.row_indices(), t.values()]
    return [t]


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included, in the same layout, precision and place."""
    if (a.shape, a.dtype, a.device, a.layout) != (b.shape, b.dtype, b.device, b.layout):
        return False
    pairs = zip(_stored(a), _stored(b), strict=True)
    return all(x.shape == y.shape and (torch.equal(x, y) or bool(((x == y) | ((x != x) & (y != y))).all())) for x, y in pairs)


def _checksum(t: Tensor) -> tuple[Any, ...]:
    flat = t.reshape(-1).contiguous().view(torch.uint8)
    whole = flat.view(torch.int64) if flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0 else flat
    step = (flat.numel() // _SAMPLE) | 1  # odd: other bytes of each number
    return tuple(t.shape), int(whole.sum()), zlib.crc32(flat[::step].contiguous().cpu().numpy().tobytes())
