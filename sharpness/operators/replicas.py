"""A problem on several devices: copies of its model, among which batches are shared out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sharpness.operators.verification import AGREEMENT, relative
from sharpness.problem.nested import cloned, to_device
from sharpness.problem.problem import Problem
from sharpness.problem.untouched import untouched


def replicas_of(problem: Problem, devices: Sequence[str] | None) -> list[Problem]:
    """The problem on each device: on copies of the model, unless no devices are named."""
    if devices is None:
        return [problem]
    if isinstance(devices, str) or not devices:
        raise ValueError(f"devices is {devices!r}: pass a list such as ['cuda:0', 'cuda:1'], or None")
    found = []
    for device in devices:
        with untouched(problem.model, problem.parameters, problem.mode):
            model = copy.deepcopy(problem.model).to(device)
        known = dict(model.named_parameters(remove_duplicate=False))
        if foreign := [name for name in problem.names if name not in known]:
            raise ValueError(f"params {foreign} belong to the loss, of which no copies are made: leave devices None")
        chosen = tuple(known[name] for name in problem.names)
        for name, p in known.items():
            p.grad = None
            p.requires_grad_(name in problem.names or any(p is q for q in chosen))
        found.append(replace(problem, model=model.train(problem.mode == "train"), parameters=chosen))
    return found


def require_same_gradients(problem: Problem, replicas: Sequence[Problem]) -> None:
    """Raise ValueError for a loss that reads the model's weights: it sees the original's, not those of the
    copies. Inside the operator's `untouched`."""

    def gradients(inputs: Any, targets: Any) -> list[NDArray[np.float64]]:
        found = []
        for one in (problem, *replicas):
            value = one.batch_loss(to_device(cloned(inputs), one.device), to_device(targets, one.device))
            slopes = torch.autograd.grad(value, one.parameters, allow_unused=True)
            found.append(one.flatten(slopes).cpu().numpy())
        return found

    found = problem.on_first(gradients)
    if any(relative(found[0], other) > 10 * AGREEMENT[problem.dtype] for other in found[1:]):
        raise ValueError(
            "loss has another gradient with copies of the model: one that reads the model's own weights (a "
            "regulariser) does not see the copies; leave devices None"
        )
