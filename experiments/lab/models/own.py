"""A user's own network: built by their function from the seed alone, its dropout drawn by counter as everywhere."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.lab.declare.config import RunConfig
from experiments.lab.declare.errors import ConfigError
from experiments.lab.declare.own_code import options_of
from experiments.lab.declare.session_code import check_code, in_session, session_sha256
from experiments.lab.models.dropout import Dropout
from sharpness.problem.named import called, named, value_of


def own_model(config: RunConfig, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """What MODULE:FUNCTION returns for `input_shape`, `outputs` and the config's options, whatever of these it takes.

    Raises `ConfigError`, one sentence, where it cannot be imported or called, or returns no network that learns.
    """
    name = str(config.model)
    if not in_session(name):
        check_code(name, config.model_sha256, "--model")
    elif config.model_sha256 not in (None, session_model_sha256(name, config.model_options, shape, outputs)):
        raise ConfigError(f"--model {name} is not the one that this run is of: its source, what it uses or its initial weights "
                          "have changed; define it as it was, or train it as a sweep of its own")
    model = _made(name, config.model_options, shape, outputs, config.seed)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model {name} gave a {type(model).__name__}, not a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"--model {name} has no parameter that can be trained")
    for parent in list(model.modules()):
        for key, layer in list(parent.named_children()):
            if type(layer) is nn.Dropout:
                setattr(parent, key, Dropout(layer.p))
    return model


def session_model_sha256(name: str, options: str | None, shape: tuple[int, ...], outputs: int) -> str:
    """Identity of a network of the running program: its source, and its initial state with seed 0."""
    digest = hashlib.sha256(session_sha256(name, "--model").encode())
    made = _made(name, options, shape, outputs, 0)
    if isinstance(made, nn.Module):
        for key, value in made.state_dict().items():
            if isinstance(value, torch.Tensor):
                digest.update(f"{key} {value.dtype} {list(value.shape)}\0".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _made(name: str, options: str | None, shape: tuple[int, ...], outputs: int, seed: int) -> Any:
    """What the function gives with the global generators at `seed`."""
    try:
        with seeded(seed):
            values = {key: value_of(text) for key, text in options_of(options).items()}
            return called(named(name, "--model"), name, "--model", available={"input_shape": shape, "outputs": outputs},
                          options=values)
    except ValueError as error:
        raise ConfigError(str(error)) from error


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
