"""Losses as command lines name them: sums over what counts and their weights, so that the loss of a batch is that of its parts.

The loss of a batch is the sum over the weight, however it is cut. A function of a user's, of (outputs, targets), may return
[B], [B, T], (sum, weight), or a scalar, which is taken for the mean over the batch's examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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


def mse(outputs: Tensor, targets: Tensor) -> Terms:
    """Squared errors, the mean over columns; classes are one-hot."""
    return _mean_over_columns(nn.functional.mse_loss, outputs, targets)


def bce(outputs: Tensor, targets: Tensor) -> Terms:
    """Binary cross-entropy of logits, the mean over columns; classes are one-hot."""
    return _mean_over_columns(nn.functional.binary_cross_entropy_with_logits, outputs, targets)


def own_loss(where: str) -> Callable[..., Any]:
    """The loss that MODULE:NAME is, or that the function without required parameters, or the class, of that name returns.

    ValueError, one sentence, where there is none.
    """
    found = named(where, "--loss")
    if isinstance(found, type) or (callable(found) and not isinstance(found, nn.Module) and needs_nothing(found)):
        found = called(found, where, "--loss")
    if not callable(found):
        raise ValueError(f"--loss {where} is or gave a {type(found).__name__}, which cannot be called")
    return found


def own_terms(where: str, function: Callable[..., Any], outputs: Tensor, targets: Tensor, *,
              wrong: type[ValueError] = ValueError) -> Terms:
    """What a user's loss returns as `Terms`; raises `wrong`, one sentence, where it may not return that."""
    found = function(outputs, targets)
    count = len(targets)
    if isinstance(found, tuple):
        if len(found) != 2:
            raise wrong(f"--loss {where} returns {len(found)} values, but may return one tensor or (sum, weight)")
        total, weight = found
        return Terms(total.sum(), torch.as_tensor(weight, dtype=total.dtype, device=total.device).sum())
    if not isinstance(found, Tensor) or found.dim() > 2 or (found.dim() and len(found) != count):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise wrong(f"--loss {where} returns {shape} for {count} examples, but may return [B], [B, T], (sum, weight) or one "
                    "number")
    if found.dim() == 0:
        return Terms(found * count, found.new_tensor(float(count)))
    if targets.shape == found.shape and not targets.is_floating_point():
        counted = targets != IGNORED
        found, counts = torch.where(counted, found, 0.0), counted.to(found.dtype)
        return Terms(found if found.dim() == 1 else found.sum(1), counts if found.dim() == 1 else counts.sum(1))
    return Terms(found) if found.dim() == 1 else Terms(found.sum(1), found.new_full((count,), float(found.shape[1])))


def mean_of(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """0-d: the loss of a batch."""
    terms = loss(outputs, targets)
    return terms.total / terms.weight


def mean_loss(where: str | None) -> Callable[..., Tensor]:
    """The mean loss of (outputs, targets) that a command line names: cross_entropy (also None), mse, bce, MODULE:NAME, or a name
    of torch.nn.functional or torch.nn. ValueError, one sentence, where there is none."""
    if where in (None, "cross_entropy"):
        return _mean_cross_entropy
    if where in ("mse", "bce"):
        return partial(mean_of, mse if where == "mse" else bce)
    if ":" in where:
        function = own_loss(where)
    else:
        function = getattr(nn.functional, where, getattr(nn, where, None))
        if function is None:
            raise ValueError(f"--loss {where!r} is no name of torch.nn.functional or torch.nn: pass cross_entropy, mse, bce, a "
                             "name such as l1_loss, or MODULE:NAME")
        function = called(function, where, "--loss") if isinstance(function, type) else function
    if isinstance(function, nn.Module) and function.state_dict():
        return function  # its parameters and buffers are the loss's own
    return partial(_mean_of_own, where, function)


def _mean_cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """torch's, or with the classes last, [B, T, tokens], where these are what fits the targets [B, T]."""
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and targets.dim() > 1 and not targets.is_floating_point():
        last = outputs.shape[:-1] == targets.shape
        second = outputs.dim() > 2 and (outputs.shape[0], *outputs.shape[2:]) == tuple(targets.shape)
        if last and second:
            raise ValueError(f"outputs {list(outputs.shape)} for targets {list(targets.shape)} could have their classes second "
                             "or last; pass a --loss of your own that says which")
        if last and targets.dim() == 2:
            return mean_of(cross_entropy, outputs, targets)
    return nn.functional.cross_entropy(outputs, targets)


def _mean_of_own(where: str, function: Callable[..., Any], outputs: Any, targets: Any) -> Any:
    """What the function gives where that is one number, or nothing that could be averaged."""
    if not isinstance(targets, Tensor) or not isinstance(outputs, Tensor):
        return function(outputs, targets)
    found = function(outputs, targets)
    if isinstance(found, Tensor) and found.dim() == 0:
        return found
    terms = own_terms(where, lambda *_: found, outputs, targets)
    return terms.total / terms.weight


def _mean_over_columns(function: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> Terms:
    """Classes are one-hot; numbers [B] go with outputs [B] or [B, 1]."""
    if not targets.is_floating_point():
        targets = nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    if outputs.shape != targets.shape and outputs.numel() == targets.numel():
        outputs = outputs.reshape(targets.shape)
    each = function(outputs, targets, reduction="none")
    return Terms(each.flatten(1).mean(1) if each.dim() > 1 else each)
