"""Products of one batch's curvature matrix with a vector, as pure functions of weights and vector.

With z = model_w(inputs) [b, ...], L the batch-mean loss, J = dz/dw and r_i = b dL/dz_i the derivative of
example i's own loss with respect to its outputs:

    hessian          d^2 L / dw^2
    ggn              J^T (d^2 L / dz^2) J                      (Schraudolph 2002)
    fisher           (1/b) sum_i J_i^T s_i s_i^T J_i           (Amari 1998; Kunstner et al. 2019 on the kinds)
        empirical    s_i = r_i, at the data's targets
        true         the mean of s_i s_i^T over targets drawn from the model's own distribution, in closed form
        (a sampled one is the empirical kind at targets from `drawn_targets`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from sharpness.problem.functional import Functional
from sharpness.problem.problem import Loss, Problem

Kind = Literal["hessian", "ggn", "fisher-empirical", "fisher-true"]
_WEIGHT_NORM = getattr(torch, "_weight_norm", None)
Product = Callable[[Sequence[Tensor]], list[Tensor]]


def forward_over_reverse(kind: Kind, problem: Problem, inputs: Any, targets: Any) -> Product:
    """v -> M v with torch.func, for M of the given kind, at the present weights; v and M v are lists like the parameters."""
    function, weights = Functional(problem), {n: p.detach() for n, p in zip(problem.names, problem.parameters, strict=True)}

    def outputs(w: dict[str, Tensor]) -> Tensor:
        return function.outputs(w, inputs)

    def mean_loss(w: dict[str, Tensor]) -> Tensor:
        return function.loss(w, inputs, targets)

    def product(v: Sequence[Tensor]) -> list[Tensor]:
        direction = dict(zip(weights, v, strict=True))
        if kind == "hessian":
            result = jvp(grad(mean_loss), (weights,), (direction,))[1]
        else:
            z, moved = jvp(outputs, (weights,), (direction,))[:2]
            pull = vjp(outputs, weights)[1]
            (result,) = pull(on_outputs(kind, problem.loss, z.detach(), moved, targets))
        return [result[name] for name in weights]

    return product


def double_backward(kind: Kind, problem: Problem, inputs: Any, targets: Any) -> tuple[Product, Sequence[Tensor | None] | None]:
    """v -> M v by reverse mode alone, through a graph that is built here and kept; with the gradient of the
    mean loss where that comes for nothing (Hessian)."""
    parameters = problem.parameters
    # The graph's own ends: a parameter gets another one when its precision changes, as in the check of another operator.
    ends = [get_gradient_edge(p) for p in parameters]
    if kind == "hessian":
        value = problem.batch_loss(inputs, targets)
        gradient: Sequence[Tensor | None] = [None] * len(parameters)
        if value.requires_grad:
            gradient = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        return lambda v: _pull_back(gradient, v, parameters, ends), gradient
    z = problem.outputs(inputs)
    if not z.requires_grad:
        return lambda v: [torch.zeros_like(p) for p in parameters], None
    # J v is the derivative of u -> J^T u along v: one more backward pass (the double-backward trick).
    u = torch.zeros_like(z, requires_grad=True)
    transposed = torch.autograd.grad(z, parameters, u, create_graph=True, allow_unused=True)

    def product(v: Sequence[Tensor]) -> list[Tensor]:
        (moved,) = _pull_back(transposed, v, (u,))
        image = on_outputs(kind, problem.loss, z.detach(), moved, targets)
        return _pull_back((z,), (image,), parameters, ends)

    return product, None


def _pull_back(
    outputs: Sequence[Tensor | None],
    v: Sequence[Tensor],
    inputs: Sequence[Tensor],
    ends: Sequence[GradientEdge] | None = None,
) -> list[Tensor]:
    """sum_j v_j^T d outputs_j / d inputs; outputs that do not depend on anything contribute nothing. `ends`: where the
    inputs are in the graph, if it may be older than the last change of their precision."""
    pairs = [(o, part) for o, part in zip(outputs, v, strict=True) if o is not None and o.requires_grad]
    if not pairs:
        return [torch.zeros_like(p) for p in inputs]
    heads, directions = zip(*pairs, strict=True)
    found = torch.autograd.grad(heads, ends or inputs, directions, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, inputs, strict=True)]


def on_outputs(kind: Kind, loss: Loss, z: Tensor, moved: Tensor, targets: Any) -> Tensor:
    """What stands between J^T and J, applied to moved = J v, both [b, ...]."""
    if kind == "fisher-true":
        return _expected_fisher(z, moved, targets)
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        value = loss(at, targets)
        if not value.requires_grad:
            return torch.zeros_like(z)
        (slopes,) = torch.autograd.grad(value, at, create_graph=kind == "ggn")
        if kind == "ggn":  # symmetric: the transpose serves
            return _pull_back((slopes,), (moved,), (at,))[0].detach()
        scores = len(z) * slopes.detach()
    along = (scores * moved).flatten(1).sum(1)
    return scores * along.reshape(-1, *[1] * (z.ndim - 1)) / len(z)


def _expected_fisher(z: Tensor, moved: Tensor, targets: Tensor) -> Tensor:
    """(1/b) E[s s^T] moved for the two likelihoods of `likelihood_of`."""
    if targets.is_floating_point():  # mean over the c entries of squared errors: N(z, c/2)
        return 2 * moved / z.numel()
    if (targets < 0).any():
        raise ValueError("targets below 0 are ignored by the loss, and no Fisher matrix counts them: drop these examples")
    p = z.softmax(dim=1)
    return (p * moved - p * (p * moved).sum(1, keepdim=True)) / len(z)


def drawn_targets(z: Tensor, targets: Any) -> Tensor:
    """One target per example, like `targets`, from the model's own distribution, from torch's (seeded) generator."""
    if targets.is_floating_point():
        return z + torch.randn_like(z) * (z[0].numel() / 2) ** 0.5
    return torch.multinomial(z.softmax(dim=1), 1).squeeze(1)


def likelihood_of(loss: Loss, outputs: Any, targets: Any) -> str | None:
    """Which negative log likelihood (up to constants) `loss` is on this batch: "categorical" for the
    cross-entropy of logits [b, c] at indices [b], "gaussian" for the mean squared error, None otherwise. Inside `untouched`."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or not isinstance(targets, Tensor):
        return None
    steps = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    outputs = outputs + steps.reshape(outputs.shape)  # away from a fit, where every loss is 0
    try:
        value = loss(outputs, targets)
        if not targets.is_floating_point() and outputs.ndim == 2 and targets.ndim == 1:
            reference, name = nn.functional.cross_entropy(outputs, targets.long()), "categorical"
        elif targets.is_floating_point() and targets.shape == outputs.shape:
            reference, name = nn.functional.mse_loss(outputs, targets), "gaussian"
        else:
            return None
    except Exception:  # whatever a loss may raise for such outputs, or for targets that are no classes
        return None
    return name if math.isclose(float(value), float(reference), rel_tol=1e-4, abs_tol=1e-7) else None


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Only the plain attention kernel has a second derivative, and only plain weight norm the right one."""
    with sdpa_kernel(SDPBackend.MATH), PlainWeightNorm():
        yield


class PlainWeightNorm(TorchFunctionMode):
    """torch 2.13's fused weight norm has a wrong second derivative: w = g v / ||v|| by elementary operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _WEIGHT_NORM:
            v, g, *dim = args
            return v * (g / torch.norm_except_dim(v, 2, *dim))
        return func(*args, **(kwargs or {}))
