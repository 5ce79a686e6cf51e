"""A user's own rule of an update: a `torch.optim.Optimizer` that their function makes of the parameters and `lr`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.session_code import check_code
from experiments.lab.training.optimizers import AVERAGE, clipped
from experiments.lab.training.state import Tensors
from sharpness.problem.named import called, named, taken

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
        check_code(self.name, config.optimizer_sha256, "--optimizer")
        try:
            function = named(self.name, "--optimizer")
            names = taken(function) if callable(function) else []
            asked = {key: getattr(config, key) for key in TAKEN if getattr(config, key) != getattr(type(config), key)}
            if names is not None and (left := [key for key in asked if key not in names]):
                raise ConfigError(f"{left[0]} is set, but --optimizer {self.name} does not take it; leave it out")
            self.optimizer = called(function, self.name, "--optimizer", self.parameters, options={"lr": config.peak_lr, **asked})
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ConfigError(f"--optimizer {self.name} gave a {type(self.optimizer).__name__}, not a torch.optim.Optimizer")
        known = set(map(id, self.parameters))
        if not all(id(p) in known for group in self.optimizer.param_groups for p in group["params"]):
            raise ConfigError(f"--optimizer {self.name} gave an optimizer of other parameters than it was called with")
        self.ratios = [float(group["lr"]) / config.peak_lr for group in self.optimizer.param_groups]
        self.slots: dict[str, list[Tensor]] = {}
        if config.ema:
            self.slots[AVERAGE] = [p.detach().clone() for p in self.parameters]

    def __call__(self, gradients: Sequence[Tensor], lr: float | Tensor) -> None:
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = float(lr) * ratio
        for p, g in zip(self.parameters, clipped(gradients, self.config.clip_norm), strict=True):
            p.grad = g
        try:
            self.optimizer.step()
        except TypeError as error:
            raise ConfigError(f"--optimizer {self.name} cannot step without a closure ({error}); take another") from error
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
        """All that it remembers; `ConfigError` where that is neither tensors nor plain values."""
        tensors: list[Tensor] = []
        try:
            text = json.dumps(_plain(self.optimizer.state_dict(), tensors))
        except TypeError as error:
            raise ConfigError(f"--optimizer {self.name} keeps a state that is neither tensors nor plain values ({error}), which "
                              "no checkpoint can hold; take another") from error
        found = {STATE: torch.tensor(list(text.encode()), dtype=torch.uint8)}
        found |= {f"{STATE}.{i}": value.detach().clone().contiguous() for i, value in enumerate(tensors)}
        return found | {f"{STATE}.{AVERAGE}.{i}": value.clone() for i, value in enumerate(self.slots.get(AVERAGE, []))}

    def load(self, tensors: Tensors) -> None:
        text = bytes(tensors[STATE].tolist())
        self.optimizer.load_state_dict(_restored(json.loads(text), tensors))
        for i, value in enumerate(self.slots.get(AVERAGE, [])):
            value.copy_(tensors[f"{STATE}.{AVERAGE}.{i}"])


def _plain(value: Any, tensors: list[Tensor]) -> Any:
    """`value` as JSON holds it, its tensors put aside: what is read again must be no program. TypeError where it cannot."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):
        return {"dict": [[_plain(key, tensors), _plain(part, tensors)] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_plain(part, tensors) for part in value]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a {type(value).__name__}")


def _restored(value: Any, tensors: Tensors) -> Any:
    """Inverse of `_plain`."""
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[f"{STATE}.{inside}"].clone()
    if kind == "dict":
        return {_restored(key, tensors): _restored(part, tensors) for key, part in inside}
    parts = [_restored(part, tensors) for part in inside]
    return parts if kind == "list" else tuple(parts)
