"""Copies of a run: its state between two updates, and all that it needs to continue."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """Weights, optimizer and online losses after `step` updates: flat names to tensors."""

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
