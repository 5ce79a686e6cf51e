"""Curvature with respect to activations or inputs: an offset added to them is a parameter like any other."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.problem.arguments import check_flag, check_model, shown

OFFSET = "offset"


class Shifted(nn.Module):
    """A module with a parameter added to its output, or to its one input."""

    def __init__(self, inner: nn.Module, offset: Tensor, *, inputs: bool) -> None:
        super().__init__()
        self.inner, self.inputs = inner, inputs
        self.offset = nn.Parameter(offset)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.inputs:
            return self.inner(*args, **kwargs) + self.offset
        if len(args) != 1 or not isinstance(args[0], Tensor):
            raise ValueError("the model takes something else than one tensor: name a module in `at`, whose output is shifted")
        return self.inner(args[0] + self.offset)


def add_offset(model: nn.Module, inputs: Any, *, at: str = "", shared: bool = False) -> tuple[nn.Module, str]:
    """A model that computes the same, with an offset of zeros on the output of module `at`, and the offset's name.

    `shifted, name = add_offset(model, inputs, at="0")`, then `hessian(shifted, loss, [(inputs, targets)], params=[name])`
    is the curvature with respect to that activation, and everything else takes it too: `ggn`, `trace`,
    `worst_case_sharpness` (an adversarial perturbation), `slice_2d`. The model's own parameters and buffers are
    shared, not copied; only modules on the way to `at` are made anew. The mean loss of N examples has 1/N of each
    example's own curvature on its diagonal blocks.

    Args:
        inputs: the batch that is measured, as one batch: the offset has the activation's shape, an entry per example.
        at: a name of `model.named_modules()`; "" are the inputs, one floating-point tensor.
        shared: one offset for all examples, [1, ...]: the data may then come in batches.

    Raises:
        ValueError: no module of that name, one that is not used exactly once, or an output that is not one
            floating-point tensor.
    """
    check_model(model)
    check_flag("shared", shared)
    modules = dict(model.named_modules())
    if not isinstance(at, str) or at not in modules:
        raise ValueError(f"at is {shown(at)}: name a module of the model, such as {[name for name in modules if name][:6]}")
    activation = inputs if at == "" else _output(model, modules[at], at, inputs)
    if not isinstance(activation, Tensor) or not activation.is_floating_point() or activation.ndim == 0:
        what = "inputs" if at == "" else f"the output of module {at!r}"
        raise ValueError(f"{what} is {shown(activation)}: an offset is added to one floating-point tensor with the batch first")
    offset = torch.zeros_like(activation[:1] if shared else activation)
    if at == "":
        return Shifted(model, offset, inputs=True).train(model.training), OFFSET
    root = place = _twin(model)
    *path, last = at.split(".")
    for part in path:
        place._modules[part] = _twin(place._modules[part])
        place = place._modules[part]
    place._modules[last] = Shifted(modules[at], offset, inputs=False).train(modules[at].training)
    return root, f"{at}.{OFFSET}"


def _twin(module: Any) -> Any:
    """The same module with dicts of its own for what it holds."""
    found = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        found.__dict__[name] = dict(module.__dict__[name])
    return found


def _output(model: nn.Module, module: nn.Module, at: str, inputs: Any) -> Any:
    """What the module gives for these inputs; the model is left as it was."""
    seen: list[Any] = []
    twin = copy.deepcopy(model).eval()
    hook = dict(twin.named_modules())[at].register_forward_hook(lambda _module, _args, output: seen.append(output))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if isinstance(inputs, dict):
            twin(**inputs)
        else:
            twin(*inputs) if isinstance(inputs, (tuple, list)) else twin(inputs)
    hook.remove()
    if len(seen) != 1:
        raise ValueError(f"module {at!r} runs {len(seen)} times in one pass: name one that runs once")
    return seen[0]

