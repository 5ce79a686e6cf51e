"""A finished run lived through again: training is a pure function of its configuration, so its states need not be stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.store.files import StoreError
from experiments.lab.store.records import Store

if TYPE_CHECKING:
    from torch import nn

    from experiments.lab.measures.measure import Subject
    from experiments.lab.training.state import Tensors


@dataclass(frozen=True)
class Past:
    """What a run's stored end does not say of its way there."""

    steps: int
    """updates to its end"""
    machine: Machine
    """where it is replayed"""
    parent: Tensors | None
    """the weights it began with, where another run made them"""
    exact: bool
    """trained alone on a CPU, whole batches at a time: then a replay gives the same bits"""


def past_of(store: Store, config: RunConfig, machine: Machine) -> Past:
    """Raises `StoreError` where the run is not finished, or its parent's weights are missing."""
    from experiments.lab.store.checkpoints import final_weights

    summary = store.summary(config.run_id)
    if summary is None:
        raise StoreError(f"run {config.run_id} is not finished; run its study first")
    alone = "plan.json" not in summary["files"] and machine.micro_batch is None
    return Past(
        steps=summary["steps"],
        machine=machine,
        parent=None if config.parent is None else final_weights(store, config.parent),
        exact=alone and summary["device"] == machine.device == "cpu",
    )


def states(subject: Subject, steps: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
    """The network of a finished run after each of `steps` updates (ascending, from 0 to the run's last), in evaluation mode.

    Batch-norm statistics are recalibrated on training examples; with `ema` the weights are the averaged ones. It is one
    network all along: its weights are overwritten when the next step is asked for. Costs the training up to the last of
    `steps` once more. At the run's own last step the weights are compared with the stored ones: of a run that was trained
    alone on a CPU they are the same bits (of others the replay is exact up to rounding only, and nothing is compared).

    Raises `ConfigError` for steps that the run does not have, and `StoreError` where the replay ends elsewhere.
    """
    import copy

    from experiments.lab.training.engine import SingleEngine
    from experiments.lab.training.evaluate import calibrate_on
    from experiments.lab.training.initial import initial_model, set_arithmetic

    config, data, past = subject.config, subject.data, subject.past()
    machine = past.machine
    if list(steps) != sorted(set(steps)) or not steps or steps[0] < 0 or steps[-1] > past.steps:
        raise ConfigError(f"steps to replay must ascend from 0 to the run's last, {past.steps}; got {list(steps)[:8]}")
    set_arithmetic(config)
    model = initial_model(config, machine, data, past.parent)
    shown = copy.deepcopy(model).eval()
    engine = SingleEngine(config, machine, data, model)
    for step in steps:
        engine.advance(step)
        engine.forget_losses()
        shown.load_state_dict(engine.model().state_dict())
        calibrate_on(shown, data.train.inputs)
        if step == past.steps and past.exact:
            _compare(shown, subject.weights, config.run_id)
        yield step, shown.eval()


def _compare(model: nn.Module, stored: Tensors, run_id: str) -> None:
    import torch

    if not all(torch.equal(p.detach().cpu(), stored[name].cpu()) for name, p in model.named_parameters()):
        raise StoreError(
            f"replayed, run {run_id} does not end at its stored weights: its configuration, data, versions or processor are not "
            "those it was trained with; train it here in a store of its own and measure that"
        )
