"""Loss and gradients of one batch, for one run or for several runs as one program."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from experiments.lab.declare.config import Model, Precision, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.models.dropout import counter_names
from experiments.lab.training.losses import Task
from experiments.lab.training.replay import Function, record

RECORD_AFTER = 30
"""batches before one is recorded: recording costs as much as some twenty"""


Pair = tuple[Tensor, Tensor]


def loss_and_gradients(config: RunConfig, model: nn.Module, *, members: bool, batch_size: int | None = None) -> Function:
    """f(parameters, counter, inputs, targets) = (loss, *gradients) of b examples' part in the mean cross-entropy of a batch of B.

    B is `batch_size`, by default the config's; a batch that grows (`batch_growth`) has another function for each size.
    parameters: as `model.parameters()`; counter [3] (see `models.dropout`); inputs [b, ...]; targets [b]; loss 0-d, the sum
    over the examples / B, of targets smoothed as the config says. A last argument weights [b] multiplies the examples'
    losses in the gradients alone: the loss is reported without them, and batch norm knows nothing of them. With `members`
    everything has a leading axis of members, and so have loss and gradients: each of its own member alone.
    """
    names = [name for name, _ in model.named_parameters()]
    counters = counter_names(model)
    whole = batch_size or config.batch_size

    def loss(parameters: Sequence[Tensor], counter: Tensor, inputs: Tensor, targets: Tensor, *weights: Tensor) -> Pair:
        """What is descended, and what is reported."""
        tensors = dict(zip(names, parameters, strict=True)) | dict.fromkeys(counters, counter)
        outputs = functional_call(model, tensors, (inputs,))
        if weights:
            each = nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=config.label_smoothing)
            return (each * weights[0]).sum() / whole, each.detach().sum() / whole
        mean = nn.functional.cross_entropy(outputs, targets, label_smoothing=config.label_smoothing)
        mean = mean if len(targets) == whole else mean * (len(targets) / whole)
        return mean, mean

    losses: Callable[..., Pair] = vmap(loss) if members else loss

    def both(parameters: Sequence[Tensor], counter: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
        leaves = [p.detach().requires_grad_() for p in parameters]
        with torch.enable_grad(), precision(config, counter.device):
            objective, value = losses(leaves, counter, *batch)
            gradients = torch.autograd.grad(objective.sum() if members else objective, leaves)
        return value.detach(), *(in_order_of(g, p) for g, p in zip(gradients, leaves, strict=True))

    return both


def task_gradients(config: RunConfig, model: nn.Module, task: Task) -> Function:
    """f(parameters, counter, inputs, targets) = (sum, weight, *gradients of the sum) of any network and loss.

    parameters: those with `requires_grad`, as `model.parameters()`. Weights [b] of examples multiply their sums, in what is
    reported too.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    counters = counter_names(model)
    smooth = {"label_smoothing": config.label_smoothing} if config.label_smoothing else {}

    def sums(parameters: Sequence[Tensor], counter: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
        leaves = [p.detach().requires_grad_() for p in parameters]
        tensors = dict(zip(names, leaves, strict=True)) | dict.fromkeys(counters, counter)
        with torch.enable_grad(), precision(config, counter.device):
            terms = task.loss(functional_call(model, tensors, (batch[0],)), batch[1], **smooth)
            if len(batch) > 2 and terms.sums.dim() == 0:
                raise ConfigError("noise_batch needs the loss of each example; let the loss return [B]")
            total = (terms.sums * batch[2]).sum() if len(batch) > 2 else terms.total
            gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        weight = terms.weight.detach()
        return total.detach(), weight, *(in_order_of(g, p) for g, p in zip(gradients, leaves, strict=True))

    return sums


def in_order_of(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` in `like`'s memory order, which optimizer kernels walk."""
    if all(a == b or size == 1 for a, b, size in zip(tensor.stride(), like.stride(), like.shape, strict=True)):
        return tensor
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()


class Gradient:
    """Mean loss and gradients over batches of any size, in micro-batches; replayed on a CPU once a shape comes often."""

    def __init__(self, config: RunConfig, model: nn.Module, parameters: Sequence[Tensor], micro_batch: int | None,
                 *, members: bool, replays: bool, task: Task | None = None) -> None:
        self.whole = config.batch_size if config.batch_growth == 1 else None
        self.sums = task is not None and not (task.plain and isinstance(config.model, Model))
        """whether functions give sums with their weight, and not parts of a mean"""
        if self.sums and config.penalty_batch is not None:
            raise ConfigError("penalty_batch is for built-in models and cross-entropy over classes; leave it out")
        self.function_of = lambda whole: (
            task_gradients(config, model, task) if self.sums and task is not None
            else loss_and_gradients(config, model, members=members, batch_size=whole)
        )
        self._functions: dict[int, Function] = {}
        self.parameters, self.size, self.replays = [p.detach() for p in parameters], micro_batch, replays
        self.axis, self.record_after = int(members), RECORD_AFTER
        self._seen: dict[tuple[int, int], int] = {}
        self._programs: dict[tuple[int, int], Function | None] = {}

    def __call__(self, counter: Tensor, *batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients, the mean over all examples of the batch: inputs, targets and weights where there are any.

        Of fewer examples than a batch of constant size has, their part in its mean; a batch that grows is as large as it comes.
        """
        axis, count = self.axis, batch[1].shape[self.axis]
        whole = self.whole or count
        if self.size is None or self.size >= count:
            return self._mean(self._part(whole, counter, *batch))
        parts = []
        for first in range(0, count, self.size):
            length = min(self.size, count - first)
            moved = counter.clone()
            moved[..., 2] += first
            part = self._part(whole, moved, *(t.narrow(axis, first, length) for t in batch))
            parts = [part] if not parts else [[a + b for a, b in zip(parts[0], part, strict=True)]]
        return self._mean(parts[0])

    def _mean(self, part: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients of a whole batch; of sums over what counts, divided by its weight."""
        if not self.sums:
            return part[0], list(part[1:])
        total, weight, *gradients = part
        weight = torch.where(weight == 0, torch.ones_like(weight), weight)
        return total / weight, [g / weight for g in gradients]

    def _part(self, whole: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Of examples that are a part of a batch of `whole`."""
        shape = inputs[-1].shape[self.axis], whole
        if (program := self._programs.get(shape)) is not None:
            return program(*inputs)
        if whole not in self._functions:
            self._functions[whole] = self.function_of(whole)
        function = self._functions[whole]
        self._seen[shape] = self._seen.get(shape, 0) + 1
        if self.replays and self._seen[shape] > self.record_after and shape not in self._programs:
            self._programs[shape] = record(function, self.parameters, inputs, self.axis)
        return function(self.parameters, *inputs)


def norms(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Float64 l2 norm over all `tensors` together, 0-d; with `axis` 1 one per member, [M]. No host sync."""
    parts = [torch.linalg.vector_norm(t.reshape(*t.shape[:axis], -1), dim=-1, dtype=torch.float64) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def precision(config: RunConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if config.precision is Precision.BFLOAT16:
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
