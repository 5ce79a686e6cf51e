"""What is asked of a user's network, loss and optimizer before the first update: do they fit, are their numbers fixed by the
seed, would a checkpoint hold their whole state, and do examples of a batch know of each other?

Everything is tried on copies; the network, and torch's, numpy's and Python's generators, are afterwards as they were.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.lab import models
from experiments.lab.datasets import Dataset, Kind
from experiments.lab.declare.config import Loss, Machine, Model, Optimizer, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.session_code import in_session, session_sha256
from experiments.lab.models.dropout import Dropout
from experiments.lab.models.own import seeded, session_model_sha256
from experiments.lab.training.data import Data, Examples, dtype_of
from experiments.lab.training.gradient import task_gradients
from experiments.lab.training.own_optimizer import OwnUpdate
from sharpness.problem.named import brief

TRIED = 16
"""examples of a trial"""


def is_own(config: RunConfig) -> bool:
    """Whether network or loss are the user's."""
    return not (isinstance(config.model, Model) and isinstance(config.loss, Loss))


def of_session(config: RunConfig, dataset: Dataset) -> RunConfig:
    """With the identity of what is a function or class of the running program; raises `ConfigError` where it has none."""
    found = {f"{part}_sha256": session_sha256(getattr(config, part), f"--{part}") for part in ("loss", "optimizer")
             if in_session(getattr(config, part))}
    if in_session(config.model):
        found["model_sha256"] = session_model_sha256(str(config.model), config.model_options, dataset.train.inputs.shape[1:],
                                                     dataset.outputs)
    return config.replace(**found) if found else config


def own_optimizer(config: RunConfig) -> bool:
    return not isinstance(config.optimizer, Optimizer)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, also those that `state_dict` leaves out, except for the counters of dropout."""
    counters, state = {f"{name}.counter" for name, m in model.named_modules() if isinstance(m, Dropout)}, model.state_dict()
    return state | {name: value for name, value in model.named_buffers() if name not in counters and name not in state}


@torch.no_grad()
def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a whole `state_of` into `model`, in place. ValueError where it is another network's."""
    own = state_of(model)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}:
        raise ValueError("the state is of another network")
    for name, value in own.items():
        value.copy_(state[name])


def check_own(config: RunConfig, machine: Machine, model: nn.Module, data: Data) -> None:
    """Raise `ConfigError`, one sentence, where a user's network, loss or optimizer cannot be trained as promised."""
    if is_own(config):
        _check_fits(config, model, data)
    if own_optimizer(config):
        _check_continues(config, model, data)
    if (is_own(config) or own_optimizer(config)) and not config.allow_random:
        _check_repeats(config, model, data)
    split = machine.micro_batch is not None and machine.micro_batch < config.batch_size * config.batch_growth**2
    if split and (why := why_whole(config, model, data)):
        raise ConfigError(f"{why}, so micro_batch cannot split a batch; leave it out")


def why_whole(config: RunConfig, model: nn.Module, data: Data) -> str | None:
    """Why a batch cannot be computed in micro-batches, None where it can."""
    if not isinstance(config.model, Model) and mixes(model, data):
        return (f"--model {config.model}: what it makes of an example depends on the others in the batch (as batch normalisation "
                "does)")
    if not isinstance(config.loss, Loss) and not _adds_up(model, data):
        return f"--loss {config.loss}: of a batch it is not the sum over its parts divided by their weights"
    return None


def splits(config: RunConfig, data: Data) -> bool:
    """Whether batches may be computed in micro-batches where memory runs out: of built-in parts `memory.smaller` knows it."""
    if not is_own(config):
        return True
    model = models.build(config, data.shape, data.outputs).to(dtype_of(config)).train()
    few = Examples(*(t.cpu() for t in _batch(data)))
    return why_whole(config, model, replace(data, train=few)) is None


def _names(config: RunConfig) -> str:
    kinds = {"model": Model, "loss": Loss, "optimizer": Optimizer}
    parts = [f"--{part} {getattr(config, part)}" for part, kind in kinds.items() if not isinstance(getattr(config, part), kind)]
    return " with ".join(parts)


def _batch(data: Data, count: int = TRIED) -> tuple[Tensor, Tensor]:
    return data.train.inputs[:count], data.train.targets[:count]


def _counter(device: torch.device) -> Tensor:
    return torch.tensor([0, 1, 0], dtype=torch.int64, device=device)


def _check_fits(config: RunConfig, model: nn.Module, data: Data) -> None:
    inputs, targets = _batch(data)
    tried, names = copy.deepcopy(model), _names(config)
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    for module in tried.modules():
        if isinstance(module, Dropout):
            module.register_forward_pre_hook(count)
    try:
        with seeded(0), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")
            outputs = tried(inputs)
            if not isinstance(outputs, Tensor):
                raise ConfigError(f"--model {config.model} returns a {type(outputs).__name__}, but must return one tensor")
            shape, wanted = list(outputs.shape), [*targets.shape, data.outputs]
            if data.task.kind is not Kind.NUMBERS and isinstance(config.loss, Loss) and shape != wanted:
                raise ConfigError(f"--model {config.model} returns {shape} for {len(inputs)} examples, but targets "
                                  f"({data.task.kind}) need {wanted}")
            if data.task.kind is Kind.NUMBERS and isinstance(config.loss, Loss) and outputs.numel() != targets.numel():
                raise ConfigError(f"--model {config.model} returns {shape} for targets {list(targets.shape)}; make them alike")
            terms = data.task.loss(outputs, targets)
            torch.autograd.grad(terms.total, [p for p in tried.parameters() if p.requires_grad], allow_unused=True)
    except (ConfigError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(f"{names} does not fit the data, inputs {list(inputs.shape)} {str(inputs.dtype)[6:]} and targets "
                          f"{list(targets.shape)} {str(targets.dtype)[6:]}: {brief(error)}") from error
    if any(number > 1 for number in calls.values()):
        raise ConfigError(f"--model {config.model} calls one nn.Dropout more than once per pass, which would repeat its mask; "
                          "give each place a module of its own")


def _check_repeats(config: RunConfig, model: nn.Module, data: Data) -> None:
    """Raise `ConfigError` where an update draws from a global generator, or is another one when it is made twice."""
    found, moved = zip(*(_update(config, model, data, seed) for seed in (1, 2)), strict=True)
    if any(moved) or not all(_same(a, b) for a, b in zip(*found, strict=True)):
        raise ConfigError(f"{_names(config)}: one update made twice with other random numbers would not be the same, for "
                          "it draws some that the seed does not fix; use nn.Dropout modules, or train it with --allow-random "
                          "as a run that cannot be repeated")
    if is_own(config) and not _forgets(config, model, data):
        raise ConfigError(f"{_names(config)}: one update made twice gave two results, so something keeps a state outside its "
                          "buffers, which no checkpoint holds; use register_buffer, or train it with --allow-random as a run "
                          "that cannot be repeated")


def _update(config: RunConfig, model: nn.Module, data: Data, seed: int) -> tuple[list[Tensor], bool]:
    """Gradients and state after an update with the global generators at `seed`, and whether these have moved."""
    batch, tried = _batch(data), copy.deepcopy(model)
    parameters = [p for p in tried.parameters() if p.requires_grad]
    with seeded(seed):
        before = _generators(batch[0].device)
        results = task_gradients(config, tried, data.task)(parameters, _counter(batch[0].device), *batch)
        if own_optimizer(config):
            OwnUpdate(config, parameters)(results[2:], config.peak_lr)
        moved = _generators(batch[0].device) != before
    return [*results, *state_of(tried).values()], moved


def _generators(device: torch.device) -> tuple[Any, ...]:
    """The states of the global random generators."""
    _, keys, *more = np.random.get_state()
    here = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    return random.getstate(), np.asarray(keys).tobytes(), more, torch.get_rng_state().numpy().tobytes(), here


def _forgets(config: RunConfig, model: nn.Module, data: Data) -> bool:
    """Whether an update is the same after another one, once its buffers are put back."""
    batch, tried = _batch(data), copy.deepcopy(model)
    parameters, before = [p for p in tried.parameters() if p.requires_grad], {k: v.clone() for k, v in state_of(tried).items()}
    found = []
    for _ in range(2):
        with seeded(1):
            with torch.no_grad():
                for name, value in state_of(tried).items():
                    value.copy_(before[name])
            found.append(task_gradients(config, tried, data.task)(parameters, _counter(batch[0].device), *batch))
    return all(_same(a, b) for a, b in zip(*found, strict=True))


def _check_continues(config: RunConfig, model: nn.Module, data: Data) -> None:
    """Raise `ConfigError` where an optimizer that is made anew with a kept state does not go on as the old one does."""
    tried = copy.deepcopy(model)
    parameters = [p for p in tried.parameters() if p.requires_grad]
    batch = _batch(data)
    with seeded(1):
        _, _, *gradients = task_gradients(config, tried, data.task)(parameters, _counter(batch[0].device), *batch)
        first = OwnUpdate(config, parameters)
        first([g.clone() for g in gradients], config.peak_lr)
        others = [p.detach().clone().requires_grad_() for p in parameters]
        second = OwnUpdate(config, others)
        second.load(first.state())
    for update in (first, second):
        with seeded(2):
            update([g.clone() for g in gradients], config.peak_lr)
    if not all(_same(a, b) for a, b in zip(parameters, others, strict=True)):
        raise ConfigError(f"--optimizer {config.optimizer} keeps a state that its state_dict lacks, so a checkpoint would not "
                          "continue it; keep it in self.state or in the groups of parameters")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a.detach().double()), torch.nan_to_num(b.detach().double()))


@torch.no_grad()
def mixes(model: nn.Module, data: Data) -> bool:
    """Whether in training mode the output for one example depends on the others of its batch.

    Tried with half of a batch replaced by other examples, mirrored and scaled, so that any statistic of them moves.
    """
    inputs, _ = _batch(data)
    half = len(inputs) // 2
    if half == 0:
        return False
    others = inputs.flip(0) if inputs.dtype == torch.int64 else inputs.flip(0) * -1.7 + 0.3
    outputs = []
    for batch in (inputs, torch.cat([inputs[:half], others[half:]])):
        tried = copy.deepcopy(model).train()
        for module in tried.modules():
            if isinstance(module, Dropout):
                module.counter.copy_(_counter(module.counter.device))
        with seeded(1):
            outputs.append(tried(batch)[:half].double())
    scale = outputs[0].abs().max().clamp(min=1e-30)
    return bool(((outputs[0] - outputs[1]).abs().max() / scale) > 1e-6)


@torch.no_grad()
def _adds_up(model: nn.Module, data: Data) -> bool:
    """Whether the loss of a batch is that of two unequal parts together."""
    inputs, targets = _batch(data)
    tried, cut = copy.deepcopy(model).eval(), len(inputs) // 3
    if cut == 0:
        return True
    with seeded(1):
        outputs = tried(inputs)
        whole = data.task.loss(outputs, targets)
        parts = [data.task.loss(outputs[part], targets[part]) for part in (slice(cut), slice(cut, None))]
    apart = sum(part.total for part in parts) / sum(part.weight for part in parts)
    return bool((apart - whole.total / whole.weight).abs() <= 1e-5 * whole.total.abs() / whole.weight)


def keeps_still(config: RunConfig, data: Data, model: nn.Module) -> bool:
    """Whether no forward pass changes a buffer: only then may an update be tried again where it is recorded."""
    if not is_own(config):
        return True
    if config.allow_random:
        return False
    tried = copy.deepcopy(model)
    before = {name: value.clone() for name, value in state_of(tried).items()}
    with seeded(1), torch.no_grad():
        tried(_batch(data)[0])
    return all(_same(before[name], value) for name, value in state_of(tried).items())
