"""What workers are asked to do and what they report: values that go through a pipe."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.study import Measure


@dataclass(frozen=True)
class Train:
    """Train `config` if nobody did, then make `measures` of it."""

    config: RunConfig
    measures: tuple[Measure, ...] = ()
    trained: bool = False
    """whether only measurements were missing when the task was made"""

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        return (self.config,)


@dataclass(frozen=True)
class TrainTogether:
    """Train runs that can be one program, as far as that pays. What cannot be fused is trained alone afterwards."""

    configs: tuple[RunConfig, ...]


@dataclass(frozen=True)
class MeasurePair:
    """Make one measurement of two finished runs; it trains none."""

    measure: Measure
    run_ids: tuple[str, ...]
    configs: tuple[RunConfig, ...] = ()


Task = Train | TrainTogether | MeasurePair


@dataclass(frozen=True)
class Underway:
    """The step that training is at; None: training is over, and measurements are made."""

    step: int | None


@dataclass(frozen=True)
class Busy:
    """Another process holds a run of the task; ask again later."""


@dataclass(frozen=True)
class Finished:
    """The task is done; `status` is its run's."""

    status: str = "done"


@dataclass(frozen=True)
class TrainAlone:
    """These runs cannot be one program."""

    why: str


@dataclass(frozen=True)
class Failed:
    why: str


@dataclass(frozen=True)
class Signalled:
    """The worker was asked to stop, wrote its checkpoint and left."""

    why: str = "stopped from outside"


Report = Underway | Busy | Finished | TrainAlone | Failed | Signalled
