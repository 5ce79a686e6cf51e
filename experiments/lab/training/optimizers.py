"""The optimizer of a configuration over a list of parameters: torch's fused kernels, called directly.

`torch.optim` spends 30 to 45 microseconds per update on Python, as much as the kernel itself on a small network. The
equations are its own (heavy ball with dampening 0, Adam, AdamW), and the tests compare every update with it. LARS and
LAMB are in `layerwise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.lab.declare.config import Optimizer, RunConfig
from experiments.lab.training.gradient import norms
from experiments.lab.training.layerwise import lamb_, lars_
from experiments.lab.training.state import Tensors

_torch: Any = torch  # its kernels are missing in its stubs

SLOTS = {
    Optimizer.SGD: ("momentum_buffer",),
    Optimizer.ADAM: ("exp_avg", "exp_avg_sq", "step"),
    Optimizer.ADAMW: ("exp_avg", "exp_avg_sq", "step"),
    Optimizer.LARS: ("momentum_buffer",),
    Optimizer.LAMB: ("exp_avg", "exp_avg_sq", "step"),
}
AVERAGE = "average"
"""the slot of the weights' exponential average"""


def slot_names(config: RunConfig) -> tuple[str, ...]:
    """What an update remembers of each parameter; SGD and LARS without momentum nothing but an average of the weights."""
    bare = config.optimizer in (Optimizer.SGD, Optimizer.LARS) and not config.momentum
    return (() if bare else SLOTS[Optimizer(config.optimizer)]) + ((AVERAGE,) if config.ema else ())


def clipped(gradients: Sequence[Tensor], largest: float | None, axis: int = 0) -> list[Tensor]:
    """g min(1, largest / ||g||_2), the norm over all tensors together; with `axis` 1 each member's own. None: g."""
    if largest is None:
        return list(gradients)
    factor = (largest / norms(gradients, axis)).clamp(max=1).to(gradients[0].dtype)
    return [g * factor.view(*factor.shape, *[1] * (g.dim() - axis)) for g in gradients]


class Update:
    """w <- w - optimizer(gradient), in place. `slots[name]` has one tensor per parameter, laid out in memory as it is.

    The gradient is clipped first (`clip_norm`), then weight decay joins it. With `ema` a the slot `average` follows each
    update: average <- a average + (1 - a) w. It starts at the initial weights and is not corrected for that: after t
    updates they still have the share a^t.
    """

    def __init__(self, config: RunConfig, parameters: Sequence[Tensor]) -> None:
        self.config = config
        self.parameters = [p.detach() for p in parameters]
        self.slots: dict[str, list[Tensor]] = {name: [_start(name, p) for p in self.parameters] for name in slot_names(config)}

    def __call__(self, gradients: Sequence[Tensor], lr: float | Tensor) -> None:
        """One update at learning rate `lr` (a tensor where a CUDA graph replays it). Gradients must be in their
        parameters' memory order: the kernels walk memory."""
        with torch.no_grad():
            self._move(clipped(gradients, self.config.clip_norm), lr)
            if self.config.ema:
                _torch._foreach_lerp_(self.slots[AVERAGE], self.parameters, 1 - self.config.ema)

    @property
    def averages(self) -> bool:
        """Whether other weights are evaluated than those that are updated."""
        return AVERAGE in self.slots

    def averaged(self) -> list[Tensor]:
        return self.slots[AVERAGE]

    def state(self) -> Tensors:
        return {f"optimizer.{index}.{slot}": value.clone()
                for slot, values in self.slots.items() for index, value in enumerate(values)}

    def load(self, tensors: Tensors) -> None:
        """Copied in place: replays hold on to these tensors."""
        for slot, values in self.slots.items():
            for index, value in enumerate(values):
                value.copy_(tensors[f"optimizer.{index}.{slot}"])

    def _move(self, gradients: list[Tensor], lr: float | Tensor) -> None:
        c, s, w = self.config, self.slots, self.parameters
        if c.optimizer is Optimizer.SGD:
            _torch._fused_sgd_(
                w, gradients, s.get("momentum_buffer", []), weight_decay=c.weight_decay, momentum=c.momentum, lr=lr,
                dampening=0.0, nesterov=c.nesterov, maximize=False, is_first_step=False,
            )
            return
        if c.optimizer is Optimizer.LARS:
            buffers = s.get("momentum_buffer", [None] * len(w))
            lars_(w, gradients, buffers, lr=lr, trust=c.trust, momentum=c.momentum, decay=c.weight_decay)
            return
        _torch._foreach_add_(s["step"], 1.0)
        if c.optimizer is Optimizer.LAMB:
            lamb_(w, gradients, s["exp_avg"], s["exp_avg_sq"], count=s["step"][0], lr=lr, beta1=c.beta1, beta2=c.beta2,
                  eps=c.eps, decay=c.weight_decay)
            return
        kernel = _torch._fused_adam_ if c.optimizer is Optimizer.ADAM else _torch._fused_adamw_
        kernel(w, gradients, s["exp_avg"], s["exp_avg_sq"], [], s["step"], lr=lr, beta1=c.beta1, beta2=c.beta2,
               weight_decay=c.weight_decay, eps=c.eps, amsgrad=False, maximize=False)


def _start(slot: str, p: Tensor) -> Tensor:
    """What a slot of the parameter holds before the first update."""
    if slot == AVERAGE:
        return p.clone()
    return p.new_zeros((), dtype=torch.float32) if slot == "step" else torch.zeros_like(p)
