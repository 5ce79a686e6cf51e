"""What is minimised and scored: the built-in losses and a user's own, as `sharpness.problem.losses` has them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from experiments.lab.datasets import Kind
from experiments.lab.declare.config import Loss, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.session_code import check_code
from sharpness.problem.losses import IGNORED, LossFunction, Terms, bce, cross_entropy, mean_of, mse, own_loss, own_terms

__all__ = ["CLASSIFICATION", "IGNORED", "Task", "Terms", "task_of"]


@dataclass(frozen=True)
class Task:
    """What targets are, and the loss; `plain` is mean cross-entropy over classes, which has the fastest path."""

    kind: Kind
    loss: LossFunction
    plain: bool

    @property
    def accurate(self) -> bool:
        """Whether accuracy has a meaning."""
        return self.kind is not Kind.NUMBERS

    @property
    def weight(self) -> Literal["tokens"] | None:
        """How batches count in the mean, as `sharpness` takes it; None: it finds out."""
        return "tokens" if self.kind is Kind.TOKENS and self.loss is cross_entropy else None

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """0-d: the loss of a batch, as `sharpness` takes it."""
        return mean_of(self.loss, outputs, targets)


CLASSIFICATION = Task(Kind.CLASSES, cross_entropy, plain=True)
"""what every built-in data set was trained on at first"""


def task_of(config: RunConfig, kind: Kind) -> Task:
    """Raises `ConfigError` where the user's loss cannot be imported."""
    match config.loss:
        case Loss.CROSS_ENTROPY:
            return Task(kind, cross_entropy, kind is Kind.CLASSES)
        case Loss.MSE:
            return Task(kind, mse, plain=False)
        case Loss.BCE:
            return Task(kind, bce, plain=False)
    check_code(config.loss, config.loss_sha256, "--loss")
    try:
        function = own_loss(config.loss)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Task(kind, partial(own_terms, config.loss, function, wrong=ConfigError), plain=False)
