"""The parameters of a model: which of them count, by layer or by name, and as one vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.problem.arguments import check_model, numbers_of, shown
from sharpness.problem.calls import shapes_of
from sharpness.problem.problem import Vector, vector_of

Weights = Mapping[str, Tensor]
"""a state dict, or a part of one"""


def layers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The names of the parameters of each layer of `model` (module with parameters of its own), for `params`:
    frozen ones too; a tied parameter belongs to the first layer that has it. "" is the model itself."""
    refuse_model(model)
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return {layer: tuple(names) for layer, names in found.items()}


def select_parameters(
    model: nn.Module, params: Sequence[str] | None, loss: Any = None
) -> tuple[tuple[str, ...], tuple[nn.Parameter, ...]]:
    """The names and parameters that `params` stands for: of the model, and of a loss that is a module as "loss.NAME".

    Raises ValueError for what is no model or cannot be measured.
    """
    refuse_model(model)
    known = dict(model.named_parameters(remove_duplicate=False))
    own = {f"loss.{name}": p for name, p in loss.named_parameters()} if isinstance(loss, nn.Module) else {}
    if params is not None and (isinstance(params, str) or not isinstance(params, Iterable)):
        raise ValueError(f"params is {params!r}: pass a list of parameter names, or None")
    if params is None:
        chosen = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not chosen:
            raise ValueError("model has no parameter with requires_grad: name the frozen ones to measure in params")
    else:
        params, given = tuple(params) if isinstance(params, Iterable) else (), params
        if not all(isinstance(name, str) for name in params) or not isinstance(given, Iterable):
            raise ValueError(f"params is {shapes_of(given)}: pass a list of parameter names, such as {[*known][:2]}")
        known |= {name: p for name, p in own.items() if name not in known}
        unknown = [name for name in params if name not in known]
        if unknown or not params:
            raise ValueError(f"params {unknown or '[]'} names no parameter of the model: choose among {[*list(known)[:8], *own]}")
        chosen = {name: known[name] for name in params}
        if len({id(p) for p in chosen.values()}) < len(params):
            raise ValueError("params names the same parameter twice: name each (a tied one too) once")
    for name, p in chosen.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"parameter {name!r} is {p.dtype}: use float32 or float64, as by model.float()")
    for name, p in known.items():
        if not torch.isfinite(p).all():
            raise ValueError(f"parameter {name!r} of the model contains NaN or infinity: measure finite weights")
    return tuple(chosen), tuple(chosen.values())


def refuse_model(model: Any) -> None:
    """Raise ValueError for what is no module, or has weights without numbers."""
    if not isinstance(model, nn.Module):
        what = f"the text {model!r}" if isinstance(model, str) else f"a {type(model).__name__}"
        raise ValueError(f"model is {what}: pass an nn.Module with its weights loaded")
    for name, module in model.named_modules():
        where = f"module {name!r} of the model" if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{where} is TorchScript, whose state cannot be put back: pass the module that it was made from")
        if hasattr(module, "_orig_mod"):
            raise ValueError(f"{where} is compiled, which leaves no second derivative: pass its _orig_mod, the module itself")
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet: run the (lazy) model once before measuring")
        if p.is_meta:
            raise ValueError(f"parameter {name!r} is on the meta device and has no numbers: load the weights first")
        if p.is_inference():
            raise ValueError(
                f"parameter {name!r} was made in inference mode, without a way to derivatives: build the model outside of it, "
                "or pass copy.deepcopy(model)"
            )


def flat_weights(model: nn.Module, weights: Weights | None = None, *, params: Sequence[str] | None = None) -> Vector:
    """w [n], float64: the parameters of `model`, or those in `weights` (a state dict), flattened in the order
    in which every function of this library counts them.

    `params` names the parameters; None means all with `requires_grad`. Raises ValueError for weights that are
    not those of this model, or not finite.
    """
    names, parameters = select_parameters(model, params)
    if weights is None:
        found: Sequence[Tensor] = parameters
    else:
        check_weights(model, "weights", weights)
        found = [weights[name] for name in names]
    return vector_of(found)


def named_tensors(model: nn.Module, v: Vector | Tensor, *, params: Sequence[str] | None = None) -> dict[str, Tensor]:
    """A vector [n], such as an eigenvector or a diagonal, as {parameter name: float64 tensor of its shape}.

    v, of the weights of `model`, in the order of `flat_weights` with the same `params`; an operator's are `op.names`.
    Raises ValueError for another length.
    """
    check_model(model)
    names, parameters = select_parameters(model, params)
    flat = torch.from_numpy(numbers_of("v", v, "a vector [n], such as vectors[0] of top_eigenvalues"))
    sizes = [p.numel() for p in parameters]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"v has shape {tuple(flat.shape)}: pass one number for each of the n = {sum(sizes)} weights")
    return {k: part.reshape(p.shape) for k, p, part in zip(names, parameters, flat.split(sizes), strict=True)}


def check_weights(model: nn.Module, label: str, weights: Weights) -> None:
    """Raise ValueError unless `weights` has all parameters of `model`, nothing unknown, and is finite."""
    check_model(model)
    if not isinstance(weights, Mapping):
        raise ValueError(f"{label} is {shown(weights)}: pass a state dict, as model.state_dict() or a loaded file is")
    if odd := [name for name, t in weights.items() if not isinstance(t, Tensor)]:
        raise ValueError(f"{label}[{odd[0]!r}] is {shown(weights[odd[0]])}: a state dict holds tensors")
    refuse_model(model)
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    shapes = {name: t.shape for name, t in named}
    needed = {name for name, _ in model.named_parameters()}
    missing = sorted(needed - weights.keys())
    unknown = sorted(map(str, weights.keys() - model.state_dict().keys() - shapes.keys()))
    if missing or unknown:
        raise ValueError(f"{label} lacks {missing[:4]} and has the unknown {unknown[:4]}: pass this model's weights")
    for name in weights.keys() & shapes.keys():
        if weights[name].shape != shapes[name]:
            raise ValueError(f"{label}[{name!r}] has shape {tuple(weights[name].shape)} and the model "
                             f"{tuple(shapes[name])}: pass weights of this very model")
        if not torch.isfinite(weights[name]).all():
            raise ValueError(f"{label}[{name!r}] contains NaN or infinity: pass finite weights")
