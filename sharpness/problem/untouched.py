"""Leave a model exactly as it came, whatever happens in between.

Nothing that belongs to the caller is written to. Buffers are replaced by copies, and moved weights live in
copies too (`movable_weights`), so that restoring is putting the original tensors back: bitwise exact, and a
graph of the caller's (or a retained one of ours) that saved those tensors stays valid. Attributes of modules that forward
changes are put back.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sharpness.problem.module_state import Attributes, Buffers, modules_of, refill

Mode = Literal["eval", "train"]
_GRADIENT_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextmanager
def untouched(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    mode: Mode,
    *,
    loss: Any = None,
    writes: bool = False,
    observed: bool = True,
) -> Iterator[None]:
    """Put `model` in `mode` with gradients with respect to `parameters` only; on exit, exceptions included,
    undo everything.

    Restored: parameters, buffers and all other attributes of the model's modules (and those of a loss that is a module),
        the train/eval flag of every submodule, `.grad`, `requires_grad`, hooks, and the global generators of torch (CPU and
        the model's CUDA devices), numpy and Python. Inside: autograd on, autocast off, TF32 off, embeddings with dense
        gradients, cuDNN off for recurrent layers (its kernels have no second derivative), and no hook on gradients: what
        hooks do to gradients changes an optimizer's steps, not the function.
    writes: the model writes into its own parameters, which get copies inside.
    observed: keep forward hooks; False sets aside all but torch's own (spectral norm, pruning), where they only watch.
    """
    modules = modules_of([model, loss])
    every = list({id(p): p for m in modules for p in m._parameters.values() if p is not None}.values())
    devices = _cuda_devices(every)
    flags = [(module, module.training) for module in modules]
    weights = [(p, p.data, p.requires_grad, p.grad) for p in every]
    buffers = Buffers(modules)
    places = [(m, dict(m._parameters)) for m in modules]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(_other_generators())
        stack.enter_context(_exact_arithmetic(cuda=bool(devices)))
        stack.enter_context(_no_fused_recurrence(modules if devices else ()))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_without_hooks(modules, every, observed))
        attributes = Attributes(modules)
        try:
            buffers.replace(torch.clone)
            for parameter, data, *_ in weights if writes else ():
                parameter.data = data.clone()
            model.train(mode == "train")  # a model's own train() may write to parameters, and freeze some
            for parameter in every:
                parameter.requires_grad_(False)
            for parameter in parameters:
                parameter.requires_grad_(True)
            for module in modules:
                if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
                    module.sparse = False
            # Without gradients attention would take another way, which pads otherwise: two functions in one.
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, parameters_of in places:
                refill(module._parameters, parameters_of)
            for module, flag in flags:
                module.training = flag
            buffers.restore()
            for parameter, data, requires_grad, grad in weights:
                if parameter.data_ptr() != data.data_ptr() or parameter.dtype != data.dtype:
                    parameter.data = data
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
            attributes.restore(thorough=True)


@contextmanager
def movable_weights(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let `parameters` be written inside: they point to copies there, and to the originals again on exit."""
    originals = [p.data for p in parameters]
    try:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.data = original.clone()
        yield
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.data = original


@contextmanager
def _without_hooks(modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter], observed: bool) -> Iterator[None]:
    aside: list[tuple[dict[str, Any], str, Any]] = []
    tensors = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
    kinds = _GRADIENT_HOOKS if observed else (*_GRADIENT_HOOKS, *_FORWARD_HOOKS)
    for module in modules:
        for kind in kinds:
            if hooks := vars(module).get(kind):
                aside.append((vars(module), kind, hooks))
    everywhere: list[Any] = [getattr(nn.modules.module, f"_global{kind}") for kind in _GRADIENT_HOOKS]
    contents = [dict(hooks) for hooks in everywhere]
    try:
        for held, kind, hooks in aside:
            own = [] if kind in _GRADIENT_HOOKS else [(k, h) for k, h in hooks.items() if is_torchs(h)]
            held[kind] = OrderedDict(own)
        for parameter, _ in tensors:
            parameter._backward_hooks = None
        for hooks in everywhere:
            hooks.clear()
        yield
    finally:
        for held, kind, hooks in aside:
            held[kind] = hooks
        for parameter, hooks in tensors:
            parameter._backward_hooks = hooks
        for hooks, content in zip(everywhere, contents, strict=True):
            hooks.update(content)


def has_observers(modules: Sequence[nn.Module]) -> bool:
    """Whether a module has forward hooks that are not torch's own."""
    return any(not is_torchs(hook) for m in modules for kind in _FORWARD_HOOKS for hook in vars(m).get(kind, {}).values())


def is_torchs(hook: Any) -> bool:
    """Whether a hook is part of how torch computes a weight."""
    return str(getattr(hook, "__module__", "")).startswith("torch.nn")


def seed_generators(parameters: Sequence[nn.Parameter], seed: int) -> None:
    """Seed the generators the model and the data draw from: torch's of the CPU and of the model's CUDA devices, numpy's and
    Python's global ones."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    for index in _cuda_devices(parameters):
        with torch.cuda.device(index):
            torch.cuda.manual_seed(seed)


def generator_states(parameters: Sequence[nn.Parameter]) -> list[Any]:
    """Where the generators that the model draws from stand, for `restore_generators`."""
    cuda = [torch.cuda.get_rng_state(i) for i in _cuda_devices(parameters)]
    return [np.random.get_state(), random.getstate(), torch.get_rng_state(), *cuda]


def restore_generators(parameters: Sequence[nn.Parameter], states: Sequence[Any]) -> None:
    """Put the generators back to where they stood."""
    np.random.set_state(states[0])
    random.setstate(states[1])
    torch.set_rng_state(states[2])
    for index, state in zip(_cuda_devices(parameters), states[3:], strict=True):
        torch.cuda.set_rng_state(state, index)


@contextmanager
def _other_generators() -> Iterator[None]:
    legacy, python = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(legacy)
        random.setstate(python)


def _cuda_devices(parameters: Sequence[nn.Parameter]) -> list[int]:
    return sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})


@contextmanager
def _exact_arithmetic(cuda: bool) -> Iterator[None]:
    """Autocast off, and float32 products on CUDA in float32: TF32 keeps ten bits, too few for curvature."""
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn) if cuda else ()
    saved = [switch.fp32_precision for switch in switches]
    with torch.autocast("cuda", enabled=False) if cuda else torch.autocast("cpu", enabled=False):
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, value in zip(switches, saved, strict=True):
                switch.fp32_precision = value


@contextmanager
def _no_fused_recurrence(modules: Sequence[nn.Module]) -> Iterator[None]:
    """cuDNN's recurrent layers have no second derivative, and in eval mode no first one."""
    enabled = torch.backends.cudnn.enabled
    try:
        if any(isinstance(m, nn.RNNBase) for m in modules):
            torch.backends.cudnn.enabled = False
        yield
    finally:
        torch.backends.cudnn.enabled = enabled
