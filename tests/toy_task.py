"""A task of a user's own, as the settings of a study see it: what it is like is given, and nothing is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.own_settings import Facts


@dataclass
class Like:
    kind: str = "classes"
    images: bool = True
    outputs: int = 4
    train: int | None = 240
    validation: int | None = None
    loss: float = 2.0
    """before the first update"""

    def facts(self, dataset: str) -> Facts:
        return Facts(self.kind, self.images, self.outputs, self.train, self.validation)

    def initial_loss(self, config: RunConfig) -> float:
        return self.loss
