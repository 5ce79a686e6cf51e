"""Data as batches: what is accepted, how often they are read, and the length of batch that a machine computes fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sharpness.problem.calls import as_pair, length_of, refuse_data, said
from sharpness.problem.nested import cloned, fingerprint, rows, take, tensors_of

Batches = Iterable[Any]
Data = tuple[Any, Any] | Batches

PINNED = 2 * 2**30  # bytes of data that may be kept because they change between passes
_ENDLESS = 2**12  # batches of data without a length
_PROBE = 8  # examples to measure the size of activations with
_ACTIVATIONS = {"cpu": 32 * 2**20, "cuda": 2**31}
"""bytes of a forward pass's outputs in one chunk: on CPUs the caches', measured (conv net: 1.8 times as fast in
chunks of 125 as in one batch of 1,000); on GPUs enough to keep them busy"""


@dataclass(frozen=True)
class TensorBatches:
    """Inputs and targets, tensors [N, ...] or dicts, lists and tuples of them, split into consecutive batches; the last may
    be shorter."""

    inputs: Any
    targets: Any
    batch_size: int

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self.batch_size >= self.examples:
            yield self.inputs, self.targets
        elif isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor):
            yield from zip(self.inputs.split(self.batch_size), self.targets.split(self.batch_size), strict=True)
        else:
            for index in torch.arange(self.examples).split(self.batch_size):
                yield self.taken(index)

    @property
    def examples(self) -> int:
        """N."""
        return length_of(self.inputs, self.targets)

    def taken(self, index: Tensor) -> tuple[Any, Any]:
        """The examples `index` [i]."""
        return take(self.inputs, index, self.examples), take(self.targets, index, self.examples)


def chunk_length(run: Callable[[Any], Any], data: TensorBatches, device: torch.device) -> int:
    """The number of examples whose activations take about the stated bytes; all chunks about equally long. `run` is the
    model, as a function of examples of `data`."""
    few = min(_PROBE, data.examples)
    with torch.enable_grad(), OutputBytes() as seen:  # without gradients, attention takes another way
        run(torch.arange(few))
    most = _ACTIVATIONS.get(device.type, _ACTIVATIONS["cpu"]) * few // max(seen.total, 1)
    chunks = -(-data.examples // max(most, 16))
    return -(-data.examples // chunks)


def telling_rows(targets: Any, examples: int, few: int) -> Tensor:
    """A few examples at random from all, and one for each value that integer targets take (up to `few` more)."""
    chosen = np.random.default_rng(0).permutation(examples)[:few]
    first = next((t for t in tensors_of(targets) if t.ndim and t.size(0) == examples), None)
    if first is not None and not first.is_floating_point() and first.numel():
        _, places = np.unique(first.reshape(examples, -1)[:, 0].cpu().numpy(), return_index=True)
        chosen = np.union1d(chosen, places[:few])
    return torch.from_numpy(np.sort(chosen))


class OutputBytes(TorchDispatchMode):
    """Counts the bytes that operations write anew; views of what is there already cost nothing. `coarse` is a floating type
    of less than 32 bits that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.coarse: torch.dtype | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # shielding the mode from the compiler imports it, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_place(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for part in tree_flatten(result)[0]:
            if isinstance(part, Tensor) and _place(part) not in given:
                self.total += part.numel() * part.element_size()
                if part.is_floating_point() and part.element_size() < 4:
                    self.coarse = part.dtype
        return result


def _place(t: Tensor) -> int:
    """Where its numbers are; 0 for a sparse tensor, which has no place of its own."""
    try:
        return t.untyped_storage().data_ptr() if t.layout == torch.strided and not t.is_nested else 0
    except RuntimeError:  # inside torch.func
        return 0


def as_batches(data: Data, batch_size: int | None) -> Batches:
    """`data` as something that can be iterated again and again; a pair as `TensorBatches`."""
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}: it must be a positive integer or None")
    pair = as_whole(data)
    if pair is not None:
        inputs, targets = pair
        lengths = rows(inputs), rows(targets)
        if None in lengths or lengths[0] != lengths[1]:
            raise ValueError(
                f"data has inputs of shape {_shape(inputs)} and targets of shape {_shape(targets)}: both need the same number "
                "of examples in their first dimension"
            )
        return TensorBatches(inputs, targets, batch_size or max(lengths[0] or 0, 1))
    if batch_size is not None:
        raise ValueError("batch_size splits a pair of tensors, and data is an iterable of batches: leave batch_size None")
    if isinstance(data, (str, bytes, Tensor, np.ndarray)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        refuse_data(data)
    if isinstance(data, Iterator):  # asked without iter(data): a loader's start draws from the global generator
        raise ValueError("data is a one-shot iterator and is needed several times: pass a list of it or a DataLoader")
    return data


def as_whole(data: Any) -> tuple[Any, Any] | None:
    """(inputs, targets) of all data: a pair of tensors, or a tuple whose second part is a tensor and whose first is a dict,
    list or tuple of tensors with the same examples first."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        return None
    inputs, targets = data
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        return inputs, targets
    if any(isinstance(part, np.ndarray) for part in data):
        raise ValueError("data holds numpy arrays: pass tensors, as by torch.from_numpy")
    nested = isinstance(data, tuple) and isinstance(targets, Tensor) and isinstance(inputs, (dict, list, tuple))
    return (inputs, targets) if nested and next(tensors_of(inputs), None) is not None else None


def read(batches: Batches, start: Callable[[], None]) -> tuple[Any, tuple[Any, ...] | None]:
    """Batches to measure on, and a fingerprint of each where the next pass might give others: all of them, kept, if they are
    not too large, and none otherwise. `start` seeds the generators. Tensors and lists stay what they are.

    Raises ValueError for data that fail, that are no batches, or that do not end.
    """
    if isinstance(batches, TensorBatches):
        return batches, None
    start()
    kept: list[Any] | None = []
    prints, size = [], 0
    limit = max(_ENDLESS, _length(batches))
    source = iter(batches)  # a sequence without __iter__ too
    while True:
        try:
            batch = next(source)
        except StopIteration:
            break
        except Exception as error:
            raise ValueError(f"data fails at batch {len(prints)}: {said(error)}") from error
        pair = as_pair(batch)
        if isinstance(batches, (list, tuple)):
            prints.append(None)
            continue
        prints.append(fingerprint(pair))
        size += sum(t.numel() * t.element_size() for t in tensors_of(batch) if t.layout == torch.strided)
        if kept is not None and size <= PINNED:
            kept.append(cloned(batch))
        else:
            kept = None
        if len(prints) > limit:
            raise ValueError(f"data has not ended after {limit:,} batches: pass a list of those to measure on, such as "
                             "list(itertools.islice(loader, 100))")
    if isinstance(batches, (list, tuple)):
        return batches, None
    return kept, tuple(prints)


def _length(batches: Any) -> int:
    try:
        return len(batches)
    except TypeError:
        return 0


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return [_shape(part) for part in tensors_of(value)]
