"""A finished run, ready to be measured: its model, weights and data; and what every measurement says of itself.

Every measurement is made in float32 with TF32 off (float64 for float64 runs), dropout and augmentation off, in
evaluation mode with recalibrated batch-norm statistics, on the first `examples` training examples: random ones, always the
same, except in the data sets of published results (`RunConfig.train_draw`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.store.checkpoints import final_weights
from experiments.lab.store.data_places import located
from experiments.lab.store.files import REPAIR, StoreError
from experiments.lab.store.records import Store
from experiments.lab.training import data as training_data
from experiments.lab.training.data import Data
from experiments.lab.training.initial import network
from experiments.lab.training.own_task import load_state
from experiments.lab.training.state import Tensors
from sharpness import Eigenvalues
from sharpness.problem.problem import Loss

BATCH = 2500
"""examples per forward pass; changes rounding only"""


@dataclass(frozen=True)
class ReplayFacts:
    """What a run's stored end does not say of its way there."""

    steps: int
    """updates to its end"""
    machine: Machine
    """where it is replayed"""
    parent: Tensors | None
    """the weights it began with, where another run made them"""
    exact: bool
    """trained alone on a CPU, whole batches at a time: then a replay gives the same bits"""


@dataclass(frozen=True)
class Subject:
    """A finished run, ready to be measured."""

    config: RunConfig
    model: nn.Module
    weights: Tensors
    data: Data
    eigenpairs: dict[tuple[int, float, int], Eigenvalues] = field(default_factory=dict, repr=False, compare=False)
    """what `top_eigenpair` found, by its arguments, so that measurements of one run share it"""
    replay_facts: Callable[[], ReplayFacts] = field(
        default=lambda: ReplayFacts(0, Machine(), None, False), repr=False, compare=False
    )
    """how the run came here, for measurements during training; a function, because only they need its parent"""

    @property
    def loss(self) -> Loss:
        """What the run minimised, the mean over what counts: f(outputs, targets)."""
        return cross_entropy if self.data.task.plain else self.data.task.mean


def load_subject(store: Store, run_id: str, machine: Machine) -> Subject:
    """Model, weights and data of a stored run; raises `StoreError` where its weights are missing or altered."""
    if (store.summary(run_id) or {}).get("status") == "diverged":
        raise StoreError(f"run {run_id} diverged, so there is no minimum to measure; choose another run")
    weights, config = final_weights(store, run_id), store.config(run_id)
    if config is None:
        raise StoreError(f"{store.folder(run_id)}/config.json is missing; {REPAIR}")
    source = training_data.read(located(config, machine.data_dir, store.root), machine.data_dir)
    data = training_data.prepare(config, machine, source)
    model = network(config, data).to(machine.device, training_data.dtype_of(config))
    try:
        load_state(model, weights)
    except ValueError as error:
        raise StoreError(f"the weights of run {run_id} are of another network than its configuration; {REPAIR}") from error
    return Subject(config, model.eval(), weights, data, replay_facts=lambda: _replay_facts(store, config, machine))


def _replay_facts(store: Store, config: RunConfig, machine: Machine) -> ReplayFacts:
    """Raises `StoreError` where the run is not finished, or its parent's weights are missing."""
    summary = store.summary(config.run_id)
    if summary is None:
        raise StoreError(f"run {config.run_id} is not finished; run its study first")
    alone = "plan.json" not in summary["files"] and machine.micro_batch is None
    return ReplayFacts(
        steps=summary["steps"],
        machine=machine,
        parent=None if config.parent is None else final_weights(store, config.parent),
        exact=alone and summary["device"] == machine.device == "cpu",
    )


def subset(subject: Subject, examples: int) -> tuple[Tensor, Tensor]:
    """The training examples that are measured on."""
    train = subject.data.train
    return train.inputs[:examples], train.targets[:examples]


def head(subject: Subject, examples: int, seed: int | None) -> dict[str, Any]:
    """The certificate that every measurement carries; what does not apply is null."""
    return {
        "standard_error": None,
        "residual": None,
        "products": None,
        "examples": min(examples, len(subject.data.train)),
        "bn_mode": "eval",
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
        "seed": seed,
        "details": {},
    }


def measured(subject: Subject, examples: int, found: Any) -> dict[str, Any]:
    """A result of `sharpness` with a value and a standard error as a measurement."""
    facts = found.to_dict()
    own = ("value", "standard_error", "status", "seed")
    return {
        **head(subject, examples, found.seed),
        "value": found.value,
        "standard_error": found.standard_error,
        "products": facts.get("matvecs", facts.get("evaluations")),
        "status": found.status,
        "details": {name: facts[name] for name in sorted(facts) if name not in own},
    }
