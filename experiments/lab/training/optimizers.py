"""The optimizer of a configuration: torch's own, in its fused form."""

from __future__ import annotations

import torch
from torch import nn

from experiments.lab.config import Optimizer, RunConfig


def build(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD (heavy ball, dampening 0), Adam or AdamW over all parameters, at the peak LR of `config`."""
    parameters, lr, decay = model.parameters(), config.peak_lr, config.weight_decay
    betas = (config.beta1, config.beta2)
    match config.optimizer:
        case Optimizer.SGD:
            return torch.optim.SGD(
                parameters, lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=decay, fused=True
            )
        case Optimizer.ADAM:
            return torch.optim.Adam(parameters, lr, betas, config.eps, weight_decay=decay, fused=True)
        case Optimizer.ADAMW:
            return torch.optim.AdamW(parameters, lr, betas, config.eps, weight_decay=decay, fused=True)
