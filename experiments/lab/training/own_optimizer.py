"""A user's own rule of an update: a `torch.optim.Optimizer` that their function makes of the parameters and `lr`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.models.own import seeded
from experiments.lab.training.optimizers import AVERAGE, clipped
from experiments.lab.training.state import Tensors
from sharpness.problem.named import brief, called, named, taken

TAKEN = ("weight_decay", "momentum", "nesterov", "eps")
"""fields of a run that a user's function may take; one that it does not take must be at its default"""
STATE = "optimizer.own"


class OwnUpdate:
    """As `Update`: w <- w - optimizer(gradient), in place. The learning rate of each parameter group keeps its ratio to `lr`.

    Raises `ConfigError`, one sentence, where the function cannot be imported or called, or returns no optimizer of these
    parameters, or one that needs to compute losses itself (a closure).
    """

    def __init__(self, config: RunConfig, parameters: Sequence[Tensor]) -> None:
        self.config, self.name, self.parameters = config, str(config.optimizer), list(parameters)
        try:
            function = named(self.name, "--optimizer")
            names = taken(function) if callable(function) else []
            asked = {key: getattr(config, key) for key in TAKEN if getattr(config, key) != getattr(type(config), key)}
            if names is not None and (left := [key for key in asked if key not in names]):
                raise ConfigError(f"{left[0]} is set, but --optimizer {self.name} does not take it; leave it out")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.make = partial(called, function, self.name, "--optimizer", options={"lr": config.peak_lr, **asked})
        self._try()
        self.optimizer = self._made(self.parameters)
        self.ratios = [float(group["lr"]) / config.peak_lr for group in self.optimizer.param_groups]
        self.slots: dict[str, list[Tensor]] = {}
        if config.ema:
            self.slots[AVERAGE] = [p.detach().clone() for p in self.parameters]

    def _made(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        try:
            found = self.make(parameters)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not isinstance(found, torch.optim.Optimizer):
            raise ConfigError(f"--optimizer {self.name} gave a {type(found).__name__}, not a torch.optim.Optimizer")
        known = set(map(id, parameters))
        if not all(id(p) in known for group in found.param_groups for p in group["params"]):
            raise ConfigError(f"--optimizer {self.name} gave an optimizer of other parameters than it was called with")
        return found

    def _try(self) -> None:
        """Two updates of copies, made twice with the global generators set differently: it must need no closure, draw nothing
        that the seed does not fix, and remember nothing that a checkpoint cannot hold."""
        found = []
        for seed in (1, 2):
            copies = [p.detach().clone().requires_grad_() for p in self.parameters]
            with seeded(seed):
                optimizer = self._made(copies)
                for p in copies:
                    p.grad = p.detach().clone()
                try:
                    optimizer.step()
                    optimizer.load_state_dict(_read(_written(optimizer.state_dict())))
                    optimizer.step()
                except (torch.OutOfMemoryError, MemoryError):
                    raise
                except Exception as error:
                    closure = isinstance(error, TypeError) and "closure" in str(error)
                    why = "cannot step without a closure" if closure else "fails at its first updates, or keeps no plain state"
                    raise ConfigError(f"--optimizer {self.name} {why} ({brief(error)}); take another") from error
            found.append(copies)
        if not self.config.allow_random and not all(map(torch.equal, *found)):
            raise ConfigError(f"--optimizer {self.name}: one update made twice gave two results, so it draws random numbers that "
                              "the seed does not fix; take another, or train with --allow-random a run that cannot be repeated")

    def __call__(self, gradients: Sequence[Tensor], lr: float | Tensor) -> None:
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = float(lr) * ratio
        for p, g in zip(self.parameters, clipped(gradients, self.config.clip_norm), strict=True):
            p.grad = g
        self.optimizer.step()
        for p in self.parameters:
            p.grad = None
        if self.config.ema:
            with torch.no_grad():
                for average, p in zip(self.slots[AVERAGE], self.parameters, strict=True):
                    average.lerp_(p, 1 - self.config.ema)

    @property
    def averages(self) -> bool:
        """Whether other weights are evaluated than those that are updated: `ema`, or those of a schedule-free optimizer."""
        return bool(self.slots) or all(callable(getattr(self.optimizer, name, None)) for name in ("eval", "train"))

    @torch.no_grad()
    def averaged(self) -> list[Tensor]:
        """The weights that are evaluated; the present ones stay bitwise as they are."""
        if self.slots:
            return self.slots[AVERAGE]
        optimizer: Any = self.optimizer
        kept = [p.detach().clone() for p in self.parameters]
        optimizer.eval()
        found = [p.detach().clone() for p in self.parameters]
        optimizer.train()
        for p, value in zip(self.parameters, kept, strict=True):
            p.copy_(value)
        return found

    def state(self) -> Tensors:
        """All that it remembers, as bytes: whatever a user's optimizer holds beside tensors."""
        found = {STATE: torch.frombuffer(bytearray(_written(self.optimizer.state_dict())), dtype=torch.uint8)}
        return found | {f"{STATE}.{AVERAGE}.{i}": value.clone() for i, value in enumerate(self.slots.get(AVERAGE, []))}

    def load(self, tensors: Tensors) -> None:
        self.optimizer.load_state_dict(_read(tensors[STATE].cpu().numpy().tobytes()))
        for i, value in enumerate(self.slots.get(AVERAGE, [])):
            value.copy_(tensors[f"{STATE}.{AVERAGE}.{i}"])


def _written(state: dict[str, Any]) -> bytes:
    kept: Any = io.BytesIO()
    torch.save(state, kept)
    return kept.getvalue()


def _read(content: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(content), weights_only=True)
