"""Curvature matrices of a model's mean loss as operators: exact products, checked against differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sharpness.operators.curvature_operator import MEMORY, CurvatureOperator, Method
from sharpness.operators.products import Kind, likelihood_of
from sharpness.problem.batches import Data
from sharpness.problem.calls import length_of
from sharpness.problem.make_problem import make_problem
from sharpness.problem.means import Weight, rules_of
from sharpness.problem.problem import Loss, Problem
from sharpness.problem.untouched import Mode

Fisher = Literal["empirical", "true", "sampled"]


def hessian(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    seed: int = 0,
    weight: Weight | None = None,
    memory: int = MEMORY,
    devices: Sequence[str] | None = None,
    method: Method = "exact",
) -> CurvatureOperator:
    """The Hessian of f(w) = mean over `data` of `loss(model(inputs), targets)`, as an operator.

    Products are exact (Pearlmutter 1994, by automatic differentiation) and linear in v to rounding. The first one builds the
    gradient's graph of each batch, which is kept if it fits into `memory`, and rebuilt for each product if not. After thirty
    products the operations that depend on v are recorded, checked against the graph, and replayed from then on. A product costs
    1 to 2.5 gradients. Before the first, a few examples' products are compared with differences of gradients, and gradients with
    differences of losses (`CurvatureOperator.verified`): functions written by hand make torch drop terms without a word.

    M is [n, n], n the number of scalars in w, in units of the loss per squared weight. With ReLU it is the
    Hessian of the smooth piece at w: kinks that a finite step crosses are not in it.

    It misleads at weights that are no minimum (negative eigenvalues are real), and across reparametrisations:
    scaling a layer up and the next one down changes it and leaves the function alone (Dinh et al. 2017).

    Args:
        model: any module; its weights must stay as they are while the operator is in use.
        loss: `loss(outputs, targets)`, the mean over the batch.
        data: a pair of tensors, or any re-iterable of (inputs, targets) pairs such as a list or a DataLoader.
        params: names of the parameters w (see `layers` for those of each layer); None means all with
            `requires_grad`.
        batch_size: splits a pair of tensors into batches; None: a length that suits the machine, in train mode
            one batch. In train mode batch normalisation couples the examples of a batch, so that the function
            itself depends on it.
        mode: "eval" or "train". In train mode dropout masks are the same at each product.
        seed: of the dropout masks.
        weight: a batch's share of the mean: "examples", "tokens" (targets that are neither -100 nor NaN), or a function of
            (inputs, targets). None: examples, and ValueError where the loss is some other mean. See docs/inputs.md.
        memory: bytes that may be kept between products (activations and their derivatives); 0 keeps nothing.
        devices: such as ["cuda:0", "cuda:1"]: batches are shared out among copies of the model there.
        method: "exact", or "differences" of gradients, for what torch cannot differentiate twice; central, in float64 if the
            model can be computed in it, else with about three digits.

    Raises:
        ValueError: for wrong input (see `make_problem`), from a product when the model was changed in between, and from the
            first one where derivatives are wrong, are not those of the loss, or do not exist.
    """
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, seed=seed, weight=weight)
    return CurvatureOperator(problem, memory=memory, devices=devices, method=method)


def ggn(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    seed: int = 0,
    weight: Weight | None = None,
    memory: int = MEMORY,
    devices: Sequence[str] | None = None,
    method: Method = "exact",
) -> CurvatureOperator:
    """The generalised Gauss-Newton matrix: mean over batches of J^T (d^2 L / dz^2) J, as an operator.

    z are the model's outputs (one tensor), J = dz/dw, L the batch's mean loss. It is the Hessian of the loss
    with the model linearised, positive semi-definite for a loss convex in z, and equal to the Hessian where
    the loss is minimal in z for every example, or the model linear (Schraudolph 2002; Martens 2020, section 8).
    It misleads where the residual part of the Hessian matters: far from interpolation. Arguments as in
    `hessian`.

    Raises:
        ValueError: as in `hessian`, or a model whose output is not one tensor [b, ...].
    """
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, seed=seed, weight=weight)
    likelihood = _likelihood(problem)
    op = CurvatureOperator(problem, "ggn", memory=memory, devices=devices, method=method)
    op.semidefinite = likelihood is not None
    return op


def fisher(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    kind: Fisher = "true",
    params: Sequence[str] | None = None,
    batch_size: int | None = None,
    mode: Mode = "eval",
    seed: int = 0,
    weight: Weight | None = None,
    memory: int = MEMORY,
    devices: Sequence[str] | None = None,
    method: Method = "exact",
) -> CurvatureOperator:
    """The Fisher matrix (1/N) sum_i E_y[g_i(y) g_i(y)^T], g_i the gradient of example i's loss at target y.

    kind "true": y from the model's own distribution, in closed form; "sampled": one y per example from there
    (a Monte Carlo estimate of "true"); "empirical": y as in the data. The empirical one misleads as an
    approximation of the others: it vanishes where the data are fitted (Kunstner et al. 2019, section 3). For
    cross-entropy and squared error the true Fisher equals the GGN.

    "true" and "sampled" need a loss that is a likelihood known here: cross-entropy of logits [b, c] with
    indices [b], or the mean squared error. The loss must be a mean over examples, each the function of its own
    outputs. Arguments and errors otherwise as in `hessian`; ValueError also for another `kind` or loss, and for
    batch norm in train mode, where an example's gradient does not exist.
    """
    if kind not in ("empirical", "true", "sampled"):
        raise ValueError(f"kind is {kind!r}: it must be 'empirical', 'true' or 'sampled'")
    problem = make_problem(model, loss, data, params=params, batch_size=batch_size, mode=mode, seed=seed, weight=weight)
    if mode == "train" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ValueError("batch norm in train mode couples the examples, so that no Fisher matrix exists: use mode='eval'")
    if _likelihood(problem) is None and kind != "empirical":
        raise ValueError(
            f"loss is neither the cross-entropy of logits nor the mean squared error, so that its likelihood is "
            f"unknown to the {kind} Fisher: use kind='empirical' or ggn"
        )
    _require_plain_mean(problem)
    name: Kind = "fisher-true" if kind == "true" else "fisher-empirical"
    return CurvatureOperator(problem, name, sampled=kind == "sampled", memory=memory, devices=devices, method=method)


def _require_plain_mean(problem: Problem) -> None:
    """Raise ValueError where a batch's loss is not the mean of its examples' own."""
    with problem.untouched(), problem.without_gradients():
        for inputs, targets, _ in problem.passes():
            outputs = problem.outputs(inputs)
            rules = rules_of(problem.loss, outputs, targets, length_of(inputs, targets))
            if len(outputs) != length_of(inputs, targets) or (rules is not None and "examples" not in rules):
                raise ValueError(
                    "loss is no plain mean over examples with outputs of their own (class weights, ignored targets, pairs), so "
                    "that no Fisher matrix counts them: drop these examples, or use ggn"
                )


def _likelihood(problem: Problem) -> str | None:
    """`likelihood_of` the first batch. Raises ValueError where the model's output is not one tensor with the batch first."""

    def of_batch(inputs: Any, targets: Any) -> str | None:
        outputs = problem.outputs(inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim == 0:
            raise ValueError("model returns something else than one tensor with the batch first: use hessian instead")
        return likelihood_of(problem.loss, outputs, targets)

    with problem.untouched(), problem.without_gradients():
        return problem.on_first(of_batch)
