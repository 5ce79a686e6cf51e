"""What is minimised and scored: the built-in losses and a user's own, each as sums over what counts and their weights.

The loss of a batch is the sum over the weight, whatever its micro-batches. A user's function of (outputs, targets) may return
[B], [B, T], (sum, weight), or a scalar, which is taken for the mean over the batch's examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.lab.datasets import Kind
from experiments.lab.declare.config import Loss, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.session_code import check_code
from sharpness.problem.named import called, named, needs_nothing

IGNORED = -100


@dataclass(frozen=True)
class Terms:
    """sums: [B], of each example, or 0-d, of all; weights: what each counts, shaped alike, None where that is 1."""

    sums: Tensor
    weights: Tensor | None = None

    @property
    def total(self) -> Tensor:
        return self.sums.sum()

    @property
    def weight(self) -> Tensor:
        return self.sums.new_tensor(float(len(self.sums))) if self.weights is None else self.weights.sum()


LossFunction = Callable[..., Terms]
"""of outputs and targets, and cross-entropy of `label_smoothing`"""


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Terms:
    """Of outputs [B, classes] and targets [B], or [B, T, tokens] and [B, T], of which -100 counts nothing; in nats."""
    if targets.dim() == 1:
        return Terms(nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=label_smoothing))
    each = nn.functional.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none", ignore_index=IGNORED,
                                       label_smoothing=label_smoothing)
    return Terms(each.sum(1), (targets != IGNORED).sum(1).to(each.dtype))


@dataclass(frozen=True)
class Task:
    """What targets are, and the loss; `plain` is mean cross-entropy over classes, which has the fastest path."""

    kind: Kind
    loss: LossFunction
    plain: bool

    @property
    def accurate(self) -> bool:
        """Whether accuracy has a meaning."""
        return self.kind is not Kind.NUMBERS

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """0-d: the loss of a batch, as `sharpness` takes it."""
        terms = self.loss(outputs, targets)
        return terms.total / terms.weight


CLASSIFICATION = Task(Kind.CLASSES, cross_entropy, plain=True)
"""what every built-in data set was trained on at first"""


def task_of(config: RunConfig, kind: Kind) -> Task:
    """Raises `ConfigError` where the user's loss cannot be imported."""
    plain = config.loss is Loss.CROSS_ENTROPY and kind is Kind.CLASSES
    match config.loss:
        case Loss.CROSS_ENTROPY:
            return Task(kind, cross_entropy, plain)
        case Loss.MSE:
            return Task(kind, partial(_mean_over_columns, nn.functional.mse_loss), plain)
        case Loss.BCE:
            return Task(kind, partial(_mean_over_columns, nn.functional.binary_cross_entropy_with_logits), plain)
    return Task(kind, partial(_own, config.loss, own_loss(config.loss, config.loss_sha256)), plain)


def own_loss(name: str, recorded: str | None) -> Callable[..., Any]:
    """The loss that MODULE:NAME is, or that the function without required parameters, or the class, of that name returns."""
    check_code(name, recorded, "--loss")
    try:
        found = named(name, "--loss")
        if isinstance(found, type) or needs_nothing(found):
            found = called(found, name, "--loss")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not callable(found):
        raise ConfigError(f"--loss {name} gave a {type(found).__name__}, which cannot be called")
    return found


def _mean_over_columns(function: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> Terms:
    """Classes are one-hot; numbers [B] go with outputs [B] or [B, 1]."""
    if not targets.is_floating_point():
        targets = nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    if outputs.shape != targets.shape and outputs.numel() == targets.numel():
        outputs = outputs.reshape(targets.shape)
    each = function(outputs, targets, reduction="none")
    return Terms(each.flatten(1).mean(1) if each.dim() > 1 else each)


def _own(name: str, function: Callable[..., Any], outputs: Tensor, targets: Tensor) -> Terms:
    found = function(outputs, targets)
    count = len(targets)
    if isinstance(found, tuple):
        if len(found) != 2:
            raise ConfigError(f"--loss {name} returns {len(found)} values, but may return one tensor or (sum, weight)")
        total, weight = found
        return Terms(total.sum(), torch.as_tensor(weight, dtype=total.dtype, device=total.device).sum())
    if not isinstance(found, Tensor) or found.dim() > 2 or (found.dim() and len(found) != count):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"--loss {name} returns {shape} for {count} examples, but may return [B], [B, T], (sum, weight) or one "
                          "number")
    if found.dim() == 0:
        return Terms(found * count, found.new_tensor(float(count)))
    if targets.shape == found.shape and not targets.is_floating_point():
        counted = targets != IGNORED
        found, counts = torch.where(counted, found, 0.0), counted.to(found.dtype)
        return Terms(found if found.dim() == 1 else found.sum(1), counts if found.dim() == 1 else counts.sum(1))
    return Terms(found) if found.dim() == 1 else Terms(found.sum(1), found.new_full((count,), float(found.shape[1])))
