"""What is asked of a user's network and loss before the first update: do they fit, are their numbers fixed by the seed, and do
examples of a batch know of each other?

Everything is tried on copies; the network, and torch's, numpy's and Python's generators, are afterwards as they were.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from experiments.lab.datasets import Kind
from experiments.lab.declare.config import Loss, Machine, Model, RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.models.dropout import Dropout
from experiments.lab.models.own import seeded
from experiments.lab.training.data import Data
from experiments.lab.training.gradient import task_gradients
from sharpness.problem.named import brief

TRIED = 16
"""examples of a trial"""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_own(config: RunConfig) -> bool:
    """Whether network or loss are the user's."""
    return not (isinstance(config.model, Model) and isinstance(config.loss, Loss))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, also those that `state_dict` leaves out, except for the counters of dropout."""
    counters = {f"{name}.counter" for name, module in model.named_modules() if isinstance(module, Dropout)}
    hidden = {name: value for name, value in model.named_buffers() if name not in counters}
    return hidden | model.state_dict()


def check_own(config: RunConfig, machine: Machine, model: nn.Module, data: Data) -> None:
    """Raise `ConfigError`, one sentence, where a user's network or loss cannot be trained as promised."""
    if not is_own(config):
        return
    _check_fits(config, model, data)
    if not config.allow_random and not _repeats(config, model, data):
        raise ConfigError(
            f"{_names(config)}: one update made twice gave two results, so it draws random numbers that the seed does not fix, "
            "or keeps a state outside its buffers; use nn.Dropout modules, or train it with --allow-random as a run that cannot "
            "be repeated"
        )
    if machine.micro_batch is not None and machine.micro_batch < config.batch_size and mixes(model, data):
        raise ConfigError(f"--model {config.model}: what it makes of an example depends on the others in the batch (batch "
                          "normalisation), so micro_batch cannot split it; leave it out")


def _names(config: RunConfig) -> str:
    parts = [f"--{part} {getattr(config, part)}" for part, kind in (("model", Model), ("loss", Loss))
             if not isinstance(getattr(config, part), kind)]
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


def _repeats(config: RunConfig, model: nn.Module, data: Data) -> bool:
    """Whether the gradients of one batch are the same bits with the global generators set differently."""
    batch, found = _batch(data), []
    for seed in (1, 2):
        tried = copy.deepcopy(model)
        parameters = [p for p in tried.parameters() if p.requires_grad]
        with seeded(seed):
            results = task_gradients(config, tried, data.task)(parameters, _counter(batch[0].device), *batch)
        found.append([*results, *(value for value in state_of(tried).values())])
    # the second update of one copy, too: a state outside the buffers would show
    return all(_same(a, b) for a, b in zip(*found, strict=True)) and _forgets(config, model, data)


def _forgets(config: RunConfig, model: nn.Module, data: Data) -> bool:
    """Whether an update is the same after another one, once its buffers are put back."""
    batch, tried = _batch(data), copy.deepcopy(model)
    parameters, before = [p for p in tried.parameters() if p.requires_grad], {k: v.clone() for k, v in state_of(tried).items()}
    found = []
    for _ in range(2):
        with seeded(1), torch.no_grad():
            for name, value in state_of(tried).items():
                value.copy_(before[name])
        with seeded(1):
            found.append(task_gradients(config, tried, data.task)(parameters, _counter(batch[0].device), *batch))
    return all(_same(a, b) for a, b in zip(*found, strict=True))


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
