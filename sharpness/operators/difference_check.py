"""Derivatives that are verified, not trusted: products of a curvature matrix against differences of what torch need only
differentiate once, or not at all.

A function of the model or the loss that keeps a part of its own gradient for the way back makes torch drop a term of the second
derivative without a word; what is left is symmetric, deterministic and wrong. So the first batch is looked at: along random
directions, a product is compared with a central difference of gradients, and the gradient with a difference of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from sharpness.operators.products import Kind, double_backward, on_outputs
from sharpness.problem.calls import exhausted, length_of
from sharpness.problem.module_state import Attributes, Buffers, modules_of
from sharpness.problem.nested import cloned, mapped, take, tensors_of
from sharpness.problem.precision import in_double, wide
from sharpness.problem.problem import Problem
from sharpness.problem.result import Result
from sharpness.problem.untouched import Mode, seed_generators

_ROWS = 16  # examples of the first batch
_DOUBLE = ((1e-6, 1e-4), (1e-8, 1e-2), (1e-4, 1e-2), (1e-2, 0.5))  # steps relative to each weight tensor's size, and what
# may differ there: kinks that a step crosses are in a difference and not in the product
_SINGLE = ((1e-3, 0.02), (1e-2, 0.05))
_TRIES = 6  # in float32: single examples and directions, of which kinks spare one, and a dropped term none
_SHIFT = 1e-2  # relative, off the weights: they may lie on a kink, as biases of 0 do
_FINER = 4.0  # a real disagreement stays the same at a step so much smaller
_STEADY = 0.2  # within this share of the disagreement
_SMALL = 1e-6  # of the whole, below which a part is not looked at

Vectors = list[Tensor]


@dataclass(frozen=True, repr=False)
class CurvatureCheck(Result):
    """Whether the products of a matrix are those of its definition, on examples of the first batch.

    Attributes:
        size: largest relative difference, over parameter tensors, between a product and the difference quotient of gradients
            (Hessian); for the other matrices, of u^T M v between the product and difference quotients of outputs and of the
            loss's gradient with respect to them. NaN where nothing could be compared.
        gradient: relative difference between the gradient along a direction and the difference quotient of losses.
        step: relative step at which this was seen.
        examples, dtype, mode, seed: what was looked at; float64 where model, loss and data can be had in it.
        status: "ok"; "unresolved" (the differences change with the step: kinks or rounding hide the answer); "product" or
            "gradient" (they differ, whatever the step).
    """

    size: float
    gradient: float
    step: float
    examples: int
    dtype: str
    mode: Mode
    seed: int
    status: str


@dataclass(frozen=True)
class _Look:
    """What one step showed. Parts are parameter tensors, or the numbers of a form."""

    exact: Vectors  # by automatic differentiation
    found: Vectors  # by differences
    noise: list[float]  # norm of each part below which it is rounding
    slope: tuple[float, float, float]  # the same for the first derivative, and its rounding

    def differences(self) -> Vectors:
        return [a - b for a, b in zip(self.exact, self.found, strict=True)]

    def sizes(self) -> list[float]:
        """Relative differences of the parts."""
        parts = zip(self.exact, self.found, self.noise, strict=True)
        return [_relative(float((a - b).norm()), float(a.norm()), float(b.norm()), noise) for a, b, noise in parts]

    def slope_size(self) -> float:
        by_gradient, by_loss, noise = self.slope
        return _relative(abs(by_gradient - by_loss), abs(by_gradient), abs(by_loss), noise)


def curvature_check(problem: Problem, kind: Kind, inputs: Any, targets: Any) -> CurvatureCheck:
    """Compare products and gradients of `kind` with differences on examples of this batch. Inside the operator's `untouched`.

    Costs two products with their graphs and four gradients of those examples, in float64 if the model can be computed in it,
    so that steps are small and cross no kink. Exceptions are those of the product itself.
    """
    length, few = length_of(inputs, targets), None
    if length > _ROWS:
        index = torch.from_numpy(np.sort(np.random.default_rng([problem.seed, 7]).permutation(length)[:_ROWS]))
        try:
            few = take(inputs, index, length), take(targets, index, length)
        except ValueError:
            few = None
    last: Exception | None = None
    for batch in ((inputs, targets),) if few is None else (few, (inputs, targets)):
        for double in (True, False) if problem.dtype == np.float32 else (False,):
            try:
                if not double:
                    return _one_by_one(problem, kind, *batch)
                with in_double(problem) as doubled:
                    return _compared(doubled, kind, mapped(wide, batch[0]), mapped(wide, batch[1]))
            except Exception as error:  # not in this precision, or not for so few examples
                if exhausted(error):
                    raise
                last = error
    assert last is not None
    raise last


def _one_by_one(problem: Problem, kind: Kind, inputs: Any, targets: Any) -> CurvatureCheck:
    """In the parameters' own precision. In float32 steps are so large that they cross kinks: what differs must differ for each
    example."""
    if problem.dtype == np.float64:
        return _compared(problem, kind, inputs, targets)
    found, length = list[CurvatureCheck](), length_of(inputs, targets)
    for k in range(_TRIES):
        index = torch.tensor([k % length])
        try:
            check = _compared(problem, kind, take(inputs, index, length), take(targets, index, length), salt=k)
        except Exception as error:  # not for one example
            if exhausted(error):
                raise
            check = _compared(problem, kind, inputs, targets, salt=k)
        if check.status == "ok":
            return check
        found.append(check)
    least = min(found, key=lambda c: c.size)
    told = all(c.status in ("product", "gradient") for c in found)
    return least if told else replace(least, status="unresolved")


def _compared(problem: Problem, kind: Kind, inputs: Any, targets: Any, *, salt: int = 0) -> CurvatureCheck:
    double = problem.dtype == np.float64
    spot = _Spot(problem, inputs, targets, salt)
    spot.require_product(kind)
    spot.step_aside()
    look = spot.hessian_looks() if kind == "hessian" else spot.form_looks(kind)
    size = slope = step = float("nan")
    status = "unresolved"
    for step, tolerance in _DOUBLE if double else _SINGLE:
        first = look(step)
        size, slope = max(first.sizes()), first.slope_size()
        if size <= tolerance and slope <= tolerance:
            status = "ok"
            break
        second = look(step / _FINER)
        apart = first.slope[0] - first.slope[1], second.slope[0] - second.slope[1]
        if slope > tolerance and second.slope_size() > tolerance and abs(apart[0] - apart[1]) <= _STEADY * abs(apart[0]):
            status = "gradient"
            break
        parts = zip(first.differences(), second.differences(), first.sizes(), second.sizes(), strict=True)
        steady = [float((a - b).norm()) <= _STEADY * float(a.norm()) for a, b, p, q in parts if max(p, q) > tolerance]
        if min(size, max(second.sizes())) > tolerance and all(steady):
            status = "product"
            break
    return CurvatureCheck(size, slope, step, length_of(inputs, targets), problem.dtype.name, problem.mode, problem.seed, status)


class _Spot:
    """One batch at the present weights, and the same a little beside them."""

    def __init__(self, problem: Problem, inputs: Any, targets: Any, salt: int) -> None:
        self.problem, self.inputs, self.targets, self._salt = problem, inputs, targets, salt
        self.eps = float(np.finfo(problem.dtype).eps)
        modules = modules_of([problem.model, problem.criterion])
        self._buffers, self._attributes = Buffers(modules), Attributes(modules)
        self._own = self._base = [p.data for p in problem.parameters]

    def at(self, moved: Vectors | None, step: float, function: Callable[[Any], Any]) -> Any:
        """`function` of the inputs, at w + step moved; dropout masks, buffers and attributes are the same each time."""
        problem = self.problem
        try:
            self._buffers.replace(torch.clone)
            for i, (p, base) in enumerate(zip(problem.parameters, self._base, strict=True)):
                p.data = base if moved is None else torch.add(base, moved[i], alpha=step)
            seed_generators(problem.parameters, problem.seed + 7919)
            return function(cloned(self.inputs) if problem.copies else self.inputs)
        finally:
            for p, base in zip(problem.parameters, self._own, strict=True):
                p.data = base
            self._buffers.restore()
            self._attributes.restore()

    def require_product(self, kind: Kind) -> None:
        """Raise ValueError where a product at the weights themselves is not finite."""

        def product(inputs: Any) -> Vectors:
            return double_backward(kind, self.problem, inputs, self.targets)[0](self.direction(0))

        if not all(bool(torch.isfinite(part).all()) for part in self.at(None, 0.0, product)):
            raise ValueError(
                "a product is not finite: an operation has no second derivative at these weights (such as a root or a norm at "
                "0), or overflows: pass method='differences', or keep away from that point by a small constant"
            )

    def step_aside(self) -> None:
        """Look a little beside the weights, where nothing lies exactly on a kink, if the loss is finite there."""
        aside = [torch.add(base, v, alpha=_SHIFT) for base, v in zip(self._base, self.direction(3), strict=True)]
        own, self._base = self._base, aside
        value, gradient = self.loss_and_gradient([torch.zeros_like(v) for v in aside], 0.0)
        if not np.isfinite([value, *(float(g.norm()) for g in gradient)]).all():
            self._base = own

    def direction(self, which: int) -> Vectors:
        """Random, in each tensor as long as the tensor itself: every layer has its part."""
        rng = np.random.default_rng([self.problem.seed, which, self._salt])
        found = []
        for p in self.problem.parameters:
            v = torch.from_numpy(rng.standard_normal(tuple(p.shape))).to(p)
            size = float(p.detach().norm()) or 0.1 * p.numel() ** 0.5
            found.append(v * (size / max(float(v.norm()), 1e-30)))
        return found

    def loss_and_gradient(self, moved: Vectors, step: float) -> tuple[float, Vectors]:
        def run(inputs: Any) -> tuple[float, Vectors]:
            loss = self.problem.batch_loss(inputs, self.targets)
            return loss.item(), _gradient(loss, self.problem.parameters)

        return self.at(moved, step, run)

    def hessian_looks(self) -> Callable[[float], _Look]:
        """A product and the gradients' difference, tensor by tensor in float64, as a whole in float32."""
        v = self.direction(0)

        def product(inputs: Any) -> Vectors:
            return double_backward("hessian", self.problem, inputs, self.targets)[0](v)

        exact = self.at(None, 0.0, product)
        usual, outputs = self.at(None, 0.0, self._usual_gradient)

        def look(step: float) -> _Look:
            (up, g), (down, h) = (self.loss_and_gradient(v, s) for s in (step, -step))
            found = [(a - b) / (2 * step) for a, b in zip(g, h, strict=True)]
            size = max(_norm(g), _norm(h), usual)
            rounding, whole = 64 * self.eps * size / step, max(_norm(exact), _norm(found))
            slopes = [0.5 * float((a + b).flatten() @ c.flatten()) for a, b, c in zip(g, h, v, strict=True)]
            doubt = 64 * self.eps * max(abs(up), abs(down), outputs) / step + _SMALL * size * _norm(v)
            slope = sum(slopes), (up - down) / (2 * step), doubt
            if self.eps > 1e-10:
                return _Look([_flat(exact)], [_flat(found)], [rounding], slope)
            return _Look(exact, found, [rounding + _SMALL * whole] * len(v), slope)

        return look

    def _usual_gradient(self, inputs: Any) -> tuple[float, float]:
        """Length of a gradient whose errors at the outputs are of size 1, and the largest output: at a fit the loss and its
        gradient are differences of such numbers, and no more exact."""
        z = [t for t in tensors_of(self.problem.outputs(inputs)) if t.is_floating_point() and t.requires_grad]
        if not z:
            return 0.0, 0.0
        rng, length = np.random.default_rng([self.problem.seed, 2]), length_of(self.inputs, self.targets)
        signs = [torch.from_numpy(rng.choice((-1.0, 1.0), size=tuple(t.shape))).to(t) / length for t in z]
        found = torch.autograd.grad(z, self.problem.parameters, signs, allow_unused=True)
        parts = [g.to_dense() for g in found if g is not None] or [torch.zeros(1)]
        return _norm(parts), max(float(t.detach().abs().max()) for t in z)

    def form_looks(self, kind: Kind) -> Callable[[float], _Look]:
        """v^T M v and u^T M v, with J v and J u from differences of outputs, and the loss's part from differences of its
        gradient with respect to them."""
        u, v = self.direction(0), self.direction(1)
        problem = self.problem

        def product(inputs: Any) -> Vectors:
            return double_backward(kind, problem, inputs, self.targets)[0](v)

        image = self.at(None, 0.0, product)
        exact = [torch.tensor([_dot(u, image)]), torch.tensor([_dot(v, image)])]

        def outputs(moved: Vectors | None, step: float) -> Tensor:
            with problem.without_gradients():
                return self.at(moved, step, lambda inputs: problem.outputs(inputs).detach())

        z = outputs(None, 0.0)

        def loss_gradient(outputs: Tensor) -> tuple[float, Tensor]:
            at = outputs.detach().requires_grad_()
            loss = self.at(None, 0.0, lambda _: problem.loss(at, self.targets))
            return loss.item(), _gradient(loss, [at])[0]

        def look(step: float) -> _Look:
            along = [(outputs(w, step) - outputs(w, -step)) / (2 * step) for w in (u, v)]
            large = 16 * self.eps * float(z.norm()) / step  # rounding of each
            small = step * float(z.norm()) / max(float(along[1].norm()), 1e-30) or step
            (up, g), (down, h) = (loss_gradient(z + s * along[1]) for s in (small, -small))
            if kind == "ggn":
                middle = (g - h) / (2 * small)
            elif kind == "fisher-true":
                middle = on_outputs(kind, problem.loss, z, along[1], self.targets)
            else:
                scores = len(z) * (g + h) / 2
                middle = scores * (scores * along[1]).flatten(1).sum(1).reshape(-1, *[1] * (z.ndim - 1)) / len(z)
            found = [(w * middle).sum().reshape(1).cpu().to(torch.float64) for w in along]
            noise = [_SMALL * float(w.norm()) * float(middle.norm())
                     + large * float(middle.norm())
                     + 16 * self.eps * max(float(g.norm()), len(z) ** -0.5) / small * float(w.norm())
                     for w in along]
            slope = 0.5 * float(((g + h) * along[1]).sum()), (up - down) / (2 * small)
            rounding = 64 * self.eps * max(abs(up), abs(down), float(z.abs().max())) / small
            rounding += _SMALL * float(g.norm()) * float(along[1].norm())
            return _Look(exact, found, noise, (*slope, rounding))

        return look


def suspects(problem: Problem, inputs: Any, targets: Any) -> str:
    """The functions written by hand in model and loss, with the module that calls each: where a derivative may be wrong."""
    seen: set[Any] = set()
    found: list[str] = []

    def look(answer: Any, where: str) -> None:
        stack = [t.grad_fn for t in tensors_of(answer) if t.grad_fn is not None]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if isinstance(node, BackwardCFunction):
                found.append(f"{type(node).__name__.removesuffix('Backward')!r} in {where}")
            stack += [f for f, _ in node.next_functions if f is not None]

    handles = [
        module.register_forward_hook(lambda m, _, answer, name=name: look(answer, f"module {name!r}" if name else "the model"))
        for name, module in problem.model.named_modules()
    ]
    try:
        outputs = problem.outputs(inputs)
        look(outputs, "the model")
        look(problem.loss(outputs, targets), "the loss")
    finally:
        for handle in handles:
            handle.remove()
    return ", ".join(dict.fromkeys(found))


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Vectors:
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(found, parameters, strict=True)]


def _relative(difference: float, a: float, b: float, noise: float) -> float:
    size = max(a, b, noise)
    found = difference / size if size else 0.0
    return found if np.isfinite(found) else float("inf")


def _norm(parts: Vectors) -> float:
    return float(torch.stack([p.norm().double().cpu() for p in parts]).norm())


def _dot(a: Vectors, b: Vectors) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _flat(parts: Vectors) -> Tensor:
    return torch.cat([p.reshape(-1).double().cpu() for p in parts])
