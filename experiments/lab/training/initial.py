"""A run before its first update: its network on its device, and the arithmetic of the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from experiments.lab import models
from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.training.data import Data, dtype_of
from experiments.lab.training.own_task import check_own, load_state
from experiments.lab.training.state import Tensors


def network(config: RunConfig, data: Data) -> nn.Module:
    """The network of `config` for `data`, drawn from its seed, on the CPU in float32."""
    return models.build(config, data.shape, data.outputs)


def initial_model(config: RunConfig, machine: Machine, data: Data, parent: Tensors | None = None) -> nn.Module:
    """The network of `config` on its device in training mode: drawn from its seed, or with `parent`'s weights."""
    model = network(config, data)
    if parent is not None:
        try:
            load_state(model, parent)
        except ValueError:
            raise ConfigError(f"the weights of parent {config.parent} are of another network; give this run the same "
                              "model") from None
    model = model.to(machine.device, dtype_of(config)).train()
    if data.train.inputs.is_contiguous(memory_format=torch.channels_last):
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack it
    check_own(config, machine, model, data)
    return model


def set_arithmetic(config: RunConfig) -> None:
    """TF32 on CUDA only where the config says so (torch lets convolutions use it unasked), and cuDNN's repeatable kernels."""
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = "tf32" if config.tf32 else "ieee"
    backends.cudnn.deterministic = True
