"""The moving parts of a run, and their copies."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiments.lab.training.optimizers import Update

Tensors = dict[str, Tensor]


@dataclass
class State:
    """A run between two updates. `losses` holds the online losses since the last history row, [k] tensors of k batches."""

    model: nn.Module
    optimizer: Update
    losses: list[Tensor] = field(default_factory=list)

    def copy(self, step: int) -> Snapshot:
        tensors = {f"model.{name}": value.detach().clone() for name, value in self.model.state_dict().items()}
        for slot, values in self.optimizer.slots.items():
            for index, value in enumerate(values):
                tensors[f"optimizer.{index}.{slot}"] = value.clone()
        if self.losses:
            tensors["losses"] = torch.cat(self.losses)
        return Snapshot(step, tensors)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from `snapshot`, bitwise. Everything is copied in place: recorded updates hold on to these tensors."""
        prefix = "model."
        weights = {n.removeprefix(prefix): v for n, v in snapshot.tensors.items() if n.startswith(prefix)}
        self.model.load_state_dict(weights)
        for slot, values in self.optimizer.slots.items():
            for index, value in enumerate(values):
                value.copy_(snapshot.tensors[f"optimizer.{index}.{slot}"])
        device = next(self.model.parameters()).device
        self.losses = [snapshot.tensors["losses"].to(device)] if "losses" in snapshot.tensors else []


@dataclass(frozen=True)
class Snapshot:
    """A copy of a `State` after `step` updates: flat names to tensors."""

    step: int
    tensors: Tensors


@dataclass(frozen=True)
class Pass:
    """One evaluation-mode pass over training examples after `step` updates: mean cross-entropy in nats."""

    step: int
    loss: float


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
