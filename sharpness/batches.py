"""Data as batches: what is accepted, and the length of batch that a machine computes fastest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

Batches = Iterable[tuple[Any, Tensor]]
Data = tuple[Tensor, Tensor] | Batches

_PROBE = 8  # examples to measure the size of activations with
_ACTIVATIONS = {"cpu": 32 * 2**20, "cuda": 2**31}
"""bytes of a forward pass's outputs in one chunk: on CPUs the caches', measured (conv net: 1.8 times as fast in
chunks of 125 as in one batch of 1,000); on GPUs enough to keep them busy"""


@dataclass(frozen=True)
class TensorBatches:
    """Inputs [N, ...] and targets [N, ...], split into consecutive batches; the last may be shorter."""

    inputs: Tensor
    targets: Tensor
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.inputs.split(self.batch_size), self.targets.split(self.batch_size), strict=True)


def chunk_length(model: nn.Module, inputs: Tensor, device: torch.device) -> int:
    """The number of examples whose activations take about the stated bytes; all chunks about equally long."""
    probe = inputs[:_PROBE].to(device)
    with torch.enable_grad(), OutputBytes() as seen:  # without gradients, attention takes another way
        model(probe)
    most = _ACTIVATIONS.get(device.type, _ACTIVATIONS["cpu"]) * len(probe) // max(seen.total, 1)
    chunks = -(-len(inputs) // max(most, 16))
    return -(-len(inputs) // chunks)


class OutputBytes(TorchDispatchMode):
    """Counts the bytes that operations write anew; views of what is there already cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # shielding the mode from the compiler imports it, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for part in tree_flatten(result)[0]:
            if isinstance(part, Tensor) and part.untyped_storage().data_ptr() not in given:
                self.total += part.numel() * part.element_size()
        return result


def as_batches(data: Data, batch_size: int | None) -> Batches:
    if batch_size is not None and (
        isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
    ):
        raise ValueError(f"batch_size is {batch_size!r}: it must be a positive integer or None")
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        inputs, targets = data
        assert isinstance(inputs, Tensor) and isinstance(targets, Tensor)
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            raise ValueError(
                f"data has inputs of shape {tuple(inputs.shape)} and targets of shape "
                f"{tuple(targets.shape)}: both need the same number of examples in their first dimension"
            )
        return TensorBatches(inputs, targets, batch_size or max(len(inputs), 1))
    if batch_size is not None:
        raise ValueError(
            "batch_size splits a pair of tensors, and data is an iterable of batches: leave batch_size None"
        )
    if not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        _refuse_data(data)
    if isinstance(data, Iterator):  # asked without iter(data): a loader's start draws from the global generator
        raise ValueError(
            "data is a one-shot iterator and is needed several times: pass a list of it or a DataLoader"
        )
    return data  # pyright: ignore[reportReturnType]


def survey(batches: Batches) -> tuple[list[int], tuple[Any, Tensor]]:
    """The length of each batch, and the first batch that is not empty."""
    lengths: list[int] = []
    first: tuple[Any, Tensor] | None = None
    for batch in batches:
        if not (
            isinstance(batch, (tuple, list))
            and len(batch) == 2
            and isinstance(batch[1], Tensor)
            and batch[1].ndim
        ):
            _refuse_data(batch)
        lengths.append(len(batch[1]))
        if first is None and lengths[-1]:
            first = (batch[0], batch[1])
    if first is None:
        raise ValueError("data has no examples: pass at least one")
    return lengths, first


def _refuse_data(found: Any) -> NoReturn:
    raise ValueError(
        f"data holds a {type(found).__name__} where a batch (inputs, targets) belongs, targets a tensor "
        "with the batch first: pass a pair of tensors, or a list or DataLoader of such pairs"
    )
