"""What m-sharpness adds to a problem: batches of m examples, and losses of normalised logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpness.problem.arguments import check_count
from sharpness.problem.batches import TensorBatches
from sharpness.problem.calls import length_of
from sharpness.problem.problem import Loss, Problem

_SMALLEST_NORM = 1e-10  # of centred logits


def batches_of(problem: Problem, m: int | None, seed: int) -> Iterator[Problem]:
    """The problem of each batch of m examples, lazily; the whole one if m is None. Inside `untouched` only.

    A pair of tensors is shuffled by `seed` first: data sorted by class would give batches of one class each.
    Other data must come in batches of m; the last batch may be shorter. Raises ValueError otherwise.
    """
    if m is None:
        return iter([problem])
    check_count("m", m, "128")
    if m > problem.examples:
        raise ValueError(f"m is {m} and data has {problem.examples} examples: pass a smaller m, or None for all")
    if isinstance(problem.data, TensorBatches):
        return _shuffled(problem, problem.data, m, seed)
    lengths = [length_of(inputs, targets) for inputs, targets, _ in problem.passes()]
    if any(length != m for length in lengths[:-1]) or lengths[-1] > m:
        raise ValueError(
            f"m is {m} and data comes in batches of {sorted(set(lengths))[:4]}: pass a pair of tensors, or "
            "batches of m (the last may be shorter)"
        )
    return (problem.on([(inputs, targets)]) for inputs, targets, _ in problem.passes())


def _shuffled(problem: Problem, data: TensorBatches, m: int, seed: int) -> Iterator[Problem]:
    order = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(problem.examples))
    for index in order.split(m):
        yield problem.on(TensorBatches(*data.taken(index), min(data.batch_size, len(index))))


def normalised(loss: Loss) -> Loss:
    """The loss of (z - mean(z)) / max(||z - mean(z)||_2, 1e-10), z the logits of each example."""

    def of_normalised(outputs: Any, targets: Tensor) -> Tensor:
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(
                f"the model's outputs are {shape}: logit_normalised needs logits [examples, classes], at "
                "least 2 classes"
            )
        centred = outputs - outputs.mean(dim=1, keepdim=True)
        length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        return loss(centred / length.clamp_min(_SMALLEST_NORM), targets)

    return of_normalised
