"""The optimizer of a configuration over a list of parameters: torch's fused kernels, called directly.

`torch.optim` spends 30 to 45 microseconds an update on Python, as much as the kernel itself on a small network. The
equations are its own (heavy ball with dampening 0, Adam, AdamW), and the tests compare every update with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.lab.config import Optimizer, RunConfig

_torch: Any = torch  # its kernels are missing in its stubs

SLOTS = {
    Optimizer.SGD: ("momentum_buffer",),
    Optimizer.ADAM: ("exp_avg", "exp_avg_sq", "step"),
    Optimizer.ADAMW: ("exp_avg", "exp_avg_sq", "step"),
}


def slot_names(config: RunConfig) -> tuple[str, ...]:
    """What an update remembers of each parameter; SGD without momentum nothing."""
    return () if config.optimizer is Optimizer.SGD and not config.momentum else SLOTS[config.optimizer]


class Update:
    """w <- w - optimizer(gradient), in place. `slots[name]` has one tensor a parameter, laid out in memory as it is."""

    def __init__(self, config: RunConfig, parameters: Sequence[Tensor]) -> None:
        self.config = config
        self.parameters = [p.detach() for p in parameters]
        self.slots: dict[str, list[Tensor]] = {
            name: [p.new_zeros((), dtype=torch.float32) if name == "step" else torch.zeros_like(p) for p in self.parameters]
            for name in slot_names(config)
        }

    def __call__(self, gradients: Sequence[Tensor], lr: float | Tensor) -> None:
        """One update at learning rate `lr` (a tensor where a CUDA graph replays it). Gradients must be in their
        parameters' memory order: the kernels walk memory."""
        c, s = self.config, self.slots
        with torch.no_grad():
            if c.optimizer is Optimizer.SGD:
                _torch._fused_sgd_(
                    self.parameters, list(gradients), s.get("momentum_buffer", []), weight_decay=c.weight_decay,
                    momentum=c.momentum, lr=lr, dampening=0.0, nesterov=c.nesterov, maximize=False, is_first_step=False,
                )  # fmt: skip
                return
            _torch._foreach_add_(s["step"], 1.0)
            kernel = _torch._fused_adam_ if c.optimizer is Optimizer.ADAM else _torch._fused_adamw_
            kernel(
                self.parameters, list(gradients), s["exp_avg"], s["exp_avg_sq"], [], s["step"], lr=lr, beta1=c.beta1,
                beta2=c.beta2, weight_decay=c.weight_decay, eps=c.eps, amsgrad=False, maximize=False,
            )  # fmt: skip
