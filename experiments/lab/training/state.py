"""The moving parts of a run, and their copies."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiments.lab.models.dropout import Dropout
from experiments.lab.training.budget import Pass

Tensors = dict[str, Tensor]


@dataclass
class State:
    """A run between two updates. `losses` holds the online losses since the last history row, each of one batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dropout: list[Dropout]
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)

    def copy(self) -> Snapshot:
        tensors = {f"model.{name}": value.detach().clone() for name, value in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = value.detach().clone()
        if self.losses:
            tensors["losses"] = torch.stack(self.losses)
        return Snapshot(self.step, tensors)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from `snapshot`, bitwise."""
        parameters = list(self.model.parameters())
        slots: dict[int, dict[str, Tensor]] = {}
        weights: Tensors = {}
        for name, value in snapshot.tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = value
            elif kind == "optimizer":
                index, _, slot = rest.partition(".")
                # fused optimizers walk memory: a slot must have its parameter's layout, which a file does not keep
                like = parameters[int(index)] if value.shape == parameters[int(index)].shape else value
                slots.setdefault(int(index), {})[slot] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.step = snapshot.step
        self.losses = list(snapshot.tensors["losses"].unbind()) if "losses" in snapshot.tensors else []


@dataclass(frozen=True)
class Snapshot:
    """A copy of a `State` after `step` updates: flat names to tensors."""

    step: int
    tensors: Tensors


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to continue as if it had never stopped.

    `above` and `below` are the states at the last pass above a `train_loss` target and at the first below it, the
    bracket of the stop rule; `history_bytes` is the length of the history that belongs to this state.
    """

    current: Snapshot
    above: Snapshot | None
    below: Snapshot | None
    passes: tuple[Pass, ...]
    history_bytes: int
