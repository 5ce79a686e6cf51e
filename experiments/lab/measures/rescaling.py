"""The same function at other weights: a ReLU layer multiplied, the next one divided (Dinh et al. 2017, section 4).

relu(a z) = a relu(z) for a > 0, so that (a W_k, a b_k) followed by W_{k+1} / a is the same network, while the Hessian's blocks
of W_{k+1} grow by a^2 and those of W_k and b_k shrink by it: no measure of raw curvature is a property of the function.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from experiments.lab.declare.config import Model, Norm
from experiments.lab.declare.errors import ConfigError
from experiments.lab.measures import curvature
from experiments.lab.measures.subject import Subject, head
from experiments.lab.training.evaluate import evaluate

MODELS = (Model.MLP, Model.SMALL_CONV)
"""chains of linear maps, ReLUs and nothing else"""


def rescale(model: nn.Module, layer: int, factor: float) -> None:
    """Multiply weights and biases of the `layer`-th linear map of a chain by `factor`, divide the next one's weights, in place.

    A power of two moves no bit but those of exponents: outputs stay exactly as they were. Raises `ConfigError` for a layer
    that has no next one, or a factor that is not positive and finite.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not 0 <= layer < len(layers) - 1:
        raise ConfigError(f"layer {layer} has no next one among the {len(layers)} of this network; choose 0 to {len(layers) - 2}")
    if not (math.isfinite(factor) and factor > 0):
        raise ConfigError(f"factor is {factor}, but must be positive and finite: ReLU is homogeneous for such alone")
    with torch.no_grad():
        for p in layers[layer].parameters():
            p.mul_(factor)
        layers[layer + 1].weight.div_(factor)


def rescaled_subject(subject: Subject, layer: int, factor: float) -> Subject:
    """A copy of `subject` with one layer rescaled; raises `ConfigError` for a network whose function that would change."""
    config = subject.config
    if config.model not in MODELS or config.norm is not Norm.NONE:
        raise ConfigError(
            f"model {config.model} with norm {config.norm} is no chain of ReLU layers; take mlp or small-conv without norm"
        )
    model = copy.deepcopy(subject.model)
    rescale(model, layer, factor)
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return replace(subject, model=model, weights=weights, eigenpairs={})


def rescaled(subject: Subject, *, examples: int, layer: int, factor: float, seed: int) -> dict[str, Any]:
    """lambda_max of the rescaled network over lambda_max as trained.

    `details`: both, the same ratio of Keskar's phi (full space, 1e-3), of tr(H diag(w^2)) and of one adaptive step, which do
    not depend on the scale of layers, and the largest change of a test output and the change of the test accuracy (points).
    """
    other, test = rescaled_subject(subject, layer, factor), subject.data.test
    pair = [curvature.top_eigenpair(s, examples, curvature.TOL, seed) for s in (subject, other)]
    before, after = (float(found.values[0]) for found in pair)
    scores = [evaluate(s.model, test.inputs, test.targets, s.data.task) for s in (subject, other)]
    few = min(examples, 1000)

    def ratio(metric: Any, **options: Any) -> float:
        first, second = (float(metric(s, seed=seed, **options)["value"]) for s in (subject, other))
        return second / first

    return {
        **head(subject, examples, seed),
        "value": after / before,
        "residual": max(float(found.residuals[0]) for found in pair),
        "products": sum(found.matvecs for found in pair),
        "status": next((found.status for found in pair if not found.converged), pair[1].status),
        "details": {
            "lambda_max": before,
            "lambda_max_rescaled": after,
            "phi_ratio": ratio(curvature.phi, examples=few, epsilon=1e-3),
            "relative_trace_ratio": ratio(curvature.relative_trace, examples=few, products=12),
            "adaptive_ratio": ratio(curvature.adaptive_l2_step, examples=few, rho=0.5, m=128),
            "largest_output_change": _largest_change(subject, other),
            "test_accuracy_change": _difference(scores[1].accuracy, scores[0].accuracy),
        },
    }


def disguised_lambda(subject: Subject, *, examples: int, batch_size: int, layer: int, factor: float, seed: int) -> dict[str, Any]:
    """lambda_max, of runs with this `batch_size` after rescaling, of others as trained: what is left of a comparison."""
    chosen = rescaled_subject(subject, layer, factor) if subject.config.batch_size == batch_size else subject
    return curvature.lambda_max(chosen, examples=examples, tol=curvature.TOL, seed=seed)


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _largest_change(first: Subject, second: Subject) -> float:
    inputs = first.data.test.inputs[:2000]
    with torch.no_grad():
        return (first.model(inputs) - second.model(inputs)).abs().max().item()


