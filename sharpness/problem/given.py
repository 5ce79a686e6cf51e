"""Data as a user's function gives them: a mapping of splits, or one pair of arrays, in the form that training gives to a network.

A mapping has `train`, `test` and perhaps `validation`; its training examples are measured. Images are uint8, of which the
network sees (pixel / 255 - mean) / standard deviation, of each channel over the training examples, channels first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")
TEST_SHARE = 5
"""of one pair every fifth example of a random order that is always the same would be a test example of training"""
SPLIT_KEY = 20180613


def given_data(given: Any, option: str) -> tuple[Any, dict[str, Any]]:
    """The data to measure on, and of arrays `input_shape` and `outputs`, as a function that makes their network may take them.

    What is neither a mapping of splits nor a pair of arrays comes back as it is. ValueError, one sentence, where arrays are no
    task.
    """
    splits: dict[str, Any] = {}
    if isinstance(given, Mapping) and given and all(key in SPLITS for key in given):
        if "train" not in given:
            raise ValueError(f"{option} gave no 'train', but a mapping needs it, a pair (inputs, targets)")
        splits = dict(given)
        for name, pair in splits.items():
            if not _is_pair(pair):
                raise ValueError(f"{option}, {name}: expected a pair (inputs, targets) of arrays, as many of both")
    elif _is_pair(given):
        splits = {"train": given}
    if not splits:
        return given, {}
    tensors = {name: _pair(option, _tensor(x, np.float32), _tensor(y, np.int64)) for name, (x, y) in splits.items()}
    inputs, targets = tensors["train"]
    outputs = _outputs(tensors)
    if inputs.dtype == torch.uint8:
        inputs = _normalised(inputs, inputs if isinstance(given, Mapping) else inputs[_training_part(len(inputs))])
    return (inputs, targets), {"input_shape": tuple(inputs.shape[1:]), "outputs": outputs}


def _is_pair(given: Any) -> bool:
    return isinstance(given, (tuple, list)) and len(given) == 2 and all(
        isinstance(part, (Tensor, np.ndarray)) and part.ndim > 0 for part in given
    ) and len(given[0]) == len(given[1]) and not any(isinstance(part, Tensor) and part.is_nested for part in given)


def _tensor(array: Tensor | np.ndarray, of_bools: type) -> Tensor:
    """Of an array, floats in single precision, as training takes them; tensors as they are."""
    if isinstance(array, Tensor):
        return array
    if array.dtype == np.uint8:
        return torch.from_numpy(array.copy())
    kinds = {"b": of_bools, "f": np.float32}
    return torch.from_numpy(array.astype(kinds.get(array.dtype.kind, np.int64)))


def _pair(option: str, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Images with their channels first; targets that count in int64, classes [N, 1] as [N]."""
    if inputs.dtype == torch.uint8:
        inputs = _channels_first(option, inputs)
    elif _is_whole(inputs):
        inputs = inputs.long()
    if _is_whole(targets):
        targets = targets.long()
        if targets.ndim == 2 and targets.shape[1] == 1 and targets.shape != inputs.shape:
            targets = targets[:, 0]
    return inputs, targets


def _is_whole(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)


def _channels_first(option: str, x: Tensor) -> Tensor:
    if x.ndim == 3:
        return x[:, None]
    first, last = (x.ndim == 4 and x.shape[axis] in (1, 3, 4) for axis in (1, 3))
    if first == last:
        problem = "could have their channels first or last" if first else "are no images of 1, 3 or 4 channels"
        raise ValueError(f"{option}: uint8 inputs of shape {list(x.shape)} {problem}; give [N, C, H, W] or [N, H, W, C], or "
                         "floats")
    return x if first else x.movedim(3, 1).contiguous()


def _normalised(images: Tensor, training: Tensor) -> Tensor:
    pixels = training.double() / 255
    mean, std = (found.float().view(1, -1, 1, 1) for found in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)))
    return (images.float() / 255 - mean) / torch.where(std == 0, 1.0, std)


def _training_part(count: int) -> Tensor:
    """What training would take of one pair."""
    order = np.argsort(np.random.Philox(key=SPLIT_KEY).random_raw(count), kind="stable")
    return torch.from_numpy(np.sort(order[count // TEST_SHARE :]))


def _outputs(splits: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """How many classes, columns or tokens there are."""
    inputs, targets = splits["train"]
    if targets.is_floating_point() or targets.is_complex():
        return 1 if targets.ndim == 1 else targets.shape[1]
    most = max(int(t.max()) for _, t in splits.values())
    if targets.ndim == 2 and not inputs.is_floating_point() and inputs.dtype != torch.uint8:
        most = max(most, *(int(x.max()) for x, _ in splits.values()))
    return max(2, 1 + most)
