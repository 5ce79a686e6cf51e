"""Out of memory: how it is recognised, and the next smaller micro-batch. Nothing else may change."""

from __future__ import annotations

import torch

from experiments.lab.declare.config import Norm, RunConfig

_WORDS = ("not enough memory", "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own error, CUDA's, and the RuntimeErrors of torch's CPU allocator and of cuBLAS."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def smaller(config: RunConfig, micro_batch: int | None) -> int | None:
    """Half of the present micro-batch, rounded up to whole normalisation batches; None where it cannot shrink.

    Batch norm over the whole batch cannot be split at all.
    """
    if config.norm is Norm.BATCH:
        return None
    unit = config.norm_batch or 1
    largest = config.batch_size * config.batch_growth**2
    present = min(micro_batch or largest, largest)
    half = -(-present // (2 * unit)) * unit
    return half if half < present else None
