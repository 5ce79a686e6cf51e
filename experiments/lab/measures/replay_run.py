"""A finished run lived through again: training is a pure function of its configuration, so its states need not be stored."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures.subject import Subject
from experiments.lab.store.files import StoreError
from experiments.lab.training.engine import SingleEngine
from experiments.lab.training.evaluate import calibrate_on
from experiments.lab.training.initial import initial_model, set_arithmetic
from experiments.lab.training.own_task import load_state, state_of
from experiments.lab.training.state import Tensors


def states(subject: Subject, steps: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
    """The network of a finished run after each of `steps` updates (ascending, from 0 to the run's last), in evaluation mode.

    Batch-norm statistics are recalibrated on training examples; with `ema` the weights are the averaged ones. It is one
    network all along: its weights are overwritten when the next step is asked for. Costs the training up to the last of
    `steps` once more. At the run's own last step the weights are compared with the stored ones: of a run that was trained
    alone on a CPU they are the same bits (of others the replay is exact up to rounding only, and nothing is compared).

    Raises `ConfigError` for steps that the run does not have or that cannot be repeated, and `StoreError` where the replay ends
    elsewhere.
    """
    config, data, facts = subject.config, subject.data, subject.replay_facts()
    machine = facts.machine
    if config.allow_random:
        raise ConfigError(f"run {config.run_id} was trained with allow_random, so it cannot be lived through again; "
                          "measure its end")
    if list(steps) != sorted(set(steps)) or not steps or steps[0] < 0 or steps[-1] > facts.steps:
        raise ConfigError(f"steps to replay must ascend from 0 to the run's last, {facts.steps}; got {list(steps)[:8]}")
    set_arithmetic(config)
    model = initial_model(config, machine, data, facts.parent)
    shown = copy.deepcopy(model).eval()
    engine = SingleEngine(config, machine, data, model)
    for step in steps:
        engine.advance(step)
        engine.losses[0].clear()
        load_state(shown, state_of(engine.model()))
        calibrate_on(shown, data.train.inputs)
        if step == facts.steps and facts.exact:
            _compare(shown, subject.weights, config.run_id)
        yield step, shown.eval()


def _compare(model: nn.Module, stored: Tensors, run_id: str) -> None:
    if not all(torch.equal(p.detach().cpu(), stored[name].cpu()) for name, p in model.named_parameters()):
        raise StoreError(
            f"replayed, run {run_id} does not end at its stored weights: its configuration, data, versions or processor are not "
            "those it was trained with; train it here in a store of its own and measure that"
        )
