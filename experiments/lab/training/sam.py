"""Sharpness-aware minimisation (SAM, ASAM), and the penalty of the gradient's norm: updates that look at a batch twice, the
second time at perturbed weights.

The weights are perturbed where they lie, so replays and CUDA graphs are used as they are, and are put back from a copy:
bitwise the old ones. Both passes see the same examples, dropout masks and weights of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.lab.declare.config import RunConfig
from experiments.lab.training.gradient import Gradient, norms

_torch: Any = torch  # its kernels on lists are missing in its stubs

Batch = Callable[..., tuple[Tensor, list[Tensor]]]
"""f(counter, *batch) = (loss, gradients), as `Gradient` is called"""


def descent(config: RunConfig, gradient: Gradient) -> Batch:
    """What gives an update its loss and gradients: `gradient` itself, or what looks at the batch twice."""
    if config.sam_rho:
        return SAM(config, gradient)
    return GradientPenalty(config, gradient) if config.gradient_penalty else gradient


class Perturbed:
    """Gradients at w + d, of one run or (axis 1) of several as one program."""

    def __init__(self, config: RunConfig, gradient: Gradient) -> None:
        self.config, self.gradient, self.axis = config, gradient, gradient.axis
        self.kept = [torch.empty_like(p) for p in gradient.parameters]

    @torch.no_grad()
    def at(self, perturbation: Sequence[Tensor], *batch: Tensor) -> list[Tensor]:
        """The batch's gradients at w + `perturbation`; w is afterwards what it was."""
        parameters = self.gradient.parameters
        _torch._foreach_copy_(self.kept, parameters)
        _torch._foreach_add_(parameters, list(perturbation))
        _, gradients = self.gradient(*batch)
        _torch._foreach_copy_(parameters, self.kept)
        return gradients


class SAM(Perturbed):
    """The loss at w, and the gradient at w + e, e the `sam_perturbation`.

    Weight decay and clipping are the optimizer's: they act on this gradient and on w, not on e (Foret et al. 2021, eq. 1).
    """

    def __call__(self, *batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss, gradients = self.gradient(*batch)
        return loss, self.at(sam_perturbation(self.config, self.gradient.parameters, gradients, self.axis), *batch)


@torch.no_grad()
def sam_perturbation(config: RunConfig, parameters: Sequence[Tensor], gradients: Sequence[Tensor], axis: int = 0) -> list[Tensor]:
    """e = rho g / ||g||_2 over all weights (Foret et al. 2021, eq. 2, p = 2); 0 where g is 0.

    `sam_adaptive`: e = rho T^2 g / ||T g||_2 with T = |w| elementwise (Kwon et al. 2021, eq. 8), without their added
    constant: a weight of exactly 0 stays. With `axis` 1 everything has a leading axis of members, each with its own norm.
    """
    scaled = gradients
    if config.sam_adaptive:
        scaled = [p * g for p, g in zip(parameters, gradients, strict=True)]  # T g except for signs
    norm = norms(scaled, axis)
    factor = torch.where(norm > 0, config.sam_rho / norm, 0.0).to(gradients[0].dtype)
    if config.sam_adaptive:
        scaled = [p * s for p, s in zip(parameters, scaled, strict=True)]
    return [s * factor.view(*factor.shape, *[1] * (s.dim() - axis)) for s in scaled]


LENGTH = 0.01
"""how far from w the penalty's second gradient is taken"""


class GradientPenalty(Perturbed):
    """The loss at w, and the gradient of the mean over a batch's parts k of L_k + c ||grad L_k||^2 / 2: of g_k + c H_k g_k.

    c is `gradient_penalty`, a part has `penalty_batch` examples (default: the whole batch). H_k g_k is the forward difference
    (grad L_k(w + e g_k) - g_k) / e with e = 0.01 / ||g_k||, as Geiping et al. 2022 take it; 0 where g_k is 0. The loss is
    reported without the penalty.
    """

    def __call__(self, counter: Tensor, *batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        count = batch[1].shape[self.axis]
        size = self.config.penalty_batch or count
        loss, gradients = self._part(size / count, counter, *(t.narrow(self.axis, 0, size) for t in batch))
        for first in range(size, count, size):
            moved = counter.clone()
            moved[..., 2] += first
            part, more = self._part(size / count, moved, *(t.narrow(self.axis, first, size) for t in batch))
            loss, gradients = loss + part, [a + b for a, b in zip(gradients, more, strict=True)]
        return loss, gradients

    @torch.no_grad()
    def _part(self, share: float, *batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Of a part that is this share of the batch: its share of the loss and of the gradient."""
        loss, gradients = self.gradient(*batch)
        norm = norms(gradients, self.axis)

        def times(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
            same = factor.to(gradients[0].dtype)
            return [t * same.view(*same.shape, *[1] * (t.dim() - self.axis)) for t in tensors]

        nearby = self.at(times(gradients, torch.where(norm > 0, LENGTH / norm, 0.0)), *batch)
        rises = [near - g for near, g in zip(nearby, gradients, strict=True)]
        added = times(rises, self.config.gradient_penalty * norm / share / LENGTH)
        return loss, [g + more for g, more in zip(gradients, added, strict=True)]
