"""A user's own network: built by their function from the seed alone, its dropout drawn by counter as everywhere."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.own_code import options_of
from experiments.lab.models.dropout import Dropout
from sharpness.problem.named import called, named, value_of


def own_model(config: RunConfig, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """What MODULE:FUNCTION returns for `input_shape`, `outputs` and the config's options, whatever of these it takes.

    Raises `ConfigError`, one sentence, where it cannot be imported or called, or returns no network that learns.
    """
    name = str(config.model)
    try:
        with seeded(config.seed):
            options = {key: value_of(text) for key, text in options_of(config.model_options).items()}
            model = called(named(name, "--model"), name, "--model", available={"input_shape": shape, "outputs": outputs},
                           options=options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model {name} gave a {type(model).__name__}, not a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"--model {name} has no parameter that can be trained")
    for parent in list(model.modules()):
        for key, layer in list(parent.named_children()):
            if type(layer) is nn.Dropout:
                setattr(parent, key, Dropout(layer.p))
    return model


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's, numpy's and Python's global generators begin at `seed`, and are afterwards as they were."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
