"""A problem on several devices: copies of its model, among which batches are shared out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from sharpness.problem.problem import Problem
from sharpness.problem.untouched import untouched


def places(problem: Problem, devices: Sequence[str] | None) -> list[Problem]:
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
